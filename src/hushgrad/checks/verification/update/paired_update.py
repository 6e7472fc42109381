"""An update under test, with or without the same random numbers: the protocol, and the update that is a function."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hushgrad.errors import InvalidArgumentError
from hushgrad.numpy_generator import kept_generator

Output = dict[str, Tensor]


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Give torch's, NumPy's and Python's global generators their state back afterwards."""
    python_state = random.getstate()
    with torch.random.fork_rng(range(torch.cuda.device_count())), kept_generator():
        try:
            yield
        finally:
            random.setstate(python_state)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Give torch's, NumPy's and Python's global generators a seed for a while, and their state back (None: nothing)."""
    if seed is None:
        yield
        return
    with kept_randomness():
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield


def read_output(values: Any) -> Output:
    """Return an update as tensors by name: a tensor, a sequence of tensors, or a mapping of them; copies.

    Raises `InvalidArgumentError` for anything else.
    """
    if isinstance(values, Mapping):
        items = {str(name): value for name, value in values.items()}
    elif isinstance(values, (list, tuple)):
        items = {str(place): value for place, value in enumerate(values)}
    else:
        items = {"update": values}
    found = {}
    for name, value in items.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise InvalidArgumentError(
                f"the update must be a floating-point tensor, or a list or dict of them, got {type(value).__name__}",
                cure="Return what the optimizer would be given",
            )
        found[name] = value.detach().to("cpu").clone()
    return found


class PairedUpdate(Protocol):
    """An update that repeats itself under the same seed, so that its noise cancels between two calls."""

    def call(self, stimulus: Any, seed: int | None = None) -> Output:
        """Return the update for a stimulus, by name."""

    def error_of_difference(self, noise_std: float) -> float:
        """Return the standard error of each value of the difference of two calls, rounding included."""


def rounding_error(noise_std: float, word_bits: int) -> float:
    """Return what rounding leaves of noise that cancels, for values of so many bits."""
    return noise_std * (2e-3 if word_bits == 16 else 3e-7)


def narrowest(values: Output) -> int:
    """Return the fewest bits that the values of an update have."""
    return min(torch.finfo(value.dtype).bits for value in values.values())


class FunctionUpdate:
    """Somebody's function from a stimulus to an update; its random numbers come from the global generators.

    It is a `PairedUpdate` if `is_paired`, which says whether the update repeats itself under the same seed of the
    global generators. Otherwise noise is averaged out over `repeats` calls.
    """

    def __init__(self, update: Callable[[Any], Any], repeats: int = 64) -> None:
        self._update = update
        self._repeats = repeats
        self.is_paired = False
        self.names: tuple[str, ...] = ()
        self.word_bits = 32

    def call(self, stimulus: Any, seed: int | None = None) -> Output:
        """Return the update for a stimulus, by name."""
        with seeded(seed):
            result = read_output(self._update(stimulus))
        if not self.names:
            self.names = tuple(result)
            self.word_bits = narrowest(result)
        if tuple(result) != self.names:
            raise InvalidArgumentError(
                f"the update returned {len(result)} tensors, and {len(self.names)} before",
                cure="Return a value for each parameter every time, used or not",
            )
        return result

    def find_pairing(self, stimulus: Any) -> None:
        """Find out whether a seed makes the update repeat itself."""
        first, second, third = (self.call(stimulus, 12345) for _ in range(3))
        self.is_paired = all(
            torch.equal(first[name], second[name]) and torch.equal(first[name], third[name]) for name in self.names
        )

    def draw(self, stimulus: Any, count: int) -> list[Output]:
        """Return `count` updates for one stimulus, with whatever random numbers come."""
        return [self.call(stimulus) for _ in range(count)]

    def difference(self, stimulus: Any, baseline: Any) -> Output:
        """Return the update for `stimulus` minus that for `baseline`, in float64, without noise as far as possible."""
        if self.is_paired:
            one, other = self.call(stimulus, 12345), self.call(baseline, 12345)
            return {name: one[name].double() - other[name].double() for name in self.names}
        total = {name: torch.zeros(()).double() for name in self.names}
        for _ in range(self._repeats):
            one, other = self.call(stimulus), self.call(baseline)
            total = {name: total[name] + one[name].double() - other[name].double() for name in self.names}
        return {name: value / self._repeats for name, value in total.items()}

    def error_of_difference(self, noise_std: float) -> float:
        """Return the standard error of each value of a `difference`, rounding included."""
        if self.is_paired:
            return rounding_error(noise_std, self.word_bits)
        return noise_std * math.sqrt(2 / self._repeats)


def norm(values: Mapping[str, Tensor]) -> float:
    """Return the norm over all tensors together; infinity where a value is not finite."""
    total = float(sum((value.double() ** 2).sum() for value in values.values()))
    return total**0.5 if np.isfinite(total) else float("inf")


def arrays(values: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Return tensors as arrays, 16-bit ones widened."""
    return {
        name: (value if value.dtype in (torch.float32, torch.float64) else value.float()).numpy()
        for name, value in values.items()
    }
