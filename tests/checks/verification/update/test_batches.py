"""Loops of Opacus 1.6 under `verify_update`: correct settings pass, and known failures are found with their cause."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad
from hushgrad.checks.verification.verdict import Verdict

opacus = pytest.importorskip("opacus", minversion="1.6.0")

SIGMA, C, B, N = 1.1, 0.5, 16, 160


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def classifier() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 4))


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(N, 20), torch.randint(0, 4, (N,))


def private(mode: str, model: nn.Module, criterion: nn.Module, x: Tensor, y: Tensor, clip: float = C) -> Any:
    """Return the model's loop as an update of a batch, and the optimizer."""
    made = opacus.PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        data_loader=DataLoader(TensorDataset(x, y), batch_size=B),
        noise_multiplier=SIGMA,
        max_grad_norm=clip,
        criterion=criterion,
        grad_sample_mode=mode,
    )
    module, optimizer = made[:2]
    loss = made[2] if mode == "ghost" else criterion

    def update(batch: tuple[Tensor, Tensor]) -> list[Tensor | None]:
        optimizer.zero_grad()
        loss(module(batch[0]), batch[1]).backward()
        optimizer.step()
        return [parameter.grad for parameter in module.parameters()]

    return update, optimizer


def verified(update: Callable[[Any], Any], batch: tuple[Tensor, Tensor], clip: float = C) -> Verdict:
    return hushgrad.verify_update(
        update, noise_multiplier=SIGMA, max_grad_norm=clip, expected_batch_size=B, batch=batch
    )


@pytest.mark.statistical
@pytest.mark.parametrize("mode", ["hooks", "functorch", "ghost"])
def test_correct_loops_of_opacus_pass(mode: str) -> None:
    """False-alarm probability 1e-6 each."""
    x, y = data()
    update, _ = private(mode, classifier(), nn.CrossEntropyLoss(), x, y)
    verdict = verified(update, (x[:8], y[:8]))
    assert verdict.passed, str(verdict)


@pytest.mark.statistical
def test_ghost_clipping_with_losses_of_shape_b_1_is_found_and_named() -> None:
    x = torch.randn(N, 20) * torch.logspace(-1, 0.5, N)[torch.randperm(N)][:, None]
    y = torch.randn(N, 1)
    model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 1))
    update, _ = private("ghost", model, nn.MSELoss(), x, y)
    verdict = verified(update, (x[:8], y[:8]))
    assert verdict.exit_status == 1
    assert verdict.causes[0].code == "loss-broadcast"


@pytest.mark.statistical
def test_a_clip_norm_scheduler_with_ghost_clipping_is_found_and_named() -> None:
    """The scheduler halves the C of the noise; the C of the clipping stays."""
    from opacus.schedulers import ExponentialGradClip

    x, y = data()
    update, optimizer = private("ghost", classifier(), nn.CrossEntropyLoss(), 3 * x, y)
    ExponentialGradClip(optimizer, gamma=0.5).step()
    verdict = verified(update, (3 * x[:8], y[:8]), clip=optimizer.max_grad_norm)
    assert verdict.exit_status == 1
    assert verdict.causes[0].code == "clip-norm-differs"
    assert verdict.measured.noise_multiplier == pytest.approx(SIGMA / 2, rel=0.01)


@pytest.mark.statistical
def test_a_mean_over_all_tokens_of_the_batch_is_found_and_named() -> None:
    words, length = 11, 12

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(words, 16), nn.Linear(16, words)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.embedding(ids)).transpose(1, 2)

    ids = torch.randint(1, words, (N, length))
    target = torch.randint(0, words, (N, length))
    target[torch.arange(length)[None] >= torch.randint(2, length + 1, (N, 1))] = -100
    update, _ = private("hooks", Tagger(), nn.CrossEntropyLoss(ignore_index=-100), ids, target, clip=2.0)
    verdict = verified(update, (ids[:8], target[:8]), clip=2.0)
    assert verdict.exit_status == 1
    assert verdict.causes[0].code == "loss-shares-an-average"


@pytest.mark.statistical
def test_batch_normalization_in_a_hand_written_loop_is_found() -> None:
    """Gradients of the mean loss, clipped once for the batch, and a model that mixes examples."""
    x, y = data()
    model = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 4))

    def update(batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        model.zero_grad()
        if len(batch[0]) > 1:
            nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum").backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        factor = min(1.0, C / max(1e-9, float(torch.stack([g.norm() for g in grads]).norm())))
        return [(factor * g + SIGMA * C * torch.randn_like(g)) / B for g in grads]

    verdict = verified(update, (x[:8], y[:8]))
    assert verdict.exit_status == 1
    assert verdict.causes[0].code in ("examples-interact", "batch-clipped")
