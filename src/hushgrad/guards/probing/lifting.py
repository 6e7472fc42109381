"""What belongs to single examples and is no tensor, made tensors for as long as a batch is altered, and back again.

A list of B numbers, an array with B rows, a list of B texts or of B tensors of different lengths: each holds the batch
as a tensor with B rows does, and is altered in the same ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from hushgrad.capture.axes.layout import MARKS, Layout, Role, layout_of
from hushgrad.capture.axes.parts import lists_in, may_hold_all
from hushgrad.errors import UnsupportedModelError
from hushgrad.guards.probing.blocks import Blocks, blocks_of
from hushgrad.guards.probing.trees import DESCEND, HandedOn, Path, copied, tensors_at, with_parts

FLAT_ROLES = (*MARKS, Role.FLAT, Role.LINKS)
TICKET = 1_000_003
"""The first number that stands for an entry of a list; numbers from 0 on could be taken for those of positions."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A packed sequence as `[B, T, ...]` and the lengths `[B]`."""

    padded: Tensor
    lengths: Tensor


@dataclass(frozen=True, eq=False)
class Lifted:
    """Nested values in which all that holds the batch is a tensor.

    Attributes:
        value: the nested structure.
        back: for each tensor that stands for something else, by its path, how to make that of it.
        size: where rows lie end to end, the number of examples, which a model may be told as a number.
    """

    value: Any
    back: dict[Path, Callable[[Tensor], Any]]
    size: int | None = None

    def lowered(self, value: Any) -> Any:
        """Return an altered structure as the model takes it."""
        count = None if self.size is None else _count_in(value)

        def visit(path: Path, part: Any) -> Any:
            if isinstance(part, Packed):
                lengths = part.lengths.clamp(1, part.padded.shape[1]).cpu()
                return pack_padded_sequence(part.padded, lengths, batch_first=True, enforce_sorted=False)
            if isinstance(part, Blocks):
                return part.joined()
            if count is not None and type(part) is int and part == self.size:
                return count
            if isinstance(part, HandedOn):
                return part.tensor
            return self.back[path](part) if path in self.back and isinstance(part, Tensor) else DESCEND

        return with_parts(value, visit)


def lifted(value: Any, size: int, *, outer: int, known: Mapping[Path, Role] | None = None) -> Lifted:
    """Return nested values of `size` examples with tensors in the place of whatever else has an entry for each.

    The `outer` containers say nothing by their lengths: 2 for `(args, kwargs)`, 1 for `(output, target)`. `known` are
    roles of tensors and lists, where several would fit.

    Raises:
        UnsupportedModelError: something in them can be read only once.
    """
    back: dict[Path, Callable[[Tensor], Any]] = {}
    known = known or {}
    layout = _layout(value, size, {path for path, _ in lists_in(value, size, known, outer=outer)}, known)

    def visit(path: Path, part: Any) -> Any:
        if len(path) < outer:
            return DESCEND
        if isinstance(part, Tensor):
            flat = blocks_of(layout, path, part) if layout.is_flat else None
            return DESCEND if flat is None else flat
        if isinstance(part, PackedSequence):
            return Packed(*pad_packed_sequence(part, batch_first=True))
        if isinstance(part, Iterator):
            raise UnsupportedModelError(
                f"is given an iterator ({type(part).__name__}), which can be read only once, so that it cannot be run "
                f"again on altered examples",
                where="the model",
                cure="Pass a list or a tensor",
            )
        if callable(part) and _holds_values(part):
            raise UnsupportedModelError(
                "is given a function that holds tensors or arrays of its own, so that these cannot be altered with the "
                "rest of the batch",
                where="the model",
                cure="Pass the tensors as arguments, and functions that hold none",
            )
        found = _lifted_part(part, size, known.get(path))
        if found is None:
            return DESCEND
        tensor, back[path] = found
        return tensor

    return Lifted(with_parts(value, visit), back, size if layout.is_flat else None)


def _count_in(value: Any) -> int | None:
    """Return how many examples there are in an altered structure with rows that lie end to end."""
    found: list[int] = []

    def visit(path: Path, part: Any) -> Any:
        if isinstance(part, Blocks):
            found.append(len(part.counts))
        return part if isinstance(part, (Blocks, Tensor)) else DESCEND

    with_parts(value, visit)
    return found[0] if found else None


def _layout(value: Any, size: int, lists: Set[Path], known: Mapping[Path, Role]) -> Layout:
    """Return the layout of all tensors that are not in lists with an entry for each example."""
    tensors = [
        (path, tensor)
        for path, tensor in tensors_at(value)
        if tensor.ndim and not any(path[:length] in lists for length in range(len(path) + 1))
    ]
    return layout_of(tensors, size, known)


def end_to_end(value: Any, size: int, known: Mapping[Path, Role]) -> tuple[Any, dict[Path, Role]]:
    """Return nested values with `[B, T, ...]` in the place of rows that lie end to end, and what says where they begin.

    `known`: roles, where several would fit.
    """
    lists = {path for path, role in known.items() if role is Role.ENTRIES}
    layout = _layout(value, size, lists, known)
    if not layout.is_flat:
        return value, {}

    def visit(path: Path, part: Any) -> Any:
        found = blocks_of(layout, path, part) if isinstance(part, Tensor) else None
        return DESCEND if found is None else found

    return with_parts(value, visit), {path: role for path, role in layout.roles.items() if role in FLAT_ROLES}


def _lifted_part(part: Any, size: int, role: Role | None) -> tuple[Tensor, Callable[[Tensor], Any]] | None:
    """Return the tensor for something with an entry for each of `size` examples, and the way back."""
    if isinstance(part, np.ndarray):
        if not part.ndim or part.shape[0] != size:
            return None
        if part.dtype.kind in "biufc" and part.dtype.isnative:
            try:
                return torch.from_numpy(part.copy()), lambda tensor: tensor.numpy()
            except TypeError:  # a width that torch has not
                pass
        return _tickets(list(part), lambda entries: np.array(entries, dtype=part.dtype).reshape(-1, *part.shape[1:]))
    if type(part) not in (list, tuple) or len(part) != size or not size:
        return None
    kind = type(part)
    if all(isinstance(entry, Tensor) for entry in part):
        if role is not Role.ENTRIES and all(may_hold_all(entry, size) for entry in part):
            return None  # several tensors that hold the batch each
        return _tickets(part, kind)
    if all(isinstance(entry, (bool, int, float, np.generic)) for entry in part):
        return _numbers(part, kind)
    return _tickets(part, kind)


def _numbers(part: Sequence[Any], kind: Callable[[Any], Any]) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """Return numbers of one type as a tensor; of several types, or too large ones, each keeps its own."""
    make = type(part[0])
    if any(type(entry) is not make for entry in part):
        return _tickets(part, kind)
    if issubclass(make, (bool, np.bool_)):
        tensor = torch.tensor([bool(entry) for entry in part])
    elif issubclass(make, (int, np.integer)):
        if any(abs(int(entry)) >= 2**62 for entry in part):
            return _tickets(part, kind)
        tensor = torch.tensor([int(entry) for entry in part])
    elif issubclass(make, (float, np.floating)):
        tensor = torch.tensor([float(entry) for entry in part], dtype=torch.float64)
    else:
        return _tickets(part, kind)
    return tensor, lambda found: kind([make(entry) for entry in found.tolist()])


def _tickets(entries: Sequence[Any], kind: Callable[[Any], Any]) -> tuple[Tensor, Callable[[Tensor], Any]]:
    numbers = torch.arange(TICKET, TICKET + len(entries))
    return numbers, lambda found: kind([copied(entries[int(number) - TICKET]) for number in found.tolist()])


def _holds_values(function: Any) -> bool:
    """Whether a function keeps tensors or arrays: around it, as arguments given before, or as its own object."""
    if isinstance(function, (Tensor, torch.nn.Module, type)):
        return False
    held: list[Any] = [getattr(function, "__self__", None), *getattr(function, "args", ())]
    held += dict(getattr(function, "keywords", None) or {}).values()
    for cell in getattr(function, "__closure__", None) or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    return any(isinstance(part, (Tensor, np.ndarray)) and not isinstance(part, torch.nn.Parameter) for part in held)
