"""One loss per example for the models of `transformers`: the model's own loss of that example alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hushgrad.errors import LossShapeError, UnsupportedModelError

_CURE = "Pass compute_loss_func=lambda outputs, labels: ..., which returns one loss per example, [B]"

IGNORED = -100
"""The label of positions that no loss is taken of."""


def of_examples(
    model: nn.Module, base: Any, inputs: dict[str, Any], loss_of: Callable[[Any, Any], Tensor] | None
) -> Tensor:
    """Return one loss per example, `[B]`.

    Args:
        model: what is called.
        base: the model without a framework's wrapper, of which kind and configuration are read.
        inputs: keyword arguments of the model, with `labels`.
        loss_of: a loss of the caller's, `(outputs, labels) -> [B]`; None for the model's own kind.

    Raises:
        UnsupportedModelError: no per-example form of the model's kind of loss is known.
        LossShapeError: the caller's loss is not one per example.
    """
    config = getattr(base, "config", None)  # a model that is none of transformers' has none
    is_sequence_to_sequence = bool(getattr(config, "is_encoder_decoder", False))
    labels = inputs["labels"] if is_sequence_to_sequence and "labels" in inputs else inputs.pop("labels", None)
    outputs = model(**inputs)
    if loss_of is not None:
        losses = loss_of(outputs, labels)
        if not isinstance(losses, Tensor) or losses.ndim != 1:
            got = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise LossShapeError(
                f"compute_loss_func must return one loss per example, [B], got {got}",
                cure="Take the loss with reduction='none', and average each example over its own tokens",
            )
        return losses
    kind = getattr(base, "loss_type", None) or "ForCausalLM"  # its own fallback; `require_own_loss` sees to it
    of_kind = _unshifted if is_sequence_to_sequence else LOSSES.get(kind)
    if labels is None:
        raise UnsupportedModelError(
            "its inputs hold no 'labels'",
            where=type(base).__name__,
            cure="Override per_example_losses(self, model, inputs) in a subclass of private(Trainer), to return one "
            "loss per example, [B]",
        )
    if of_kind is None or config is None:
        raise UnsupportedModelError(
            f"no per-example form of its loss ({kind}) is known", where=type(base).__name__, cure=_CURE
        )
    return of_kind(outputs, labels, config)


def require_own_loss(
    model: nn.Module, inputs: dict[str, Any], of_examples: Callable[[dict[str, Any]], Tensor], is_narrow: bool
) -> bool:
    """Refuse a model whose own loss of one example is not what would be trained.

    They are compared on the first example whose own loss is finite. One without any label has none: the model's own
    mean over no token is NaN.

    Returns:
        Whether they were compared. False where no example has a loss of its own, and what would be trained is exactly 0
        for each.

    Raises `UnsupportedModelError`: they differ, or nothing could be compared and something would be trained.
    """
    labels = inputs.get("labels")
    if not isinstance(labels, Tensor):
        of_examples(inputs)  # which says what is missing
        return True
    modes = [(module, module.training) for module in model.modules()]
    is_narrow = is_narrow or any(p.dtype != torch.float32 for p in model.parameters())
    model.eval()
    trains_unknown = False
    try:
        for row in range(len(labels)):
            own, ours = _both_losses(model, _row(inputs, row, len(labels)), of_examples)
            if own.isfinite():
                if not torch.allclose(own, ours, rtol=1e-2 if is_narrow else 1e-5, atol=1e-6):
                    raise _other_loss(model)
                return True
            trains_unknown |= ours.item() != 0
    finally:
        for module, mode in modes:
            module.training = mode
    if trains_unknown:
        raise _other_loss(model)
    return False


def _row(inputs: dict[str, Any], row: int, rows: int) -> dict[str, Any]:
    return {
        name: value[row : row + 1] if isinstance(value, Tensor) and value.ndim and len(value) == rows else value
        for name, value in inputs.items()
    }


@torch.no_grad()
def _both_losses(
    model: nn.Module, one: dict[str, Any], of_examples: Callable[[dict[str, Any]], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the model's own loss of one example, and what would be trained (NaN where that is of another kind)."""
    outputs = model(**one)
    own = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if not isinstance(own, Tensor):
        raise UnsupportedModelError("it returns no loss of its own", where=type(model).__name__, cure=_CURE)
    own = own.float().reshape(())
    try:
        return own, of_examples(one).float().reshape(())
    except (AttributeError, IndexError, RuntimeError, ValueError):  # another kind of loss than its name says
        return own, own + float("nan")


def _other_loss(model: nn.Module) -> UnsupportedModelError:
    return UnsupportedModelError(
        "its own loss of one example is not what private training would train (an auxiliary loss, other labels)",
        where=type(model).__name__,
        cure=_CURE,
    )


def _tokens(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Return each example's mean over its own labelled positions."""
    losses_BT = F.cross_entropy(logits_BTV.float().transpose(1, 2), labels_BT, ignore_index=IGNORED, reduction="none")
    return losses_BT.sum(1) / (labels_BT != IGNORED).sum(1).clamp(min=1)


def _causal(outputs: Any, labels: Tensor, _: Any) -> Tensor:
    logits = outputs.logits
    virtual = logits.shape[1] - labels.shape[1]  # prompt tuning puts tokens before, of which no loss is taken
    return _tokens(logits[:, :-1], F.pad(labels, (virtual, 0), value=IGNORED)[:, 1:])


def _unshifted(outputs: Any, labels: Tensor, _: Any) -> Tensor:
    return _tokens(outputs.logits, labels)


def _classes(outputs: Any, labels: Tensor, config: Any) -> Tensor:
    logits = outputs.logits.float()
    kind = getattr(config, "problem_type", None)
    if kind is None:
        whole = labels.dtype in (torch.int32, torch.int64)
        many = "single_label_classification" if whole else "multi_label_classification"
        kind = "regression" if config.num_labels == 1 else many
    if kind == "regression":
        rows = len(logits)
        return F.mse_loss(logits.reshape(rows, -1), labels.reshape(rows, -1).float(), reduction="none").mean(1)
    if kind == "single_label_classification":
        return F.cross_entropy(logits, labels.reshape(-1), reduction="none")
    return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(1)


LOSSES: dict[str, Callable[[Any, Tensor, Any], Tensor]] = {
    "ForCausalLM": _causal,
    "ForMaskedLM": _unshifted,
    "ForTokenClassification": _unshifted,
    "ForSequenceClassification": _classes,
    "ForImageClassification": _classes,
    "ForVideoClassification": _classes,
}
"""By transformers' own name of a model's loss: outputs, labels and configuration to one loss per example."""
