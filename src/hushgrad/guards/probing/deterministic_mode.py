"""Random operators replaced by constants, so that runs on batches of different sizes can be compared.

Dropout masks drawn for B − 1 examples are other masks than those drawn for B. The constant is a quantile of the law
that is drawn from, and no mean: a scale or a rate that was computed from the batch shows in it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from hushgrad.guards.probing.laws import Law, arguments_of, law_of
from hushgrad.torch_internals import TorchDispatchMode, schema_of

QUANTILES = (0.6914624612740131, 0.2, 0.9)
"""Where in its law a constant lies; a normal draw is its mean and half a standard deviation, unless said otherwise."""


class DeterministicMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs a forward without randomness: dropout keeps everything and scales as it does, draws are a quantile.

    Attributes:
        laws: what was drawn from, in order.
        columns: of draws `[..., n]` whose values are one for each column beyond the first quantile, n, in order.
        unknown: a random operator that was met and has no quiet form; its values are drawn as usual.
    """

    def __init__(self, quantile: float = QUANTILES[0]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._quantile = quantile
        self.laws: list[Law] = []
        self.columns: list[int] = []
        self.unknown: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator."""
        kwargs = kwargs or {}
        name = schema_of(func).name.removeprefix("aten::")
        places = _places_of_dropout(func)
        is_random = not places and torch.Tag.nondeterministic_seeded in func.tags
        rates = [(place < len(args) and args[place]) or kwargs.get(argument) for place, argument in places]
        if any(rates) or is_random:
            self.laws.append(law_of(func, args, kwargs))
        for place, argument in places:
            if place < len(args):
                args = (*args[:place], 0.0, *args[place + 1 :])
            elif argument in kwargs:
                kwargs = {**kwargs, argument: 0.0}
        if not is_random:
            return func(*args, **kwargs)
        quiet = FORMS.get(name)
        if quiet is None:
            self.unknown = schema_of(func).name
            return func(*args, **kwargs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = quiet(self._quantile, partial(func, *args, **kwargs), arguments_of(func, args, kwargs))
        if name in BY_COLUMN and result.ndim > 1 and result.shape[-1] > 1:
            self.columns.append(result.shape[-1])
        return result

    @property
    def was_needed(self) -> bool:
        """Whether anything random was met."""
        return bool(self.laws)


def _places_of_dropout(func: Any) -> list[tuple[int, str]]:
    """Return the place and the name of a fused operator's own probability of dropout."""
    arguments = enumerate(schema_of(func).arguments)
    return [
        (place, argument.name)
        for place, argument in arguments
        if argument.name in ("dropout_p", "dropout") and str(argument.type) == "float"
    ]


Form = Callable[[float, Any, dict[str, Any]], Any]
"""The quantile, a function that runs the operator, and its arguments by name."""


def _filled(value: Callable[[float, dict[str, Any]], float]) -> Form:
    """Every value is the same; tensors that are only drawn into keep their shape and device."""

    def run(quantile: float, draw: Any, given: dict[str, Any]) -> Any:
        return draw().fill_(value(quantile, given))

    return run


def _levels(quantile: float, drawn: Tensor) -> Tensor:
    """Return uniform numbers: one for all, and beyond the first quantile one for each column.

    Rows are alike, so that it doesn't matter which example is drawn for first. Columns are not: a normalisation takes
    away what is added to all of them, and then its scale does not show.
    """
    if quantile == QUANTILES[0] or drawn.ndim < 2:
        return torch.full((), quantile, device=drawn.device)
    columns = torch.rand(drawn.shape[-1], generator=torch.Generator().manual_seed(int(1000 * quantile)))
    return columns.to(drawn.device)


def _uniform(quantile: float, draw: Any, given: dict[str, Any]) -> Any:
    drawn, low, high = draw(), given.get("from", 0.0), given.get("to", 1.0)
    return drawn.copy_(low + _levels(quantile, drawn) * (high - low))


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _z(quantile: float) -> float:
    return NormalDist().inv_cdf(quantile)


def _z_levels(quantile: float, drawn: Tensor) -> Tensor:
    """Return standard normal numbers, as `_levels`."""
    numbers: Tensor = torch.special.ndtri(_levels(quantile, drawn).double())
    return numbers.to(drawn.real.dtype)


def _whole(quantile: float, given: dict[str, Any]) -> float:
    low, high = _or(given.get("low", given.get("from")), 0), _or(given.get("high", given.get("to")), 1)
    return float(low + math.floor(quantile * (high - low)))


def _geometric(quantile: float, given: dict[str, Any]) -> float:
    return max(1.0, math.ceil(math.log(1 - quantile) / math.log(1 - min(given["p"], 1 - 1e-9))))


def _normal(quantile: float, draw: Any, given: dict[str, Any]) -> Any:
    drawn = draw()
    mean, std = given.get("mean", 0.0), given.get("std", 1.0)
    return drawn.copy_(mean + _z_levels(quantile, drawn) * std)


def _dropout(quantile: float, draw: Any, given: dict[str, Any]) -> Any:
    values, rate, train = given["input"], given["p"], _or(given.get("train"), True)
    scale = (1 / (1 - rate) if rate < 1 else 0.0) if train else 1.0
    return values * scale, torch.ones_like(values, dtype=torch.bool)


def _fused_dropout(quantile: float, draw: Any, given: dict[str, Any]) -> Any:
    values = given["self"]
    return values / given["p"], torch.ones_like(values, dtype=torch.uint8)  # here p is the part that is kept


def _bernoulli(quantile: float, draw: Any, given: dict[str, Any]) -> Any:
    """Where a number says how many are kept, all are: the number itself is compared. A tensor shows in each value."""
    drawn = draw()
    chances = given["p"] if "p" in given else given["self"]
    if not isinstance(chances, Tensor):
        return drawn.fill_(float(chances > 0))
    return drawn.copy_(chances > 1 - _levels(quantile, drawn))


def _permutation(quantile: float, draw: Any, given: dict[str, Any]) -> Any:
    drawn = draw()
    return drawn.copy_(torch.arange(drawn.numel() - 1, -1, -1, device=drawn.device))  # moves all, unlike the identity


def _chosen(quantile: float, draw: Any, given: dict[str, Any]) -> Any:
    """The same random numbers decide in every row, by its own chances."""
    chances, count = given["self"], given["num_samples"]
    fixed = torch.Generator().manual_seed(int(1000 * quantile))
    if given.get("replacement"):
        at = torch.rand(count, generator=fixed, dtype=torch.float64).to(chances.device)
        upto = chances.double().cumsum(-1)
        places = torch.searchsorted(upto, (at * upto[..., -1:]).contiguous(), right=True)
        return places.clamp(max=chances.shape[-1] - 1)
    waits = torch.rand(chances.shape[-1], generator=fixed, dtype=torch.float64).log().neg().to(chances.device)
    return (chances.double() / waits).topk(count, -1).indices


def _mean_slope(quantile: float, draw: Any, given: dict[str, Any]) -> Any:
    values, slopes = given["self"], given["noise"]
    slope = given["lower"] + quantile * (given["upper"] - given["lower"])
    slopes.copy_(torch.where(values > 0, 1.0, slope))  # the backward multiplies by them
    return torch.ops.aten.leaky_relu.default(values, slope)


def _counts(quantile: float, draw: Any, given: dict[str, Any]) -> Any:
    rates = given["self"]
    return (rates + _z(quantile) * rates.sqrt()).clamp(min=0)


BY_COLUMN = frozenset(
    {"rand", "rand_like", "uniform_", "randn", "randn_like", "normal", "normal_", "normal_functional"}
)

FORMS: dict[str, Form] = {
    "native_dropout": _dropout,
    "_fused_dropout": _fused_dropout,
    "bernoulli": _bernoulli,
    "bernoulli_": _bernoulli,
    "rand": _uniform,
    "rand_like": _uniform,
    "randn": _normal,
    "randn_like": _normal,
    "randint": _filled(_whole),
    "randint_like": _filled(_whole),
    "random_": _filled(_whole),
    "uniform_": _uniform,
    "normal": _normal,
    "normal_": _normal,
    "normal_functional": _normal,
    "exponential_": _filled(lambda quantile, given: -math.log(1 - quantile) / given.get("lambd", 1.0)),
    "geometric_": _filled(_geometric),
    "log_normal_": _filled(
        lambda quantile, given: math.exp(given.get("mean", 1.0) + given.get("std", 2.0) * _z(quantile))
    ),
    "cauchy_": _filled(
        lambda quantile, given: (
            given.get("median", 0.0) + given.get("sigma", 1.0) * math.tan(math.pi * (quantile - 0.5))
        )
    ),
    "randperm": _permutation,
    "multinomial": _chosen,
    "poisson": _counts,
    "rrelu_with_noise": _mean_slope,
}
