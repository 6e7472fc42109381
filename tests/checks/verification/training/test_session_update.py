"""One step under test of models that draw random numbers, keep parts in eval mode or compute in 16 bits."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import hushgrad
from hushgrad.checks.verification.verdict import Verdict
from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import UnsupportedModelError
from hushgrad.mechanism import DPSGD
from hushgrad.sampling.poisson import PoissonSampling

N, B, C = 400, 40, 0.5


def verified(model: nn.Module) -> Verdict:
    torch.manual_seed(5)
    mechanism = DPSGD(
        noise_multiplier=1.1,
        clipping=FlatClipping(C),
        sampling=PoissonSampling(B / N),
        expected_batch_size=B,
    )
    loader = DataLoader(TensorDataset(torch.randn(N, 20), torch.randint(0, 4, (N,))), batch_size=B, shuffle=True)
    return hushgrad.verify(model, loader, nn.CrossEntropyLoss(), mechanism, resolution=0.05)


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))


class Drawn(nn.Module):
    """An ordinary model with one random part in its middle."""

    def __init__(self, part: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.last, self.part = nn.Linear(20, 12), nn.Linear(12, 4), part

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.part(torch.tanh(self.first(x))))
        return out


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.last = nn.LSTM(4, 6, num_layers=2, dropout=0.4, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.layers(x.reshape(-1, 5, 4))[0][:, -1])
        return out


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = x.reshape(-1, 5, 4)
        out: Tensor = self.last(self.attention(h, h, h, need_weights=False)[0].mean(1))
        return out


class CheckpointedDropout(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(20, 12), nn.Linear(12, 4), reentrant
        self.part = nn.Sequential(nn.Linear(12, 12), nn.Dropout(0.4), nn.Linear(12, 12))

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.part, torch.tanh(self.first(x)), use_reentrant=self.reentrant)
        out: Tensor = self.last(hidden)
        return out


DRAWING: dict[str, Callable[[], nn.Module]] = {
    "dropout": dropout,
    "lstm": Recurrent,
    "attention": Attentive,
    "checkpointed": lambda: CheckpointedDropout(False),
    "checkpointed, reentrant": lambda: CheckpointedDropout(True),
    "noise layer": lambda: Drawn(lambda h: h + 0.1 * torch.randn_like(h)),
    "mask by rand": lambda: Drawn(lambda h: h * (torch.rand(h.shape) > 0.3)),
    "stochastic depth by rows": lambda: Drawn(lambda h: h * torch.empty(len(h), 1).bernoulli_(0.7) / 0.7),
}


IN_THE_FIRST_RING = ("dropout", "checkpointed", "stochastic depth by rows")


@pytest.mark.statistical
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in IN_THE_FIRST_RING else [pytest.mark.slow]) for name in DRAWING]
)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_model_that_draws_random_numbers_passes_and_the_verdict_says_how_it_was_measured(name: str) -> None:
    """False alarm: 8 · 1e-6 in all."""
    verdict = verified(DRAWING[name]())
    assert verdict.passed, str(verdict)
    assert any("with constants in their place" in note for note in verdict.notes)
    assert "sensitivity-as-drawn" in {check.code for check in verdict.checks}


@pytest.mark.statistical
@pytest.mark.parametrize("depth", [lambda h: h if random.random() < 0.7 else 0 * h])
def test_random_numbers_of_whole_batches_are_the_same_in_every_measurement(depth: Any) -> None:
    """A layer that is skipped for the whole batch, by Python's generator; false alarm 1e-6."""
    verdict = verified(Drawn(depth))
    assert verdict.passed, str(verdict)


def test_a_model_that_draws_nothing_is_measured_as_it_is() -> None:
    verdict = verified(nn.Sequential(nn.Linear(20, 8), nn.Dropout(0.0), nn.Linear(8, 4)))
    assert verdict.notes == ()
    assert "sensitivity-as-drawn" not in {check.code for check in verdict.checks}


def test_a_random_operator_without_a_constant_is_refused_by_its_name() -> None:
    with pytest.raises(UnsupportedModelError, match="aten::binomial"):
        verified(Drawn(lambda h: h * torch.binomial(torch.ones(h.shape), torch.full(h.shape, 0.5))))


@pytest.mark.parametrize(
    "factors", [lambda _, norms: (2 * C / norms).clamp(max=1.0), lambda _, n: C / n.amax() + 0 * n]
)
def test_tampered_clipping_of_a_model_with_dropout_is_found(monkeypatch: pytest.MonkeyPatch, factors: Any) -> None:
    monkeypatch.setattr(FlatClipping, "factors", factors)
    model = dropout()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 10
    assert {"sensitivity-bound", "sensitivity-additive"} & {check.code for check in verified(model).failed}


def test_clipping_that_fails_only_as_numbers_are_drawn_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = FlatClipping.factors

    def factors(self: FlatClipping, norms: Tensor) -> Tensor:
        return torch.ones_like(norms) if torch.rand(3).std() > 0 else right(self, norms)

    monkeypatch.setattr("hushgrad.clipping.bound.BoundRule.within", lambda self, norms, factors, scale: norms == norms)
    monkeypatch.setattr(FlatClipping, "factors", factors)
    assert "sensitivity-as-drawn" in {check.code for check in verified(dropout()).failed}


@pytest.mark.statistical
def test_parts_of_a_training_model_stay_in_eval_mode() -> None:
    """Frozen batch normalization; false alarm 1e-6."""
    model = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    model[1].eval().requires_grad_(False)
    verdict = verified(model)
    assert verdict.passed, str(verdict)


@pytest.mark.statistical
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_a_model_that_keeps_a_tensor_with_a_graph_can_be_verified() -> None:
    """The old weight normalization; false alarm 1e-6."""
    verdict = verified(nn.Sequential(nn.utils.weight_norm(nn.Linear(20, 8)), nn.Tanh(), nn.Linear(8, 4)))
    assert verdict.passed, str(verdict)


class Halved(nn.Module):
    """A model that computes in bfloat16: by autocast, or by its parameters."""

    def __init__(self, *, autocast: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 4))
        if not autocast:
            self.layers.to(torch.bfloat16)
        self.autocast = autocast

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            out: Tensor = self.layers(x if self.autocast else x.to(torch.bfloat16))
        return out.float()


@pytest.mark.statistical
@pytest.mark.parametrize("options", [{"autocast": True}, {"autocast": True, "dropout": 0.3}, {"autocast": False}])
def test_a_model_in_16_bits_passes(options: dict[str, Any]) -> None:
    """The session refuses a mean of its losses, so that the loop's criterion gives their sum; false alarm 3e-6."""
    verdict = verified(Halved(**options))
    assert verdict.passed, str(verdict)


@pytest.mark.parametrize("autocast", [True, False])
def test_a_wrong_clip_norm_of_a_model_in_16_bits_is_found(monkeypatch: pytest.MonkeyPatch, autocast: bool) -> None:
    monkeypatch.setattr(FlatClipping, "factors", lambda _, norms: (4 * C / norms).clamp(max=1.0))
    assert not verified(Halved(autocast=autocast)).passed
