"""One batch, with one of its examples exchanged, left out or made worthless; and whether the others noticed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hushgrad.capture.axes.layout import Role
from hushgrad.guards.probing.trees import Path, tensors_at, with_tensors

AWAY = 100.0
"""The factor by which the values of an exchanged example leave those of the batch: thresholds are crossed."""

LOOSENESS = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 6e-2}
"""How far rounding may carry a value, relative to the largest at its place in any row: a large head hides no small one.

The same shapes take the same kernels, and a row is computed as it was, whatever the others hold.
"""

BY_OTHER_KERNELS = 64.0
"""So many units of rounding are allowed, relative to the largest value of the tensor, where shapes differ."""

VALUES = 1 << 21
"""How many values are compared at a time, which is done in double precision."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Nested tensors of B examples.

    Attributes:
        value: the nested structure.
        axes: for each tensor that holds the batch, by its path, the axis of the examples. The others are constants.
        size: B.
    """

    value: Any
    axes: Mapping[Path, int]
    size: int

    def without(self, example: int) -> Any:
        """Return the batch of the B − 1 other examples."""
        return self._rows([row for row in range(self.size) if row != example])

    def only(self, examples: Sequence[int]) -> Any:
        """Return the batch of some of the examples."""
        return self._rows(examples)

    def exchanged(self, chosen: Sequence[int], *, away: bool) -> Any:
        """Return the batch with the content of some examples replaced by that of their neighbours.

        What is floating is carried `away` as well. The ids of a batch of one are put in another order.
        """

        def change(neighbours: Tensor) -> Tensor:
            if away and neighbours.is_floating_point():
                return neighbours * AWAY + 1
            return neighbours.flip(-1) if self.size == 1 and neighbours.ndim > 1 else neighbours

        return self._altered(chosen, change)

    def halved(self, chosen: Sequence[int]) -> Any:
        """Return the batch with the whole numbers of some examples halved: ids of whatever table they are stay ids."""

        def change(neighbours: Tensor) -> Tensor:
            if neighbours.is_floating_point() or neighbours.is_complex() or neighbours.dtype == torch.bool:
                return neighbours
            return neighbours.div(2, rounding_mode="trunc")

        return self._altered(chosen, change)

    def poisoned(self, chosen: Sequence[int], *, in_order: bool = False) -> Any:
        """Return the batch with some examples made of NaN wherever they are floating, and of one other's ids elsewhere.

        To give each the ids of its neighbour, which keeps an order by length (`in_order`), would keep most sums and
        counts.
        """

        def change(donors: Tensor) -> Tensor:
            is_floating = donors.is_floating_point() or donors.is_complex()
            return torch.full_like(donors, float("nan")) if is_floating else donors

        return self._altered(chosen, change, None if in_order else self._unlike())

    @property
    def is_floating(self) -> bool:
        """Whether an example holds floating values."""
        return any(path in self.axes and tensor.is_floating_point() for path, tensor in tensors_at(self.value))

    def largest(self) -> int:
        """Return the example with the largest value, which decides maxima over the batch; the first of several."""
        size_B = torch.zeros(self.size, dtype=torch.float64)
        for path, tensor in tensors_at(self.value):
            if path in self.axes and tensor.is_floating_point() and tensor.numel():
                rows = tensor.detach().movedim(self.axes[path], 0).reshape(self.size, -1)
                size_B = torch.maximum(size_B, rows.abs().nan_to_num().amax(1).double().cpu())
        return int(size_B.argmax())

    def _rows(self, rows: Sequence[int]) -> Any:
        def change(path: Path, tensor: Tensor) -> Tensor:
            tensor = tensor.detach()
            if path not in self.axes:
                return tensor.clone()
            return tensor.index_select(self.axes[path], torch.tensor(rows, device=tensor.device))

        return with_tensors(self.value, change)

    def _unlike(self) -> int:
        """Return the example whose values sum up to the least usual number."""
        sums_B = torch.zeros(self.size, dtype=torch.float64)
        for path, tensor in tensors_at(self.value):
            if path in self.axes and not tensor.is_complex() and tensor.numel():
                rows = tensor.detach().movedim(self.axes[path], 0).reshape(self.size, -1)
                sums_B += rows.double().nan_to_num(0.0, 0.0, 0.0).sum(1).cpu()
        return int((sums_B - sums_B.median()).abs().argmax())

    def _altered(self, chosen: Sequence[int], change_rows: Callable[[Tensor], Tensor], donor: int | None = None) -> Any:
        """Put in the place of the chosen rows what `change_rows` makes of their neighbours, or of one donor."""
        given = dict.fromkeys(chosen, donor) if donor is not None else neighbours(chosen, self.size)

        def change(path: Path, tensor: Tensor) -> Tensor:
            tensor = tensor.detach()
            copied = tensor.clone(memory_format=torch.contiguous_format)
            if path in self.axes:
                front, rows = (
                    tensor.movedim(self.axes[path], 0),
                    torch.tensor(list(given), dtype=torch.long, device=tensor.device),
                )
                donors = torch.tensor(list(given.values()), dtype=torch.long, device=tensor.device)
                changed = change_rows(front.index_select(0, donors))
                copied.movedim(self.axes[path], 0).index_copy_(0, rows, changed)
            return copied

        return with_tensors(self.value, change)

    def same(self) -> Any:
        """Return a copy: what runs on it cannot change the original."""
        return with_tensors(self.value, lambda path, tensor: tensor.detach().clone())


def neighbours(chosen: Sequence[int], size: int) -> dict[int, int]:
    """Return for each of some examples the one whose content it gets: the next, at the end the one before.

    Examples that are ordered by their length stay so: a model may demand that (`pack_padded_sequence` by default).
    """
    at_end = size
    while at_end - 1 in chosen:
        at_end -= 1
    return {example: example - 1 if example >= at_end > 0 else (example + 1) % size for example in chosen}


def split_examples(size: int) -> tuple[list[int], list[int]]:
    """Return two parts of the examples, drawn once and for all; both have at least one example.

    When one part is altered the other must not notice, and the reverse. Examples may influence each other in one
    direction only (a sum along the batch, a shift by one), so neither the first nor the last will do.
    """
    order = torch.randperm(size, generator=torch.Generator().manual_seed(2)).tolist()
    return sorted(order[: (size + 1) // 2]), sorted(order[(size + 1) // 2 :])


def batch_axes(value: Any, size: int, roles: Mapping[Path, Role] | None = None) -> list[dict[Path, int]]:
    """Return the ways in which nested inputs may hold `size` examples, the likeliest first: by their `roles`, if known.

    A tensor without an entry is a constant. Usually the examples lie on axis 0. A mask over positions, or a list of
    positions, has as many rows as there are examples by chance only, and a state of a recurrent layer holds its
    examples on axis 1: the likelier ways then fail when an example is left out.
    """
    tensors = list(tensors_at(value))
    deep = {path: 1 for path, tensor in tensors if tensor.ndim > 2 and tensor.shape[1] == size}
    front = {path: 0 for path, tensor in tensors if tensor.ndim and tensor.shape[0] == size}
    second = {path: 1 for path, tensor in tensors if tensor.ndim > 1 and tensor.shape[1] == size}
    turned = {path: 1 for path, tensor in tensors if path in second and (roles or {}).get(path) is Role.SECOND}
    constants = {path for path, tensor in tensors if path in front and _is_about_positions(tensor)}
    candidates = [
        {**front, **turned},
        front,
        {path: axis for path, axis in front.items() if path not in constants},
        {**second, **front},
        second,
        {**front, **deep},  # `[T, B, C]` with as many times as there are examples
    ]
    distinct: list[dict[Path, int]] = []
    for candidate in candidates:
        if candidate and candidate not in distinct:
            distinct.append(candidate)
    return distinct


def fits(axes: Mapping[Path, int], value: Any, size: int) -> bool:
    """Return whether nested values hold `size` examples on these axes, and nothing else does on its first."""
    there = dict(tensors_at(value))
    for path, axis in axes.items():
        if path not in there or there[path].ndim <= axis or there[path].shape[axis] != size:
            return False
    return bool(axes)


def _is_about_positions(tensor: Tensor) -> bool:
    """Whether a tensor may be a square mask or the numbers of the positions."""
    if tensor.ndim == 1:
        return torch.equal(tensor, torch.arange(tensor.shape[0], device=tensor.device, dtype=tensor.dtype))
    return tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1] and torch.unique(tensor).numel() <= 2


def grown_axes(many: Any, fewer: Any, size: int) -> dict[Path, int]:
    """Return for each tensor the axis along which it grew when `size` − 1 examples became `size`.

    Tensors that kept their shape hold no batch.
    """
    less = dict(tensors_at(fewer))
    axes = {}
    for path, tensor in tensors_at(many):
        other = less.get(path)
        if other is None or other.ndim != tensor.ndim:
            continue
        for axis in range(tensor.ndim):
            unit, rest = divmod(tensor.shape[axis], size)
            if unit and not rest and other.shape[axis] == unit * (size - 1):
                axes[path] = axis
                break
    return axes


def others_differ(
    one: Any,
    two: Any,
    axes: Mapping[Path, int],
    kept: tuple[Sequence[int], Sequence[int]],
    size: tuple[int, int],
    *,
    same_kernels: bool = True,
    regrouped: bool = False,
) -> bool:
    """Return whether any tensor differs between two runs in the rows of the examples that both have.

    Args:
        one, two: nested outputs of the two runs.
        axes: the axis of the examples in each tensor; tensors without one are not compared.
        kept: the numbers of the compared examples in the first and in the second run.
        size: the number of examples of both runs.
        same_kernels: whether runs on as many examples computed each row in the same way.
        regrouped: whether rows came together in other numbers inside of the runs, as values said.
    """
    there = dict(tensors_at(two))
    for path, first in tensors_at(one):
        if path not in axes:
            continue
        second = there.get(path)
        if second is None or first.ndim != second.ndim or first.dtype != second.dtype:
            return True
        before, after = _blocks(first, axes[path], size[0]), _blocks(second, axes[path], size[1])
        if before.ndim != after.ndim or not _agree(before, after, *kept, same_kernels, regrouped):
            return True
    return False


def are_identical(one: Any, two: Any) -> bool:
    """Return whether two runs gave the same values bit by bit, and any at all; NaN is the same as nothing."""
    first, second = dict(tensors_at(one)), dict(tensors_at(two))
    return bool(first) and first.keys() == second.keys() and all(map(_is_identical, first.values(), second.values()))


def _is_identical(one: Tensor, two: Tensor) -> bool:
    is_alike = one.dtype == two.dtype and one.device == two.device and one.layout == two.layout == torch.strided
    return is_alike and torch.equal(one.detach(), two.detach())


def all_agree(one: Any, two: Any, *, same_kernels: bool = True) -> bool:
    """Return whether two runs on the same examples gave the same, up to rounding.

    `same_kernels`: whether both ran on as many examples, so that each row was computed in the same way.
    """
    first, second = dict(tensors_at(one)), dict(tensors_at(two))
    return first.keys() == second.keys() and all(
        tensor.shape == second[path].shape
        and tensor.dtype == second[path].dtype
        and rows_agree(tensor.detach(), second[path].detach(), same_kernels=same_kernels)
        for path, tensor in first.items()
    )


def _blocks(tensor: Tensor, axis: int, size: int) -> Tensor:
    tensor = tensor.detach()
    return blocks(tensor, axis, size) if tensor.shape[axis] % size == 0 else tensor.movedim(axis, 0)


def blocks(values: Tensor, axis: int, size: int) -> Tensor:
    """Return a view `[B, k, ...]`: the k positions of each example that lie folded into the batch axis."""
    front: Tensor = values.movedim(axis, 0).unflatten(0, (size, values.shape[axis] // size))  # type: ignore[no-untyped-call]
    return front


def rows_agree(one: Tensor, two: Tensor, *, same_kernels: bool = True) -> bool:
    """Return whether two tensors agree up to rounding where both have values; NaN agrees with NaN.

    Where one is longer than the other (the batch was cut to its longest example), the common part is compared.
    """
    if one.ndim == 0 or two.ndim == 0:
        one, two = one.reshape(1, -1), two.reshape(1, -1)
    rows = range(min(one.shape[0], two.shape[0]))
    return _agree(one, two, rows, rows, same_kernels)


def _agree(
    one: Tensor,
    two: Tensor,
    rows_one: Sequence[int],
    rows_two: Sequence[int],
    same_kernels: bool = True,
    regrouped: bool = False,
) -> bool:
    """As `rows_agree`, for the rows with these numbers. Few at a time: outputs may be as large as a step's memory."""
    is_same_shape = same_kernels and one.shape == two.shape
    shape = [min(a, b) for a, b in zip(one.shape[1:], two.shape[1:], strict=True)]
    common = (slice(None), *(slice(0, length) for length in shape))
    one, two = one[common], two[common]
    values = torch.Size(shape).numel()
    if not values or not rows_one:
        return True
    together = max(1, VALUES // values)
    places = [
        (
            torch.tensor(rows_one[at : at + together], device=one.device),
            torch.tensor(rows_two[at : at + together], device=two.device),
        )
        for at in range(0, len(rows_one), together)
    ]
    if not (one.is_floating_point() or one.is_complex()):
        return all(torch.equal(one.index_select(0, a), two.index_select(0, b)) for a, b in places)
    precision = one.real.dtype if one.is_complex() else one.dtype
    if precision == torch.float32 and _passed_through_16_bits(one[rows_one[0]], two[rows_two[0]]):
        precision = torch.bfloat16
    scales = _largest(one.index_select(0, places[0][0]))
    for a, _ in places[1:]:
        scales = torch.maximum(scales, _largest(one.index_select(0, a)))
    tolerance = LOOSENESS[precision] * scales
    if not is_same_shape:
        tolerance = tolerance.clamp(min=BY_OTHER_KERNELS * torch.finfo(precision).eps * float(scales.max()))
    elif regrouped and scales.ndim > 1:  # by the largest of the same column: a large head hides no other one
        columns = scales.amax(tuple(range(scales.ndim - 1)), keepdim=True)
        tolerance = torch.maximum(tolerance, BY_OTHER_KERNELS * torch.finfo(precision).eps * columns)
    return all(_is_close(one.index_select(0, a), two.index_select(0, b), tolerance) for a, b in places)


def _passed_through_16_bits(*rows: Tensor) -> bool:
    """Whether values in float32 were computed in bfloat16, as frameworks convert them after a model's autocast.

    All of them fit into it without a loss, and they are no whole numbers, which always may.
    """
    return not any(row.is_complex() for row in rows) and all(
        torch.equal(row.bfloat16().float(), row) and not torch.equal(row.round(), row) for row in rows
    )


def _largest(values: Tensor) -> Tensor:
    """Return the largest absolute value at each place of the rows, in double precision."""
    return values.abs().nan_to_num(0.0, 0.0, 0.0).amax(0).double()


def _is_close(one: Tensor, two: Tensor, tolerance: Tensor) -> bool:
    wide = torch.complex128 if one.is_complex() else torch.float64
    a, b = one.to(wide), two.to(wide)
    same = (a == b) | (a.isnan() & b.isnan())
    return bool((same | ((a - b).abs() <= tolerance)).all())
