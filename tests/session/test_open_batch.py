"""Losses in 16 bits: nothing is divided before it is rounded, or the step is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.errors import UnsupportedModelError

WIDTH, RATE, NORM = 6, 1.0, 1.0


def attached(records: int, reduction: str = "mean", dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """A session over equal records, whose rounding errors all go one way."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3)).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    x = torch.randn(1, WIDTH).repeat(records, 1).to(dtype)
    engine = PrivacyEngine(test_key=1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(TensorDataset(x, torch.zeros(records, dtype=torch.int64)), batch_size=records),
        noise_multiplier=0.0,
        max_grad_norm=NORM,
        loss_reduction=reduction,
        poisson_sampling=False,
    )
    return engine, model, optimizer, loader


@contextmanager
def sixteen_bits(kind: str) -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"):
        yield


def clipped_sum(records: int, kind: str, reduction: str, by: str) -> Tensor:
    """The sum of the clipped gradients of one step, flat."""
    dtype = torch.bfloat16 if kind == "parameters" else torch.float32
    engine, model, optimizer, loader = attached(records, reduction, dtype)
    criterion = engine.per_example(nn.CrossEntropyLoss())
    x, y = next(iter(loader))
    with sixteen_bits(kind):
        output = model(x)
        if by == "engine":
            loss = criterion(output, y)
        elif by == "loop":
            loss = nn.functional.cross_entropy(output.float(), y)
        else:
            losses = nn.functional.cross_entropy(output.float(), y, reduction="none")
    if by in ("engine", "loop"):
        loss.backward()
    else:
        engine.session.backward(losses)
    sums: list[Tensor] = []
    optimizer.register_step_pre_hook(lambda *_: sums.extend(p.grad.float().flatten() for p in model.parameters()))
    optimizer.step()
    divisor = records if reduction == "mean" else 1
    return torch.cat(sums) * divisor


@pytest.mark.parametrize(
    ("reduction", "by"),
    [("mean", "session"), ("mean", "engine"), ("mean", "loop"), ("sum", "session"), ("sum", "engine")],
)
def test_undivided_losses_in_sixteen_bits_keep_to_the_sensitivity(reduction: str, by: str) -> None:
    """‖sum(D) - sum(D without i)‖ ≤ C(1+1e-5), where dividing by 257 and by 256 gave 1.2 C."""
    more, fewer = (clipped_sum(records, "autocast", reduction, by) for records in (257, 256))
    assert torch.linalg.vector_norm((more - fewer).double()) <= NORM * (1 + 1e-5)


def test_in_32_bits_a_mean_loss_is_undone_as_before() -> None:
    engine = clipped_sum(9, "none", "mean", "engine")
    session = clipped_sum(9, "none", "mean", "session")
    torch.testing.assert_close(engine, session, rtol=1e-6, atol=1e-7)


def test_a_mean_of_the_loops_own_beside_undivided_losses_is_refused_in_16_bits() -> None:
    """One backward of both: the mean's part was divided before it was rounded."""
    for own, refused in ((False, False), (True, True)):
        engine, model, optimizer, loader = attached(8)
        x, y = next(iter(loader))
        with sixteen_bits("autocast"):
            output = model(x)
        total = engine.session.loss(F.cross_entropy(output.float(), y, reduction="none"))
        (total + F.cross_entropy(output.float(), y) if own else total).backward()
        if refused:
            with pytest.raises(UnsupportedModelError, match="16 bits"):
                optimizer.step()
        else:
            optimizer.step()
        assert engine.session.steps == (not refused)
