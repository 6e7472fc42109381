"""The uses that a backward recorded, pooled until the physical batch is closed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.autograd import Variable

from hushgrad.capture.owners import Owners, Place
from hushgrad.errors import PrivacyUnitError
from hushgrad.gradients.contribution import Contribution, accumulation_dtype


class UsePool:
    """Contributions of one physical batch, by parameter name.

    `batch_size` is the number of examples of the physical batch: public to the pool's owner, declared before the
    backward runs. Uses of a backward that raises are dropped: they only count once their graph task has finished.
    `backwards` counts those of the physical batch; `undivided` those whose losses were not divided by its size.
    `is_narrow` is set once gradients passed through 16 bits, where they are rounded after what they were divided by.
    """

    def __init__(self) -> None:
        self.batch_size: int | None = None
        self.is_narrow = False
        self._finished: dict[str, list[Contribution]] = {}
        self._running: dict[int, list[tuple[str, Contribution]]] = {}
        self.backwards = 0
        self.undivided = 0

    def add(self, name: str, contribution: Contribution) -> None:
        """Record one use, from inside the backward that produced it."""
        task = torch._C._current_graph_task_id()
        if task not in self._running:
            self._running[task] = []
            Variable._execution_engine.queue_callback(lambda: self._finish(task))
        self._running[task].append((name, contribution))

    def _finish(self, task: int) -> None:
        for name, contribution in self._running.pop(task, []):
            self._finished.setdefault(name, []).append(contribution)
        self.backwards += 1

    def take(self) -> Mapping[str, list[Contribution]]:
        """Return the uses of all finished backwards and empty the pool."""
        uses = self._finished
        self.clear()
        return uses

    def clear(self) -> None:
        """Drop everything that was recorded."""
        self._finished, self._running, self.backwards, self.undivided = {}, {}, 0, 0

    def examples(self, tensor: Tensor, axis: Place, where: str) -> Tensor:
        """Return `tensor` as `[B, ...]` with the batch first, in at least float32 if it is floating.

        Positions that are folded into the batch come out as one further dimension: `[B·k, ...]` gives `[B, k, ...]`,
        with zeros where an example has fewer than k rows.

        Raises:
            PrivacyUnitError: the tensor's rows cannot be assigned to the B examples.
        """
        batch = self.batch_size
        if batch is None:
            raise PrivacyUnitError(
                f"{where}: a backward ran outside `session.backward` and outside the private loader, so the number of "
                f"examples is unknown. Call session.backward(losses), or iterate the loader that make_private returned"
            )
        if axis is None:
            raise PrivacyUnitError(
                f"{where}: got a tensor of shape {list(tensor.shape)} in which the examples of the batch cannot be "
                f"told apart any more. Keep the batch on an axis of its own up to this operator"
            )
        if isinstance(axis, Owners):
            tensor = axis.blocks(tensor, batch)
            return tensor.to(accumulation_dtype(tensor.dtype)) if tensor.is_floating_point() else tensor
        tensor = tensor.movedim(axis, 0)
        if tensor.shape[0] != batch:
            if batch == 0 or tensor.shape[0] % batch:
                raise PrivacyUnitError(
                    f"{where}: saw {tensor.shape[0]} rows for {batch} records. Keep the batch on an axis of its own, "
                    f"and let one row of the model's inputs be one record"
                )
            tensor = tensor.reshape(batch, tensor.shape[0] // batch, *tensor.shape[1:])
        return tensor.to(accumulation_dtype(tensor.dtype)) if tensor.is_floating_point() else tensor
