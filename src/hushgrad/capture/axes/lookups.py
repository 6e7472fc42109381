"""Tables read at places that the batch says: `table[ids]`, `index_select`, `gather`, `take_along_dim`.

With ids `[B, T]` from the batch and a table `[n, d]` that is none of its data, `table[ids]` is `[B, T, d]`: each id's
own row, so the examples lie where they lie in the ids. A table may be read on any of its dimensions, on several at
once, and beside slices:

    trans[a, b]       trans [n, n], a and b [B, T]    [B, T]       place (a, b) of the table, a row of its flat form
    emit[:, ids]      emit [n, v], ids [B, T]         [n, B, T]    the table's other dimension comes first
    table[None, ids]                                  [1, B, T, d]

What is a mask (its number of rows depends on values), or has index tensors that do not broadcast row by row, has no
axis here. Where the table itself is data, `rules.indexed` answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hushgrad.capture.axes.rules import Axis, OperatorCall, along, dims_of, indexed, is_basic

INTEGERS = (torch.int64, torch.int32)

_along_first, _along_second = along(1), along(2)


@dataclass(frozen=True)
class Reading:
    """How an index reads a table.

    Attributes:
        dims: the table's dimensions that are read at places, in order.
        places: for each of them the places: a tensor, or a number.
        rest: what the index does with the other dimensions, slices and `None`, in order; one dimension of the output
            each.
        before: how many of the dimensions of `rest` the output has before those of the places.
    """

    dims: tuple[int, ...]
    places: tuple[Tensor | int, ...]
    rest: tuple[slice | None, ...]
    before: int

    @property
    def tensors(self) -> list[Tensor]:
        """The places that are tensors."""
        return [part for part in self.places if isinstance(part, Tensor)]


def reading_of(index: Any, ndim: int) -> Reading | None:
    """Return how `table[index]` reads a table of so many dimensions; None where it is not of this form."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(not (part is None or part is Ellipsis or is_basic(part) or _is_places(part)) for part in parts):
        return None
    taken = sum(part is not None and part is not Ellipsis for part in parts)
    dots = [position for position, part in enumerate(parts) if part is Ellipsis]
    if len(dots) > 1 or taken > ndim:
        return None
    at = dots[0] if dots else len(parts)
    parts = [*parts[:at], *[slice(None)] * (ndim - taken), *parts[at + 1 :]]
    dims, places, rest, kinds = [], [], [], []
    dim = 0
    for part in parts:
        if part is None or isinstance(part, slice):
            rest.append(part)
            kinds.append("rest")
        else:
            dims.append(dim)
            places.append(part if isinstance(part, Tensor) else int(part))
            if isinstance(part, Tensor) and part.ndim:  # a number removes its dimension first, and parts nothing
                kinds.append("places")
        dim += part is not None
    if "places" not in kinds:
        return None
    first, last = kinds.index("places"), len(kinds) - kinds[::-1].index("places")
    before = 0 if "rest" in kinds[first:last] else first
    return Reading(tuple(dims), tuple(places), tuple(rest), before)


def _is_places(part: Any) -> bool:
    return isinstance(part, Tensor) and part.dtype in INTEGERS


def axis_of_places(call: OperatorCall, places: Sequence[Tensor]) -> Axis:
    """Return the axis of the batch where some index tensors are broadcast together, all of its data among them."""
    width = max(part.ndim for part in places)
    if any(all(source is not part for part in places) for source in call.sources):
        return None
    distance = call.from_right()
    return None if distance is None else width - distance


def read(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`x[index]`: of data by `indexed`, of a table by data as the places are broadcast."""
    x, index = call.args
    if any(source is x for source in call.sources):
        return indexed(call, out, output_index)
    reading = reading_of(index, x.ndim)
    axis = None if reading is None else axis_of_places(call, reading.tensors)
    return None if axis is None or reading is None else _checked(call, out, reading.before + axis)


def meets_other_rows(call: OperatorCall) -> bool:
    """Whether constant places say something else for each row: rows would no longer be treated alike."""
    reading, distance = reading_of(call.args[1], call.first.ndim), call.from_right()
    if reading is None or distance is None:
        return True
    constants = [part for part in reading.tensors if all(part is not source for source in call.sources)]
    return any(part.ndim >= distance and part.shape[-distance] != 1 for part in constants)


def selected(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`index_select`: of a table, the rows lie where the places were read."""
    index = call.argument(2, "index")
    if call.only(index) is None:
        return _along_first(call, out, output_index)
    dims = dims_of(call.argument(1, "dim"), max(out.ndim, 1))
    return None if dims is None else _checked(call, out, min(dims))


def gathered(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`gather`: of a table, a value for each place."""
    axis = call.only(call.argument(2, "index"))
    return _along_first(call, out, output_index) if axis is None else _checked(call, out, axis)


def taken_along(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`take_along_dim`, whose places come before the dimension."""
    indices = call.argument(1, "indices")
    axis = call.only(indices)
    if axis is None:
        return _along_second(call, out, output_index)
    return _checked(call, out, axis) if indices.ndim == out.ndim else None


def _checked(call: OperatorCall, out: Tensor, axis: int) -> Axis:
    size = call.sources[0].shape[call.axes[0]]
    return axis if 0 <= axis < out.ndim and out.shape[axis] == size else None
