"""What takes a small part of others' gradients, or only of large, small or rare ones, is met in the first batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from summed import Change, X, sum_of
from torch import Tensor, nn

from hushgrad.errors import CrossSampleLeakError, LossShapeError


def mixing(part: float) -> Change:
    """Hand on a part of the first row's gradient to all others."""

    def change(g: Tensor) -> Tensor:
        return torch.cat([g[:1], g[1:] + part * g[:1]])

    return change


def to_joint_norm(most: float) -> Change:
    return lambda g: g / max(1.0, float(g.norm()) / most)


def centred_above(least: float) -> Change:
    return lambda g: g - g.mean(0) if float(g.abs().max()) > least else g


LEAKS: dict[str, Change] = {
    **{f"{part} of the first row": mixing(part) for part in (1e-2, 1e-3, 1e-4, 1e-5)},
    **{f"joint norm at most {most}": to_joint_norm(most) for most in (0.01, 1.0, 100.0)},
    **{f"centred above {least}": centred_above(least) for least in (0.0, 1.0, 1e3)},
    "small ones get the mean": lambda g: torch.where(g.abs() < 1e-3, g.mean(0, keepdim=True).expand_as(g), g),
    "large ones get the mean": lambda g: torch.where(g.abs() > 50, g.mean(0, keepdim=True).expand_as(g), g),
}


class OfAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Change) -> Tensor:
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return ctx.change(g), None


class Changing(nn.Module):
    def __init__(self, change: Change, how: str) -> None:
        super().__init__()
        self.first, self.second, self.change, self.how = nn.Linear(4, 4), nn.Linear(4, 3), change, how
        if how == "module hook":
            self.second.register_full_backward_pre_hook(lambda _, gradients: (change(gradients[0]),))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        if self.how == "hook" and h.requires_grad:
            h.register_hook(self.change)  # type: ignore[no-untyped-call]
        return self.second(OfAll.apply(h, self.change) if self.how == "function" else h)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("how", ["hook", "function", "module hook"])
@pytest.mark.parametrize("change", LEAKS.values(), ids=LEAKS.keys())
def test_a_small_or_rare_part_of_others_gradients_is_refused_in_the_first_batch(change: Change, how: str) -> None:
    """Guarantee: an example's gradient that takes more than a part in 10⁶ of another's is refused."""
    with pytest.raises(CrossSampleLeakError):
        sum_of(X, lambda: Changing(change, how), "per_example")


@pytest.mark.parametrize("change", LEAKS.values(), ids=LEAKS.keys())
def test_so_is_one_that_the_loop_hangs_on_the_output(change: Change) -> None:
    def hooked(out: Tensor) -> Tensor:
        out.register_hook(change)  # type: ignore[no-untyped-call]
        return out

    with pytest.raises(
        (CrossSampleLeakError, LossShapeError),
        match=r"mixes examples|the outputs of others|gradient of one example changed",
    ):
        sum_of(X, lambda: nn.Linear(4, 3), "per_example", change=hooked)


@pytest.mark.parametrize("how", ["hook", "function", "module hook"])
@pytest.mark.parametrize(
    "change",
    [
        lambda g: 0.5 * g,
        lambda g: g.clamp(-1e-3, 1e-3),
        lambda g: g / g.norm(dim=1, keepdim=True).clamp(min=1.0),
        lambda g: torch.where(g.abs() > 50, g.mean(1, keepdim=True).expand_as(g), g),
    ],
    ids=["half", "clamp", "norm of each row", "large ones get the mean of their row"],
)
def test_what_each_row_does_by_itself_is_trained(change: Change, how: str) -> None:
    total = sum_of(X, lambda: Changing(change, how), "per_example")
    alone = torch.stack([sum_of(x[None], lambda: Changing(change, how), "per_example") for x in X]).sum(0)
    torch.testing.assert_close(total, alone, rtol=1e-4, atol=1e-5)
