"""One loss per example, from the loss the user already has."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hushgrad.arguments import one_of
from hushgrad.errors import InvalidArgumentError, LossShapeError, PrivacyUnitError

REDUCTIONS = ("none", "mean", "sum", "batchmean")


class PerExampleLoss(nn.Module):
    """A criterion that is checked to be one loss per example, and then reduced as the engine expects.

    Guarantee: the scalar it returns is the mean (or the sum) of B losses of which each belongs to one example.
    """

    def __init__(
        self,
        criterion: nn.Module | Callable[[Any, Any], Tensor],
        *,
        loss_reduction: str,
        batch_size: Callable[[], int | None],
    ) -> None:
        """Wrap a criterion.

        Args:
            criterion: a loss module with a `reduction`, or a function `(output, target) -> [B]`.
            loss_reduction: "mean" or "sum", over the examples and over the elements of each example.
            batch_size: tells the number of records of the batch being worked on, or None if it is not known.

        Raises:
            InvalidArgumentError: a criterion with trainable parameters, with reduction="sum" where a mean is
                expected, or something that cannot be called.
        """
        super().__init__()
        self._loss_reduction = one_of("loss_reduction", loss_reduction, ("mean", "sum"))
        self._batch_size = batch_size
        self._elements_are_summed = loss_reduction == "sum"
        self._module: nn.Module | None = None
        if not callable(criterion):
            raise InvalidArgumentError(f"criterion must be a loss module or function, got {type(criterion).__name__}")
        self._function: Callable[[Any, Any], Tensor] = criterion
        if isinstance(criterion, nn.Module):
            if any(parameter.requires_grad for parameter in criterion.parameters()):
                raise InvalidArgumentError(
                    "the criterion has trainable parameters, which nobody would clip. Make it part of the model"
                )
            self._unreduce(criterion)

    def _unreduce(self, criterion: nn.Module) -> None:
        reduction = vars(criterion).get("reduction")
        if reduction is None:
            self._module = criterion
            return
        one_of("reduction of the criterion", reduction, REDUCTIONS)
        if reduction == "sum" and self._loss_reduction == "mean":
            raise InvalidArgumentError(
                'the criterion has reduction="sum" and the engine loss_reduction="mean". Pass loss_reduction="sum" to '
                'make_private, or give the criterion reduction="mean"'
            )
        unreduced = copy.copy(criterion)
        unreduced.reduction = "none"  # type: ignore[assignment]
        self._module = self._function = unreduced
        self._elements_are_summed = self._elements_are_summed or reduction == "batchmean"

    def forward(self, output: Any, target: Any) -> Tensor:
        """Return the scalar loss of a batch.

        Args:
            output: what the model returned, the batch on its first dimension.
            target: what the criterion compares it with.

        Raises:
            PrivacyUnitError: the first dimension of the output is not the batch.
            LossShapeError: the criterion does not give one loss per example.
        """
        losses = self.losses(output, target)
        return losses.mean() if self._loss_reduction == "mean" else losses.sum()

    def losses(self, output: Any, target: Any) -> Tensor:
        """Return the losses of the examples, `[B]`."""
        batch = self._rows(output)
        found = self._function(output, target)
        if not isinstance(found, Tensor):
            raise LossShapeError(f"the criterion must return a tensor of shape [B], got {type(found).__name__}")
        if found.ndim == 0 or (batch is not None and found.shape[0] != batch):
            expected = "B" if batch is None else batch
            raise LossShapeError(
                f"need one loss per example, shape [{expected}], got {list(found.shape)}. Return a loss for each "
                f"example, averaged over its own elements; for sequences give the criterion [B, classes, T]"
            )
        if self._module is None or self._function is not self._module or "reduction" not in vars(self._module):
            if found.ndim != 1:
                raise LossShapeError(
                    f"need one loss per example, shape [{found.shape[0]}], got {list(found.shape)}. Squeeze it, or "
                    f"reduce each example to one number"
                )
            return found
        return self._reduce_elements(found, output, target)

    def _reduce_elements(self, found: Tensor, output: Any, target: Any) -> Tensor:
        if isinstance(output, Tensor) and found.numel() > output.numel():
            shapes = (
                f"{list(output.shape)} and {list(target.shape)}" if isinstance(target, Tensor) else "of other shape"
            )
            raise LossShapeError(
                f"output and target were broadcast against each other (shapes {shapes}), so that one example's loss "
                f"contains another one's target. Give both the same shape"
            )
        elements_BK = found.reshape(found.shape[0], -1)
        if self._elements_are_summed:
            return elements_BK.sum(1)
        ignored = vars(self._module).get("ignore_index")
        if ignored is None or not isinstance(target, Tensor) or target.shape != found.shape:
            return elements_BK.mean(1)
        counts_B = (target != ignored).reshape(found.shape[0], -1).sum(1)
        return elements_BK.sum(1) / counts_B.clamp(min=1)

    def _rows(self, output: Any) -> int | None:
        """The number of examples, and a check that the output has them first."""
        batch = self._batch_size() if torch.is_grad_enabled() else None
        if not isinstance(output, Tensor):
            return batch
        if output.ndim == 0:
            raise PrivacyUnitError("the model's output has no dimensions. Its first dimension must be the batch")
        if batch is not None and output.shape[0] != batch:
            raise PrivacyUnitError(
                f"the model's output has {output.shape[0]} rows for {batch} records. Its first dimension must be the "
                f"batch: for sequences give the criterion [B, classes, T] and targets [B, T]"
            )
        return output.shape[0]
