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
        was_needed: whether anything random was met.
        unknown: a random operator that was met and has no quiet form; its values are drawn as usual.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.was_needed = False
        self.unknown: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator."""
        kwargs = kwargs or {}
        name = schema_of(func).name.removeprefix("aten::")
        if name == "native_dropout_backward":
            return args[0].clone()  # it would scale what the quiet forward has not scaled
        places = _places_of_dropout(func)
        for place, argument in places:
            if place < len(args) and args[place]:
                args, self.was_needed = (*args[:place], 0.0, *args[place + 1 :]), True
            elif kwargs.get(argument):
                kwargs, self.was_needed = {**kwargs, argument: 0.0}, True
        if places or torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        self.was_needed = True
        quiet = FORMS.get(name)
        if quiet is None:
            self.unknown = schema_of(func).name
            return func(*args, **kwargs)
        return quiet(func, args, kwargs)


def _places_of_dropout(func: Any) -> list[tuple[int, str]]:
    """Return the place and the name of a fused operator's own probability of dropout."""
    arguments = enumerate(schema_of(func).arguments)
    return [
        (place, argument.name)
        for place, argument in arguments
        if argument.name in ("dropout_p", "dropout") and str(argument.type) == "float"
    ]


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
