"""What a loop sets for a model: numbers and flags that it passes, modes, attributes and buffers, what is trained.

Where it is another one in another item, and no forward changed it, the loop did: by the number of the step, or by the
draw, and nobody can know by which.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hushgrad.guards.probing.state_values import fingerprint
from hushgrad.guards.probing.trees import DESCEND, tensors_at, with_parts

MOST_CALLS = 4
"""So many calls of an item are compared."""

PLAIN = (bool, int, float, str, np.generic)

Settings = Mapping[Hashable, Any]


class LoopSettings:
    """Compares what one session's loop sets, from item to item.

    Args:
        model: the root, None to look at what is passed alone.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._before: list[Settings] = []  # of the item before, by call
        self._now: list[Settings] = []
        self._of_forwards: set[Hashable] = set()  # attributes that a forward has changed
        self._entered: Settings = {}

    def given(self, inputs: Any, size: int) -> None:
        """A forward of an item of `size` examples begins with these inputs."""
        self._entered = self._of_model()
        if len(self._now) < MOST_CALLS:
            self._now.append({**self._entered, **_passed(inputs, size)})

    def returned(self) -> None:
        """It has returned."""
        after = self._of_model()
        self._of_forwards |= {key for key, value in self._entered.items() if key in after and after[key] != value}

    def forget(self) -> None:
        """The item is not compared."""
        self._now = []

    def have_changed(self) -> bool:
        """Return whether the item's are others than those of the item before; the next is compared with this one."""
        before, self._before, self._now = self._before, self._now, []
        return any(
            one[key] != other[key]
            for one, other in zip(before, self._before, strict=False)
            for key in one.keys() & other.keys() - self._of_forwards
        )

    def _of_model(self) -> Settings:
        found: dict[Hashable, Any] = {}
        for number, module in enumerate(() if self._model is None else self._model.modules()):
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


def _passed(inputs: Any, size: int) -> Settings:
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
