"""The sum of losses as a scalar that somebody else runs backward: a trainer, an accelerator, a framework."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hushgrad.errors import ProtocolError
from hushgrad.session.open_batch import OpenBatch
from hushgrad.torch_internals import call_after_backward


def expecting(losses_B: Tensor, scale: float, batch: OpenBatch, *, returned: str | None = None) -> Tensor:
    """Return Σ losses, to be given a gradient of exactly `scale`; each loss then gets what the session expects.

    Guarantee: what each loss gets is a constant, whatever gradient came: one that is not `scale` is refused.

    `returned`: what a criterion returns of them, their "mean" or their "sum"; their gradients are the same.
    """
    total: Tensor = _Expecting.apply(losses_B, scale, batch, returned)  # type: ignore[no-untyped-call]
    return total


class _Expecting(torch.autograd.Function):
    """Σ losses (or their mean), whose backward is told in advance which gradient it will be given."""

    @staticmethod
    def forward(ctx: Any, losses_B: Tensor, scale: float, batch: OpenBatch, returned: str | None) -> Tensor:
        ctx.scale, ctx.batch, ctx.shape, ctx.is_returned = scale, batch, losses_B.shape, returned is not None
        ctx.losses = losses_B if batch.may_let_go else None  # with its graph
        return losses_B.mean() if returned == "mean" else losses_B.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        if not _is(gradient, ctx.scale) and ctx.is_returned:
            raise ProtocolError(
                "what a criterion of engine.per_example returned was multiplied or divided before backward, and "
                "gradients pass through 16 bits here, or operands are above their budget (operand_bytes)",
                cure="Put a constant factor inside the criterion (a function that returns factor * losses [B]), or "
                "call session.loss(losses, scale=factor); use no GradScaler (bfloat16 needs none; float16 takes "
                "PrivacyEngine(loss_scale=2.0**10))",
            )
        if not _is(gradient, ctx.scale):
            raise ProtocolError(
                "the scalar of session.loss was given another gradient than "
                + ("1" if ctx.scale == 1 else "the declared scale")
                + ": the loop multiplied or divided it before backward",
                cure="Call session.loss(losses, scale=1/n) where the loop divides by a constant n (by the steps of "
                "gradient accumulation, say). Scale it by nothing that depends on the batch, and use no GradScaler "
                "(bfloat16 needs none; float16 takes PrivacyEngine(loss_scale=2.0**10))",
            )
        is_divided = ctx.batch.divides_now()
        weight = 1 / ctx.shape[0] if is_divided else ctx.batch.loss_scale
        given = torch.full(ctx.shape, weight, dtype=gradient.dtype, device=gradient.device)
        losses, ctx.losses = ctx.losses, None
        if losses is not None and ctx.batch.begins([losses], [given], is_divided=is_divided):
            call_after_backward(ctx.batch.has_run)
        return given, None, None, None


def _is(gradient: Tensor, scale: float) -> bool:
    """Whether a gradient is `scale`, up to the rounding of a division in its dtype; 1 is 1 in all of them."""
    found = float(gradient)
    return found == scale if scale == 1 else abs(found - scale) <= 4 * torch.finfo(gradient.dtype).eps * abs(scale)
