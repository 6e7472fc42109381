"""Scalar losses of the loop's own where gradients pass through 16 bits: the same leaks, seen through coarse numbers."""

from __future__ import annotations

from typing import Any

import own_scalar_losses as own
import torch
import torch.nn.functional as F
from own_scalar_losses import CLASSES, GONE, LAST_IS_HARD, LENGTHS, ONE, RARE, each, even, of_pairs, of_tokens
from silent_programs import Kind, Program, clean, leaky
from torch import Tensor, nn


def narrowed(training: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Return a training whose model, and not its loss, runs under autocast."""
    call = training["call"]

    def narrow(model: Any, batch: Any) -> Any:
        with torch.autocast("cpu", dtype):
            return call(model, batch)

    return {**training, "call": narrow}


def tokens(loss: Any) -> dict[str, Any]:
    """Return a training on sequences whose outputs are made in 16 bits."""
    return {**of_tokens(loss), "make": lambda: nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11))}


def scaled_by_the_batch(out: Tensor, y: Tensor) -> Tensor:
    """A loss scale that keeps the largest loss from overflowing."""
    losses = each(out, y)
    return losses.mean() / losses.detach().max()


def scaled_by_an_item(out: Tensor, y: Tensor) -> Tensor:
    loss = each(out, y).mean()
    return loss * (1 / loss.item())


def weighted(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y, weight=torch.tensor([0.01, 5.0, 1.0], dtype=out.dtype))


def masked_mean(out: Tensor, y: Tensor) -> Tensor:
    mask = (y != 1).to(out.dtype)
    return (each(out, y) * mask).sum() / mask.sum()


LEAKY: tuple[Program, ...] = tuple(
    leaky(name, data, by_hand=False, **narrowed(training))
    for name, data, training in (
        ("all pairs in bf16", GONE, of_pairs(own.simclr)),
        ("Dice over the batch in bf16", GONE, of_pairs(own.dice, clip=0.1)),
        ("Dice by class over the batch in bf16", ONE, of_pairs(own.dice_by_class)),
        ("the smallest losses in bf16", GONE, of_pairs(own.trimmed)),
        ("the largest loss in bf16", even(1), of_pairs(own.worst, clip=0.5)),
        ("focal loss over its sum of weights in bf16", even(1), of_pairs(own.normalised_focal, clip=2.0)),
        ("class weights in bf16", RARE, of_pairs(weighted, clip=0.5)),
        ("outputs standardised over the batch in bf16", ONE, of_pairs(own.standardised, clip=0.2)),
        ("root of the mean in bf16", even(1), of_pairs(own.root, clip=1.0)),
        ("mean over all tokens in bf16", LENGTHS, tokens(own.token_mean)),
        ("mean over all tokens by hand in bf16", LENGTHS, tokens(own.token_mean_by_hand)),
        ("mean over chosen tokens in bf16", LENGTHS, tokens(own.chosen_tokens)),
        ("mean over what a mask leaves in bf16", LAST_IS_HARD, of_pairs(masked_mean)),
        ("scaled by the largest loss in bf16", even(1), of_pairs(scaled_by_the_batch, clip=2.0)),
        ("scaled by a number that was read in bf16", even(1), of_pairs(scaled_by_an_item, clip=2.0)),
    )
)

CLEAN: tuple[Program, ...] = tuple(
    clean(name, data, by_hand=False, **narrowed(training, dtype))
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16))
    for name, data, training in (
        (f"cross entropy in {precision}", GONE, of_pairs(F.cross_entropy)),
        (f"mean of losses of its own in {precision}", GONE, of_pairs(lambda out, y: each(out, y).mean())),
        (
            f"squared error in {precision}",
            GONE,
            of_pairs(lambda out, y: F.mse_loss(out, F.one_hot(y, CLASSES).to(out.dtype))),
        ),
        (
            f"binary cross entropy in {precision}",
            GONE,
            of_pairs(lambda out, y: F.binary_cross_entropy_with_logits(out, F.one_hot(y, CLASSES).to(out.dtype))),
        ),
        (f"mean of each record's token mean in {precision}", LENGTHS, tokens(own.own_token_mean)),
        (f"Dice of each record in {precision}", GONE, of_pairs(own.own_dice)),
    )
)

KIND = Kind(
    "losses in 16 bits",
    "as scalar losses; the gradient is multiplied by the number of rows before it is rounded, or the step is refused",
    "every backward",
    "what a 16-bit gradient does not show of a divisor: `own scalar loss, not read`; kernels: `rounded together`",
    (*LEAKY, *CLEAN),
)
