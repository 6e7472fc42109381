"""What a model keeps between two forwards beside its parameters: buffers, attributes, random generators."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DEPTH = 4
"""How deep into nested attributes state is looked for."""

PART = 1 << 18
"""How many values of a parameter are summed at a time, in double precision."""

INTERNAL = frozenset(vars(nn.Module())) - {"training"}
"""What torch keeps on every module: its dictionaries of parameters, submodules and hooks."""

OPAQUE = (nn.Module, nn.Parameter, type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, str, bytes)

Key = tuple[Any, ...]


class State:
    """A copy of a model's buffers and attributes, to compare with and to go back to.

    Parameters are not copied: forwards that change them are told by fingerprints.
    """

    def __init__(self, model: nn.Module, *, parameters: bool = True) -> None:
        """Take the copy; without `parameters` whether those change is not to be told from it."""
        self._model = model
        self._held: list[tuple[Tensor, Tensor]] = []
        self._cells = list(_cells(model))
        self._saved = {key: (value, _copy(value)) for key, value, _ in self._cells}
        self._attributes = [
            (own, {name: value for name, value in own.items() if name not in INTERNAL and name != "training"})
            for own in (vars(module) for module in model.modules())
        ]
        self._lengths = {key: value.copy() for key, value in _containers(model)}
        named = model.named_parameters(remove_duplicate=False) if parameters else ()
        self._prints = {name: _fingerprint(p) for name, p in named}

    def changed_parameters(self) -> list[str]:
        """Return the names of the parameters with other values now than when the copy was taken."""
        return [
            name
            for name, parameter in self._model.named_parameters(remove_duplicate=False)
            if _fingerprint(parameter) != self._prints.get(name)
        ]

    def hold(self, names: Sequence[str]) -> None:
        """Copy some parameters as they are now; `restore` puts these values back."""
        chosen = dict(self._model.named_parameters(remove_duplicate=False))
        self._held = [(chosen[name], chosen[name].detach().clone()) for name in names]

    def moved(self, *, parameters: bool = True) -> dict[Key, Any]:
        """Return copies of what has other values now than when the copy was taken, by place."""
        now = {key: value for key, value, _ in _cells(self._model)}
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

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back as it was."""
        for own, attributes in self._attributes:
            for name in [name for name in own if name not in INTERNAL and name != "training"]:
                if name not in attributes:
                    del own[name]
            own.update(attributes)
        for key, container in _containers(self._model):
            original = self._lengths.get(key)
            if original is not None and not _same_content(container, original):
                _refill(container, original)
        for key, value, put in _cells(self._model):
            if key not in self._saved:
                continue
            original, copied = self._saved[key]
            if not agree(original, copied):
                _write(original, copied)
            if value is not original:
                put(original)
        for parameter, copied in self._held:
            parameter.data.copy_(copied)


def describe(key: Key) -> str:
    """Return the name of a place of state: a buffer's or attribute's dotted name."""
    return ".".join(str(part) for part in key[1:])


def is_buffer(key: Key) -> bool:
    """Whether a place is a registered buffer or parameter, which is saved and shared with the model."""
    return key[0] in ("buffer", "parameter")


def _cells(model: nn.Module) -> Iterator[tuple[Key, Any, Callable[[Any], None]]]:
    """Yield `(place, value, setter)` for each tensor, number or generator that the model keeps."""
    for prefix, module in model.named_modules():
        names = tuple(prefix.split(".")) if prefix else ()
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield ("buffer", *names, name), buffer, _setter(module._buffers, name)
        own = vars(module)
        for name in list(own):
            if name not in INTERNAL and name != "training":
                yield from _inside(("attribute", *names, name), own[name], _setter(own, name), DEPTH)


def _inside(key: Key, value: Any, put: Callable[[Any], None], depth: int) -> Iterator[tuple[Key, Any, Any]]:
    if isinstance(value, (Tensor, bool, int, float, complex, np.ndarray, torch.Generator)) and not isinstance(
        value, nn.Parameter
    ):
        yield key, value, put
    elif depth and not isinstance(value, (*OPAQUE, Tensor)):
        for name, part, setter in _parts(value):
            yield from _inside((*key, name), part, setter, depth - 1)


def _parts(value: Any) -> list[tuple[Any, Any, Callable[[Any], None]]]:
    if isinstance(value, dict):
        return [(name, part, _setter(value, name)) for name, part in list(value.items())]
    if isinstance(value, (list, deque)):
        return [(place, part, _setter(value, place)) for place, part in enumerate(list(value))]
    if isinstance(value, tuple):
        return [(place, part, _ignore) for place, part in enumerate(value)]
    try:
        own = vars(value)
    except TypeError:
        return []
    return [(name, part, _setter(own, name)) for name, part in list(own.items())] if isinstance(own, dict) else []


def _containers(model: nn.Module) -> Iterator[tuple[Key, Any]]:
    """Yield the lists, deques and dictionaries among the attributes, which may gain or lose entries."""

    def walk(key: Key, value: Any, depth: int) -> Iterator[tuple[Key, Any]]:
        if isinstance(value, (*OPAQUE, Tensor)) or not depth:
            return
        if isinstance(value, (list, deque, dict)):
            yield key, value
        for name, part, _ in _parts(value):
            yield from walk((*key, name), part, depth - 1)

    for prefix, module in model.named_modules():
        own = vars(module)
        for name in list(own):
            if name not in INTERNAL:
                yield from walk((prefix, name), own[name], DEPTH)


def _setter(holder: Any, name: Any) -> Callable[[Any], None]:
    def put(value: Any) -> None:
        holder[name] = value

    return put


def _ignore(value: Any) -> None:
    """Tuples cannot be written; the tensors in them are."""


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


def _same_content(container: Any, original: Any) -> bool:
    if len(container) != len(original):
        return False
    if isinstance(container, dict):
        return all(key in container and container[key] is part for key, part in original.items())
    return all(a is b for a, b in zip(container, original, strict=True))


def _refill(container: Any, original: Any) -> None:
    container.clear()
    if isinstance(container, dict):
        container.update(original)
    else:
        container.extend(original)


@torch.no_grad()
def _fingerprint(parameter: Tensor) -> tuple[float, ...]:
    """Two sums that change when values do; a copy of every parameter would double the memory of a model."""
    if parameter.is_meta or parameter.numel() == 0 or isinstance(parameter, nn.UninitializedParameter):
        return ()
    flat = parameter.detach().reshape(-1)
    if flat.is_complex():
        return ()
    sums = [0.0, 0.0]
    parts: list[Tensor] = flat.split(PART)  # type: ignore[no-untyped-call]
    for part in parts:
        values = part.double()
        sums[0] += float(values.sum())
        sums[1] += float(values.dot(values))
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
