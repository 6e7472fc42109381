"""What a loop sets for a model: numbers and flags that it passes, modes, attributes and buffers, what is trained.

And what else the user's code of its forwards and criteria reads, however deep (`read_settings`). Where it is another
one in another item, and no forward changed it, the loop did: by the number of the step, or by the draw, and nobody can
know by which.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hushgrad.guards.probing.kept import Key
from hushgrad.guards.probing.read_settings import kept_around, read_by_forwards
from hushgrad.guards.probing.settings import Settings, changed
from hushgrad.guards.probing.state_values import fingerprint
from hushgrad.guards.probing.trees import DESCEND, tensors_at, with_parts

MOST_CALLS = 4
"""So many calls of an item are compared, of the model and of criteria."""

PLAIN = (bool, int, float, str, np.generic)

Passed = Mapping[Hashable, Any]


class _Calls:
    """What calls of one kind read, by their order in an item."""

    def __init__(self) -> None:
        self._before: list[Settings] = []  # of the item before
        self._now: list[Settings] = []
        self._of_calls: set[Key] = set()  # places that a call itself has changed
        self._entered: Settings | None = None

    def begin(self, read: Callable[[], Settings]) -> None:
        self._entered = None
        if len(self._now) < MOST_CALLS:
            self._entered = read()
            self._now.append(self._entered)

    def end(self, read: Callable[[], Settings]) -> None:
        if self._entered is not None:
            self._of_calls |= changed(self._entered, read())

    def forget(self) -> None:
        self._now, self._entered = [], None

    def have_changed(self) -> bool:
        before, self._before = self._before, self._now
        self.forget()
        return any(changed(one, other) - self._of_calls for one, other in zip(before, self._before, strict=False))


class LoopSettings:
    """Compares what one session's loop sets, from item to item.

    Args:
        model: the root, None to look at what is passed alone.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._forwards, self._criteria = _Calls(), _Calls()
        self._before: list[Passed] = []  # of the item before, by call
        self._now: list[Passed] = []

    def given(self, inputs: Any, size: int) -> None:
        """A forward of an item of `size` examples begins with these inputs."""
        self._forwards.begin(lambda: _set_on(self._model))
        if len(self._now) < MOST_CALLS:
            self._now.append(_passed(inputs, size))

    def returned(self) -> None:
        """It has returned."""
        self._forwards.end(lambda: _set_on(self._model))

    def evaluating(self, criterion: Any) -> None:
        """A criterion, module or function, is going to be called."""
        self._criteria.begin(lambda: _set_on(criterion))

    def evaluated(self, criterion: Any) -> None:
        """It was called."""
        self._criteria.end(lambda: _set_on(criterion))

    def forget(self) -> None:
        """The item is not compared."""
        self._now = []
        self._forwards.forget()
        self._criteria.forget()

    def have_changed(self) -> bool:
        """Return whether the item's are others than those of the item before; the next is compared with this one."""
        before, self._before, self._now = self._before, self._now, []
        were_passed = any(
            one[key] != other[key]
            for one, other in zip(before, self._before, strict=False)
            for key in one.keys() & other.keys()
        )
        were_read = self._forwards.have_changed()
        return self._criteria.have_changed() or were_read or were_passed


def _set_on(root: Any) -> Settings:
    """Return what a model, or a criterion, is set to and reads."""
    if not isinstance(root, nn.Module):
        return {} if root is None else kept_around(root)
    found: dict[Key, Any] = {("read", *place): value for place, value in read_by_forwards(root).items()}
    for number, module in enumerate(root.modules()):
        for name, value in vars(module).items():
            if not name.startswith("_") and isinstance(value, PLAIN):
                found[number, name] = value
            elif isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                found[number, name] = _held(value)
        for name, buffer in module.named_buffers(recurse=False):
            found[number, name] = _held(buffer)
        for name, parameter in module.named_parameters(recurse=False):
            found[number, name, "is trained"] = parameter.requires_grad
    return found


def _held(tensor: Tensor) -> Hashable:
    """Return what tells whether a tensor has other values; None where they are not in its own memory."""
    if type(tensor) is not Tensor or tensor.layout is not torch.strided or tensor.is_nested:
        return None
    return tuple(tensor.shape), fingerprint(tensor)


def _passed(inputs: Any, size: int) -> Passed:
    """Return numbers and flags among inputs, but for lengths of tensors beside them and lists with one for each."""
    lengths = {length for _, tensor in tensors_at(inputs) for length in tensor.shape}
    found: dict[Hashable, Any] = {}

    def visit(path: tuple[Any, ...], part: Any) -> Any:
        if part is None or isinstance(part, PLAIN):
            is_length = not isinstance(part, bool) and part in lengths
            found["passed", *path] = "a length" if is_length else part
            return part
        is_own = len(path) > 1 and isinstance(part, (list, tuple)) and len(part) == size
        return part if is_own or isinstance(part, (Tensor, np.ndarray)) else DESCEND

    with_parts(inputs, visit)
    return found
