"""What a model keeps between two forwards: parts, hooks, buffers, attributes, and what its classes keep.

A forward may change any of these in its first call: set a flag and install hooks, register a buffer, make a part of its
own. A run of the probe starts from what was there before the call, whole, and the model is given back as the call left
it, whole: half of either is another model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hushgrad.guards.probing.kept import Key, content_of, is_same, kept_by, refill, structure_of

PART = 1 << 18
"""How many values of a parameter are summed at a time, in double precision."""

Structure = dict[str, list[int]]
"""How many parts, parameters and hooks of each kind every module has, by its name."""


class State:
    """A copy of what a model keeps, to compare with and to go back to.

    Values of parameters are not copied: forwards that change them are told by fingerprints.
    """

    def __init__(self, model: nn.Module, *, parameters: bool = True) -> None:
        """Take the copy; without `parameters` whether those change is not to be told from it."""
        self._model = model
        self._held: list[tuple[Tensor, Tensor]] = []
        cells, holders, _ = kept_by(model)
        self._saved = {key: (value, _copy(value)) for key, value in cells}
        self._holders = [(holder, content_of(holder)) for holder in holders]
        self._structure = [(holder, content_of(holder)) for holder in structure_of(model.modules())]
        self._uses = [(p, p.requires_grad, p.grad) for p in model.parameters()]
        named = model.named_parameters(remove_duplicate=False) if parameters else ()
        self._prints = {name: _fingerprint(p) for name, p in named}

    def changed_parameters(self) -> list[str]:
        """Return the names of the parameters with other values now than when the copy was taken."""
        return [
            name
            for name, parameter in self._model.named_parameters(remove_duplicate=False)
            if _fingerprint(parameter) != self._prints.get(name)
        ]

    def spoiled_parameters(self) -> list[str]:
        """Return the names of the parameters with more values that are not finite than when the copy was taken."""
        named = dict(self._model.named_parameters(remove_duplicate=False))
        return [name for name, before in self._prints.items() if before and _fingerprint(named[name])[2] > before[2]]

    def hold(self, names: Sequence[str]) -> None:
        """Copy some parameters as they are now; `restore` puts these values back."""
        chosen = dict(self._model.named_parameters(remove_duplicate=False))
        self._held = [(chosen[name], chosen[name].detach().clone()) for name in names]

    def moved(self, *, parameters: bool = True) -> dict[Key, Any]:
        """Return copies of what has other values now than when the copy was taken, by place."""
        now = dict(kept_by(self._model)[0])
        found = {
            key: _copy(value)
            for key, value in now.items()
            if key not in self._saved or not agree(value, self._saved[key][1])
        }
        found.update({key: None for key in self._saved if key not in now})
        if parameters:
            named = dict(self._model.named_parameters(remove_duplicate=False))
            for name in self.changed_parameters():
                found[("parameter", name)] = _fingerprint(named[name])
        return found

    def has_drawn(self) -> bool:
        """Return whether a generator that the model keeps was drawn from since the copy was taken."""
        return any(
            isinstance(kept, torch.Generator) and not agree(kept, copied) for kept, copied in self._saved.values()
        )

    def other_structure(self) -> Structure | None:
        """Return the structure as it is now; None where it is that of the copy."""
        if all(is_same(holder, content) for holder, content in self._structure):
            return None
        return {name: [len(holder) for holder in structure_of([part])] for name, part in self._model.named_modules()}

    def take_structure(self, other: State) -> None:
        """Go back to the parts, parameters and hooks of another copy from now on, and to everything else of this."""
        self._structure = other._structure

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back as it was."""
        for holder, content in (*self._holders, *self._structure):
            if not is_same(holder, content):
                refill(holder, content)
        for original, copied in self._saved.values():
            if not agree(original, copied):
                _write(original, copied)
        for parameter, requires_grad, gradient in self._uses:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not gradient:
                parameter.grad = gradient
        for held, copied in self._held:
            held.data.copy_(copied)


def own_objects(model: nn.Module) -> list[Any]:
    """Return the objects of this library that a model keeps, beside modules: they are shared with a copy of it."""
    return kept_by(model)[2]


def describe(key: Key) -> str:
    """Return the name of a place of state: a buffer's or attribute's dotted name."""
    return ".".join(part.__qualname__ if isinstance(part, type) else str(part) for part in key[1:])


def is_buffer(key: Key) -> bool:
    """Whether a place is a registered buffer or parameter, which is saved and shared with the model."""
    return key[0] in ("buffer", "parameter")


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, torch.Generator):
        return value.get_state()
    return value.copy() if isinstance(value, np.ndarray) else value


def _write(original: Any, copied: Any) -> None:
    if isinstance(original, Tensor):
        original.data.copy_(copied)  # not counted as a version: a graph may hold this tensor
    elif isinstance(original, torch.Generator):
        original.set_state(copied)
    elif isinstance(original, np.ndarray):
        original[...] = copied


def agree(value: Any, copied: Any) -> bool:
    """Return whether two values of state are equal, NaN being equal to itself."""
    if isinstance(value, torch.Generator):
        value = value.get_state()
    if isinstance(value, Tensor) or isinstance(copied, Tensor):
        if not (isinstance(value, Tensor) and isinstance(copied, Tensor)):
            return False
        if value.shape != copied.shape or value.dtype != copied.dtype:
            return False
        return bool(torch.equal(value, copied) or ((value == copied) | ((value != value) & (copied != copied))).all())
    if isinstance(value, np.ndarray) or isinstance(copied, np.ndarray):
        return isinstance(value, np.ndarray) and isinstance(copied, np.ndarray) and np.array_equal(value, copied)
    return bool(value == copied or (value != value and copied != copied))


@torch.no_grad()
def _fingerprint(parameter: Tensor) -> tuple[float, ...]:
    """Two sums that change when values do, and how many are not finite.

    A copy of every parameter would double the memory of a model.
    """
    if parameter.is_meta or parameter.numel() == 0 or isinstance(parameter, nn.UninitializedParameter):
        return ()
    flat = parameter.detach().reshape(-1)
    if flat.is_complex():
        return ()
    sums = [0.0, 0.0, 0.0]
    parts: list[Tensor] = flat.split(PART)  # type: ignore[no-untyped-call]
    for part in parts:
        values = part.double()
        found = float(values.sum()), float(values.dot(values)), 0.0
        if not all(map(math.isfinite, found)):
            values, unusual = values.nan_to_num(0.0, 0.0, 0.0), values.isfinite().logical_not()
            found = float(values.sum()), float(values.dot(values)), float(unusual.sum())
        sums = [total + more for total, more in zip(sums, found, strict=True)]
    return tuple(sums)


@contextmanager
def forked_randomness(devices: Sequence[torch.device], seed: int) -> Iterator[None]:
    """Seed torch, NumPy and Python alike, and give back their states afterwards."""
    cuda = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def randomness_used(devices: Sequence[torch.device], seed: int) -> bool:
    """Return whether anything was drawn since `forked_randomness(devices, seed)` began."""
    fresh = torch.Generator().manual_seed(seed)
    if not torch.equal(torch.random.get_rng_state(), fresh.get_state()):
        return True
    for device in devices:
        if device.type == "cuda":
            mine = torch.Generator(device).manual_seed(seed)
            if not torch.equal(torch.cuda.get_rng_state(device), mine.get_state()):
                return True
    python = random.Random(seed)
    if random.getstate() != python.getstate():
        return True
    kept: Any = np.random.get_state()
    expected: Any = np.random.RandomState(seed).get_state()
    return not (np.array_equal(kept[1], expected[1]) and kept[2] == expected[2])
