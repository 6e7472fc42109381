"""One loss per example, from the loss the user already has."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hushgrad.arguments import one_of
from hushgrad.capture.axes.batch_axes import tensors_in
from hushgrad.errors import InvalidArgumentError, LossShapeError, PrivacyUnitError
from hushgrad.separation import Separation

REDUCTIONS = ("none", "mean", "sum", "batchmean")

ELEMENTWISE = (
    nn.L1Loss,
    nn.MSELoss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.KLDivLoss,
    nn.PoissonNLLLoss,
    nn.SoftMarginLoss,
    nn.HingeEmbeddingLoss,
    nn.MultiLabelMarginLoss,
    nn.MultiLabelSoftMarginLoss,
)
"""Losses that want the target in the shape of the output, and most of which broadcast in silence otherwise."""

ELEMENTWISE_OF_MORE = (nn.GaussianNLLLoss, nn.MarginRankingLoss, nn.TripletMarginLoss)
"""Losses of three arguments that want the second in the shape of the first, and broadcast in silence otherwise."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a criterion is called with: by place, and by name."""


class LossObserver(Protocol):
    """Is told of every evaluation that gradients can come back through."""

    def evaluating(self, criterion: PerExampleLoss) -> None:
        """A criterion is going to be called."""

    def evaluated(self, criterion: PerExampleLoss, arguments: Arguments, losses: Tensor) -> None:
        """Called with the arguments and the losses `[B]`."""


class PerExampleLoss(nn.Module):
    """A criterion that is checked to be one loss per example, and then reduced as the engine expects.

    Guarantee: the scalar it returns is the mean (or the sum) of B losses of which each belongs to one example.
    """

    def __init__(
        self,
        criterion: nn.Module | Callable[..., Tensor],
        *,
        loss_reduction: str,
        batch_size: Callable[[], int | None],
        observer: LossObserver | None = None,
        reduced: Callable[[Tensor], Tensor | None] = lambda losses: None,
    ) -> None:
        """Wrap a criterion.

        Args:
            criterion: a loss module with a `reduction`, or a function `(output, target) -> [B]`; either may take any
                arguments.
            loss_reduction: "mean" or "sum", over the examples and over the elements of each example.
            batch_size: tells the number of records of the batch being worked on, or None if it is not known.
            observer: told of the losses, to examine whether each belongs to one example.
            reduced: returns the mean (or the sum) of the losses where their gradients are another's to choose, because
                they pass through 16 bits; else None.

        Raises:
            InvalidArgumentError: a criterion with trainable parameters, with reduction="sum" where a mean is
                expected, or something that cannot be called.
        """
        super().__init__()
        self._loss_reduction = one_of("loss_reduction", loss_reduction, ("mean", "sum"))
        self._batch_size = batch_size
        self._observer = observer
        self._reduced = reduced
        self._elements_are_summed = loss_reduction == "sum"
        self._is_mean = False  # of the criterion itself
        self._unreduced: nn.Module | None = None
        self._is_separate = False
        if not callable(criterion) or isinstance(criterion, type):
            came = f"the class {criterion.__name__}" if isinstance(criterion, type) else type(criterion).__name__
            raise InvalidArgumentError(
                f"criterion must be a loss module or a function, got {came}",
                cure="Pass an instance, such as nn.CrossEntropyLoss(), or a function (output, target) -> losses [B]",
            )
        self._function: Callable[..., Tensor] = criterion
        if isinstance(criterion, nn.Module):
            if any(parameter.requires_grad for parameter in criterion.parameters()):
                raise InvalidArgumentError(
                    "the criterion has trainable parameters, which nobody would clip", cure="Make it part of the model"
                )
            self._unreduce(criterion)

    def _unreduce(self, criterion: nn.Module) -> None:
        reduction = vars(criterion).get("reduction")
        if reduction is None:
            return
        one_of("reduction of the criterion", reduction, REDUCTIONS)
        if reduction == "sum" and self._loss_reduction == "mean":
            raise InvalidArgumentError(
                'the criterion has reduction="sum" and the engine loss_reduction="mean"',
                cure='Pass loss_reduction="sum" to make_private, or give the criterion reduction="mean"',
            )
        unreduced = copy.copy(criterion)
        unreduced.reduction = "none"  # type: ignore[assignment]
        self._unreduced = self._function = unreduced
        self._elements_are_summed = self._elements_are_summed or reduction == "batchmean"
        self._is_mean = reduction == "mean" and not self._elements_are_summed

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        """Return the scalar loss of a batch.

        Args:
            arguments, named: those of the criterion. Of one or two, the first is what the model returned, the batch on
                its first dimension, and the second what it is compared with. Of more, each holds the batch as the
                criterion wants it (`CTCLoss` on axis 1 of `[T, B, C]`), or is a constant.

        Raises:
            PrivacyUnitError: the first dimension of the output is not the batch.
            LossShapeError: the criterion does not give one loss per example.
        """
        if self._observer is not None and torch.is_grad_enabled():
            self._observer.evaluating(self)
        losses = self.losses(*arguments, **named)
        if self._observer is not None and torch.is_grad_enabled():
            self._observer.evaluated(self, (arguments, named), losses)
        reduced = self._reduced(losses)
        if reduced is not None:
            return reduced
        return losses.sum() if self._loss_reduction == "sum" else losses.mean()

    @property
    def name(self) -> str:
        """What messages call the criterion."""
        criterion = self._function
        return criterion.__name__ if isinstance(criterion, FunctionType) else type(criterion).__name__

    @property
    def watched(self) -> Any:
        """The criterion itself, which may keep something between calls."""
        return self._function

    def losses(self, *arguments: Any, **named: Any) -> Tensor:
        """Return the losses of the examples, `[B]`; the arguments are those of `forward`."""
        given = self._in_order(arguments, named)
        batch = self._rows(given[0]) if 0 < len(given) < 3 else self._expected_rows()
        match given:
            case [Tensor() as output, Tensor() as target]:
                self._require_matching_target(output, target)
            case [Tensor() as output, Tensor() as target, _, *_] if isinstance(self._unreduced, ELEMENTWISE_OF_MORE):
                self._require_one_shape(output, target)
        found = self._function(*arguments, **named)
        if not isinstance(found, Tensor):
            raise LossShapeError(
                f"must return a tensor of shape [B], got {type(found).__name__}",
                where=f"criterion {self.name}",
                cure="Return one loss for each example",
            )
        if not found.is_floating_point():
            raise LossShapeError(
                f"must return real numbers with a gradient, got {found.dtype}",
                where=f"criterion {self.name}",
                cure="Return losses of a floating-point type: of complex numbers the absolute value, say",
            )
        if found.ndim == 0 or (batch is not None and found.shape[0] != batch):
            expected = "B" if batch is None else batch
            raise LossShapeError(
                f"must give one loss per example, shape [{expected}], got {list(found.shape)}",
                where=f"criterion {self.name}",
                cure="Return one loss for each example, averaged over its own elements; for sequences give the "
                "criterion [B, classes, T]",
            )
        if self._unreduced is not None:
            return self._reduce_elements(self._unreduced, found, given)
        if found.ndim != 1:
            raise LossShapeError(
                f"must give one loss per example, shape [{found.shape[0]}], got {list(found.shape)}",
                where=f"criterion {self.name}",
                cure="Reduce each example to one number, or squeeze axes of length 1 other than the first",
            )
        self._require_separate_losses(found, given)
        return found

    def _require_separate_losses(self, losses_B: Tensor, given: list[Any]) -> None:
        """Refuse a function of the user's whose loss of one example depends on another one's output.

        Looked at once: what a function mixes it mixes in every batch.
        """
        rows = losses_B.shape[0]
        outputs = [
            part
            for part in tensors_in(given)
            if part.requires_grad and rows in part.shape[: 2 if part.ndim > 2 else 1]  # [T, B, C] too
        ]
        if self._is_separate or rows < 2 or not outputs or not losses_B.requires_grad:
            return
        found = Separation(losses_B, outputs)
        suspects = found.suspects()
        silent = found.spoiled() if suspects else frozenset()
        if silent:
            return  # not to be told from this batch
        if suspects and found.mixes(suspects, silent):
            raise LossShapeError(
                "mixes examples: the loss of one depends on the output of another (an average over the batch, or pairs "
                "within it)",
                where=f"criterion {self.name}",
                cure="Compute each example's loss from its own output and target alone",
            )
        self._is_separate = True

    def _in_order(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
        """Return the arguments as one list; those of a loss module in the order of its own."""
        if self._unreduced is None or not named:
            return [*arguments, *named.values()]
        return [*inspect.signature(self._unreduced.forward).bind(*arguments, **named).arguments.values()]

    def _reduce_elements(self, unreduced: nn.Module, found: Tensor, given: list[Any]) -> Tensor:
        elements_BK = found.reshape(found.shape[0], -1)
        if self._elements_are_summed:
            return elements_BK.sum(1)
        if isinstance(unreduced, nn.CTCLoss) and self._is_mean:  # torch's mean is one over each example's own target
            target_lengths_B = torch.as_tensor(given[3], device=found.device)
            return elements_BK.mean(1) / target_lengths_B.clamp(min=1)
        target = given[1] if len(given) > 1 else None
        ignored = vars(unreduced).get("ignore_index")
        if ignored is None or not isinstance(target, Tensor) or target.shape != found.shape:
            return elements_BK.mean(1)
        is_counted: Tensor = target != ignored
        counts_B = is_counted.reshape(found.shape[0], -1).sum(1)
        return elements_BK.sum(1) / counts_B.clamp(min=1)

    def _require_matching_target(self, output: Tensor, target: Tensor) -> None:
        """Refuse shapes that torch would broadcast: one example's loss would contain another one's target."""
        if target.ndim == 0 or output.ndim == 0 or target.shape[0] != output.shape[0]:
            raise LossShapeError(
                f"the target has shape {list(target.shape)} for an output of shape {list(output.shape)}",
                cure="Give the target one row for each example",
            )
        if isinstance(self._unreduced, ELEMENTWISE):
            self._require_one_shape(output, target)

    def _require_one_shape(self, output: Tensor, target: Tensor) -> None:
        if target.shape != output.shape:
            raise LossShapeError(
                f"output and target would be broadcast against each other (shapes {list(output.shape)} and "
                f"{list(target.shape)}), so one example's loss would contain another one's target",
                cure="Give both the same shape",
            )

    def _rows(self, output: Any) -> int | None:
        """The number of examples, and a check that the output has them first."""
        batch = self._expected_rows()
        if not isinstance(output, Tensor):
            return batch
        if output.ndim == 0:
            raise PrivacyUnitError(
                "the model's output has no dimensions", cure="Return an output whose first dimension is the batch"
            )
        if batch is not None and output.shape[0] != batch:
            raise PrivacyUnitError(
                f"the model's output has {output.shape[0]} rows for {batch} examples",
                cure="Put the batch on its first dimension: for sequences give the criterion [B, classes, T] and "
                "targets [B, T]. Views of one example go through the model in a call for each view",
            )
        return output.shape[0]

    def _expected_rows(self) -> int | None:
        return self._batch_size() if torch.is_grad_enabled() else None
