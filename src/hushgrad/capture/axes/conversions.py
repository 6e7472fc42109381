"""Tensors of the batch between one process and several: what torch's distributed tensors are made of and turned into.

A tensor parallel module takes a tensor of this process, makes it a distributed one, lays that out otherwise, and hands
on its part in this process. Each step is one example at a time as long as the examples' axis is whole in every process,
and all of them are the processes of one row, which have the same examples. What a step is made of is none of the
forward's operators: messages, and cuts by places in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from hushgrad.capture.axes.owners import BatchLocation
from hushgrad.capture.axes.parts import tensors_at_top
from hushgrad.errors import UnsupportedModelError
from hushgrad.torch_sharding import Conversion, conversion_of, is_distributed, local_part, running_conversion

if TYPE_CHECKING:
    from hushgrad.capture.axes.batch_axes import BatchAxes


class Conversions:
    """Knows tensors of the batch again behind conversions, for the length of one forward.

    Args:
        axes: where the batch lies in tensors that are known.
        mesh: that of the row: of the model's tensor parallel modules; None where there are none, and all processes have
            other examples.
    """

    def __init__(self, axes: BatchAxes, mesh: Any) -> None:
        self._axes, self._mesh = axes, mesh

    @property
    def has_row(self) -> bool:
        """Whether the model is tensor parallel, so that this process has a part of each example's gradient."""
        return self._mesh is not None

    def took(self, tensor: Tensor, location: BatchLocation) -> None:
        """It became known where the batch lies in a tensor: it is known of its part in this process, too."""
        if is_distributed(tensor):
            self._require_whole(conversion_of(tensor), location)
            self._set(local_part(tensor), location, _length(tensor, location))

    def shows(self, tensor: Tensor) -> bool:
        """Record a distributed tensor whose part in this process is known; return whether it is one."""
        if not is_distributed(tensor):
            return False
        local = local_part(tensor)
        if not self._axes.descends(local):
            return False
        location = self._axes.location(local)
        self._require_whole(conversion_of(tensor), location)
        self._set(tensor, location, _length(local, location))
        return True

    def source(self) -> Conversion | None:
        """Return the conversion that runs now, of a tensor of the batch; None where none does."""
        running = running_conversion()
        if running is None or not (self._axes.descends(running.tensor) or self.shows(running.tensor)):
            return None
        return running

    def made(self, running: Conversion, result: Any) -> None:
        """Record what a call inside of a conversion returned: what the conversion gives is the last of it.

        Raises `UnsupportedModelError` where the examples are shared out among the processes of a row, or where these
        are not the processes of the row.
        """
        location = self._axes.location(running.tensor)
        self._require_whole(running, location)
        for _, tensor in tensors_at_top(result):
            self._set(tensor, location, _length(running.tensor, location))

    def _set(self, tensor: Tensor, location: BatchLocation, length: int) -> None:
        """Record a tensor; as long as the batch lies on an axis, and this is as long as it was."""
        is_known = isinstance(location, int) and length == _length(tensor, location)
        self._axes.set(tensor, location if is_known else None)

    def _require_whole(self, step: Conversion, location: BatchLocation) -> None:
        if step.mesh != self._mesh:
            raise UnsupportedModelError(
                "a tensor of the batch is put together from processes that have other examples, or is shared out to "
                "them, inside of the model (context parallel, say)",
                where="torch.distributed.tensor",
                cure="Convert tensors of the batch over the mesh of parallelize_module alone; and leave "
                "context_parallel out: positions may be shared out by SequenceParallel and Shard(1)",
            )
        if isinstance(location, int) and any(_cuts(placement, location) for placement in step.placements):
            raise UnsupportedModelError(
                "the examples of the batch are shared out among the processes of a tensor parallel module, each of "
                "which then has the gradients of some of them alone",
                where="torch.distributed.tensor",
                cure="Leave the axis of the batch whole in every layout (input_layouts, output_layouts): "
                "Replicate(), Shard(1) for the positions of a sequence, or Shard(-1) for features",
            )


def _length(tensor: Tensor, location: BatchLocation) -> int:
    """Return the length of the axis of the batch; -1 where there is none."""
    return tensor.shape[location] if isinstance(location, int) and location < tensor.ndim else -1


def _cuts(placement: Any, axis: int) -> bool:
    return not placement.is_replicate() and not placement.is_partial() and placement.dim == axis
