"""Random operators replaced by constants, so that runs on batches of different sizes can be compared.

Dropout masks drawn for B − 1 examples are other masks than those drawn for B.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hushgrad.torch_internals import TorchDispatchMode, schema_of


class DeterministicMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs a forward without randomness: dropout keeps everything, a normal draw is its mean.

    Attributes:
        unknown: a random operator that was met and has no quiet form; its values are drawn as usual.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unknown: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator."""
        kwargs = kwargs or {}
        args, kwargs = _without_dropout(func, args, kwargs)
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        quiet = FORMS.get(schema_of(func).name.removeprefix("aten::"))
        if quiet is not None:
            return quiet(func, args, kwargs)
        if not _had_dropout(func):
            self.unknown = schema_of(func).name
        return func(*args, **kwargs)


def _had_dropout(func: Any) -> bool:
    return any(argument.name in ("dropout_p", "dropout") for argument in schema_of(func).arguments)


def _without_dropout(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a fused operator with its own dropout set to 0."""
    for place, argument in enumerate(schema_of(func).arguments):
        if argument.name in ("dropout_p", "dropout") and str(argument.type) == "float":
            if place < len(args):
                args = (*args[:place], 0.0, *args[place + 1 :])
            elif argument.name in kwargs:
                kwargs = {**kwargs, argument.name: 0.0}
    return args, kwargs


Form = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


def _filled(value: float) -> Form:
    """Every value is the same; tensors that are only drawn into keep their shape and device."""

    def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return func(*args, **kwargs).fill_(value)

    return run


def _uniform(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    low = args[1] if len(args) > 1 else kwargs.get("from", 0.0)
    high = args[2] if len(args) > 2 else kwargs.get("to", 1.0)
    return args[0].fill_((low + high) / 2)


def _normal(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    drawn = func(*args, **kwargs)
    mean = args[0] if schema_of(func).name == "aten::normal" else args[1] if len(args) > 1 else kwargs.get("mean", 0.0)
    return drawn.copy_(mean) if isinstance(mean, Tensor) else drawn.fill_(mean)


def _dropout(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)


def _bernoulli(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    chances = args[1] if len(args) > 1 and isinstance(args[1], Tensor) else None
    if schema_of(func).name == "aten::bernoulli_" or len(args) > 1 or "p" in kwargs:
        drawn = func(*args, **kwargs)
        return drawn.fill_(1) if chances is None else drawn.copy_(chances >= 0.5)
    return (args[0] >= 0.5).to(args[0].dtype)


def _permutation(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    drawn = func(*args, **kwargs)
    return drawn.copy_(torch.arange(drawn.numel() - 1, -1, -1, device=drawn.device))  # moves all, unlike the identity


def _likeliest(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    count = args[1]
    chosen = args[0].topk(min(count, args[0].shape[-1]), -1).indices
    return chosen if chosen.shape[-1] == count else chosen[..., :1].expand(*chosen.shape[:-1], count).clone()


def _mean_slope(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    values, slopes, slope = args[0], args[1], (args[2] + args[3]) / 2
    slopes.copy_(torch.where(values > 0, 1.0, slope))  # the backward multiplies by them
    return torch.ops.aten.leaky_relu.default(values, slope)


def _rates(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0].clone()


FORMS: dict[str, Form] = {
    "native_dropout": _dropout,
    "_fused_dropout": _dropout,
    "bernoulli": _bernoulli,
    "bernoulli_": _bernoulli,
    "rand": _filled(0.5),
    "rand_like": _filled(0.5),
    "randn": _filled(0.0),
    "randn_like": _filled(0.0),
    "randint": _filled(0),
    "randint_like": _filled(0),
    "random_": _filled(0),
    "uniform_": _uniform,
    "normal": _normal,
    "normal_": _normal,
    "normal_functional": _normal,
    "exponential_": _filled(1.0),
    "geometric_": _filled(1.0),
    "log_normal_": _filled(1.0),
    "cauchy_": _filled(0.0),
    "randperm": _permutation,
    "multinomial": _likeliest,
    "poisson": _rates,
    "rrelu_with_noise": _mean_slope,
}
