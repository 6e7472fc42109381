"""Where the examples lie in a tensor: the axis of the batch, followed through the operators that move it.

The inputs of a model carry the batch on axis 0. An axis of `None` means that the tensor descends from the batch but
its examples can no longer be told apart by an axis; a tensor without an entry does not descend from the batch at all.

Axis 0 stands for "example i owns the i-th of B equal blocks of the tensor in row-major order", so folding positions
into the batch (`[B, T, d]` to `[B·T, d]`) and unfolding them keeps it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Axis = int | None
AxisRule = Callable[[int, Tensor, tuple[Any, ...], dict[str, Any], Tensor], Axis]


class BatchAxes:
    """The batch axis of each tensor that descends from the batch, for the length of one forward."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], Axis]] = {}

    def set(self, tensor: Tensor, axis: Axis) -> None:
        """Record that `tensor` descends from the batch."""
        self._entries[id(tensor)] = (weakref.ref(tensor), axis)

    def descends(self, tensor: Tensor) -> bool:
        """Return whether `tensor` descends from the batch."""
        entry = self._entries.get(id(tensor))
        return entry is not None and entry[0]() is tensor

    def get(self, tensor: Tensor) -> Axis:
        """Return the batch axis of `tensor`; None if it has none."""
        entry = self._entries.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def clear(self) -> None:
        """Forget everything: the forward is over."""
        self._entries.clear()

    def seed(self, inputs: Any, batch_size: int | None) -> int | None:
        """Record the tensors among a model's inputs and return the number of examples they hold.

        Without a declared `batch_size` the first tensor decides. A tensor with one row beside inputs of several is a
        constant; one whose first dimension is something else has lost its batch.
        """
        tensors = [tensor for tensor in tensors_in(inputs) if tensor.ndim > 0]
        sizes = [tensor.shape[0] for tensor in tensors]
        if batch_size is None or batch_size not in sizes:
            batch_size = next((size for size in sizes if size != 1), 1 if sizes else None)
        for tensor in tensors:
            if tensor.shape[0] == batch_size:
                self.set(tensor, 0)
            elif tensor.shape[0] != 1:
                self.set(tensor, None)
        for packed in packed_in(inputs):
            self.set(packed.data, None)
        return batch_size

    def follow(
        self,
        func: Callable[..., Any],
        sources: list[Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
    ) -> None:
        """Record the outputs of an operator that took `sources`, tensors that descend from the batch."""
        if isinstance(result, Tensor):
            self.set(result, self._output_axis(func, sources, args, kwargs, result))
        elif isinstance(result, (tuple, list)):
            for part in result:
                self.follow(func, sources, args, kwargs, part)

    def _output_axis(
        self,
        func: Callable[..., Any],
        sources: list[Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Tensor,
    ) -> Axis:
        # Broadcasting aligns trailing dimensions, so the source with most dimensions decides.
        source = max(sources, key=lambda tensor: tensor.ndim)
        axis = self.get(source)
        if axis is None:
            return None
        if any(self._disagrees(other, source, axis) for other in sources):
            return None
        rule = AXIS_RULES.get(func)
        if rule is not None:
            return rule(axis, source, args, kwargs, out)
        return _same_axis(axis, source, out)

    def _disagrees(self, other: Tensor, source: Tensor, axis: int) -> bool:
        if other is source:
            return False
        own = self.get(other)
        return own is None or (other.ndim == source.ndim and own != axis)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors inside nested tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        return
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for entry in fields(value):
            yield from tensors_in(getattr(value, entry.name))


def packed_in(value: Any) -> Iterator[PackedSequence]:
    """Yield the packed sequences inside nested inputs; their rows belong to examples in no regular order."""
    if isinstance(value, PackedSequence):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from packed_in(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from packed_in(part)


def _same_axis(axis: int, source: Tensor, out: Tensor) -> Axis:
    return axis if out.ndim > axis and out.shape[axis] == source.shape[axis] else None


def _named(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _transposed(axis: int, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Axis:
    first = _named(args, kwargs, 1, "dim0", kwargs.get("axis0"))
    second = _named(args, kwargs, 2, "dim1", kwargs.get("axis1"))
    if not isinstance(first, int) or not isinstance(second, int):
        return None
    first, second = first % source.ndim, second % source.ndim
    return {first: second, second: first}.get(axis, axis)


def _reversed(axis: int, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Axis:
    return source.ndim - 1 - axis


def _last_two_swapped(axis: int, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Axis:
    last = source.ndim - 1
    return {last: last - 1, last - 1: last}.get(axis, axis)


def _permuted(axis: int, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Axis:
    dims = kwargs.get("dims", args[1:])
    if len(dims) == 1 and isinstance(dims[0], (tuple, list)):
        dims = dims[0]
    order = [dim % source.ndim for dim in dims]
    return order.index(axis) if axis in order else None


def _moved(axis: int, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Axis:
    # Let torch say where the axis went: move the axes of a tensor whose sizes are their own numbers.
    origin, destination = _named(args, kwargs, 1, "source"), _named(args, kwargs, 2, "destination")
    labels = torch.empty([dim + 1 for dim in range(source.ndim)], device="meta")
    return list(torch.movedim(labels, origin, destination).shape).index(axis + 1)


def _reshaped(axis: int, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Axis:
    if axis == 0:
        rows = out.shape[0] if out.ndim else 0
        whole = source.shape[0]
        return 0 if rows and (rows % whole == 0 or whole % rows == 0) else None
    before, after = source.shape[:axis], out.shape[:axis]
    return axis if before == after and out.ndim > axis and out.shape[axis] == source.shape[axis] else None


def _unsqueezed(axis: int, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Axis:
    dim = _named(args, kwargs, 1, "dim")
    return axis + 1 if dim % out.ndim <= axis else axis


def _squeezed(axis: int, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Axis:
    wanted = _named(args, kwargs, 1, "dim")
    dims = range(source.ndim) if wanted is None else [wanted] if isinstance(wanted, int) else wanted
    gone = {dim % source.ndim for dim in dims if source.shape[dim] == 1}
    return None if axis in gone else axis - sum(dim < axis for dim in gone)


def _indexed(axis: int, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Axis:
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    if any(isinstance(part, (Tensor, list, bool)) for part in index):
        return _same_axis(axis, source, out) if _whole_before(index, axis, source.ndim) else None
    place, result_axis = 0, 0
    used = sum(part is not None and part is not Ellipsis for part in index)
    for part in index:
        if part is None:
            result_axis += 1
        elif part is Ellipsis:
            skipped = source.ndim - used
            if place <= axis < place + skipped:
                return result_axis + axis - place
            place, result_axis = place + skipped, result_axis + skipped
        else:
            if place == axis:
                return result_axis if isinstance(part, slice) and part == slice(None) else None
            place += 1
            result_axis += isinstance(part, slice)
    return result_axis + axis - place


def _whole_before(index: tuple[Any, ...], axis: int, ndim: int) -> bool:
    """Whether every dimension up to and with the batch is taken whole, so that later tensor indices leave it alone."""
    head = index[: axis + 1]
    return len(head) == axis + 1 and all(isinstance(part, slice) and part == slice(None) for part in head)


def _selected(axis: int, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Axis:
    dim = _named(args, kwargs, 1, "dim") % source.ndim
    return None if dim == axis else axis - (dim < axis)


def _unbound(axis: int, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Axis:
    dim = _named(args, kwargs, 1, "dim", 0) % source.ndim
    return None if dim == axis else axis - (dim < axis)


def _stacked(axis: int, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Axis:
    return axis + 1 if _named(args, kwargs, 1, "dim", 0) % out.ndim <= axis else axis


def _concatenated(axis: int, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Axis:
    dim = _named(args, kwargs, 1, "dim", kwargs.get("axis", 0)) % out.ndim
    return None if dim == axis else axis


def _reduced(axis: int, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Axis:
    if out.ndim == source.ndim:
        return _same_axis(axis, source, out)
    wanted = _named(args, kwargs, 1, "dim", kwargs.get("axis"))
    if wanted is None or isinstance(wanted, Tensor):
        return None
    dims = {dim % source.ndim for dim in ([wanted] if isinstance(wanted, int) else wanted)}
    return None if axis in dims else axis - sum(dim < axis for dim in dims)


def _expanded(axis: int, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Axis:
    moved = axis + out.ndim - source.ndim
    return moved if out.shape[moved] == source.shape[axis] else None


def _einsum(axis: int, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Axis:
    equation = args[0]
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return None
    left, right = equation.replace(" ", "").split("->")
    operands = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
    for term, operand in zip(left.split(","), operands, strict=True):
        if operand is source:
            letter = term[axis]
            return right.index(letter) if letter in right else None
    return None


def _rules(rule: AxisRule, *functions: Callable[..., Any]) -> dict[Callable[..., Any], AxisRule]:
    return dict.fromkeys(functions, rule)


T = Tensor
AXIS_RULES: dict[Callable[..., Any], AxisRule] = {
    **_rules(_transposed, T.transpose, torch.transpose, T.swapaxes, torch.swapaxes, T.swapdims, torch.swapdims),
    **_rules(_reversed, T.t, torch.t, T.T.__get__, T.H.__get__),  # type: ignore[attr-defined]
    **_rules(_last_two_swapped, T.mT.__get__, T.mH.__get__),  # type: ignore[attr-defined]
    **_rules(_permuted, T.permute, torch.permute),
    **_rules(_moved, T.movedim, torch.movedim, T.moveaxis, torch.moveaxis),
    **_rules(_reshaped, T.reshape, torch.reshape, T.view, T.view_as, T.reshape_as, T.flatten, torch.flatten),
    **_rules(_reshaped, T.unflatten, torch.unflatten, torch.ravel, T.ravel),
    **_rules(_unsqueezed, T.unsqueeze, torch.unsqueeze),
    **_rules(_squeezed, T.squeeze, torch.squeeze),
    **_rules(_indexed, T.__getitem__),
    **_rules(_selected, T.select, torch.select),
    **_rules(_unbound, T.unbind, torch.unbind),
    **_rules(_stacked, torch.stack),
    **_rules(_concatenated, torch.cat, torch.concat, torch.concatenate),
    **_rules(_reduced, T.sum, torch.sum, T.mean, torch.mean, T.amax, torch.amax, T.amin, torch.amin, T.max, torch.max),
    **_rules(_reduced, T.min, torch.min, T.var, torch.var, T.std, torch.std, T.norm, torch.norm, T.prod, torch.prod),
    **_rules(_reduced, T.argmax, torch.argmax, T.argmin, torch.argmin, T.logsumexp, torch.logsumexp, T.all, T.any),
    **_rules(_expanded, T.expand, T.expand_as, torch.broadcast_to, T.broadcast_to),
    **_rules(_einsum, torch.einsum),
}
