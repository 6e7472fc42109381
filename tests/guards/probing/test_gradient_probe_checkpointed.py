"""The gradient of one example beside others and alone, also where a model runs a backward inside its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.errors import CrossSampleLeakError, HushgradError
from hushgrad.guards.probing.gradient_probe import GradientProbe

WIDTH, CLASSES, BATCH = 3, 2, 8
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
Part = Callable[[Tensor], Tensor]


class Checkpointed(nn.Module):
    """A model whose middle is computed again in its backward, the old way."""

    def __init__(self, part: nn.Module | None = None, change: Part | None = None, way: str = "part") -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, 4), nn.Linear(4, CLASSES)
        self.part = part or nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.change = change
        self.way = way

    def middle(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.part(hidden)
        if self.way == "nested":
            out = checkpoint(self.part, out, use_reentrant=True)
        return out if self.change is None else self.change(out)

    def forward(self, x: Tensor) -> Any:
        hidden = torch.tanh(self.first(x))
        if self.way == "plain":
            return self.last(self.middle(hidden))
        if self.way == "sequential":
            assert isinstance(self.part, nn.Sequential)
            return self.last(checkpoint_sequential(self.part, 2, hidden, use_reentrant=True))
        if self.way == "last":
            return checkpoint(self.last, self.middle(hidden), use_reentrant=True)
        return self.last(checkpoint(self.middle, hidden, use_reentrant=True))


def trained(model: nn.Module, steps: int = 2) -> PrivacyEngine:
    """Train a few steps."""
    torch.manual_seed(4)
    engine = PrivacyEngine()
    data = TensorDataset(torch.randn(40, WIDTH), torch.randn(40, CLASSES))
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=BATCH),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    for (x, y), _ in zip(loader, range(steps), strict=False):
        engine.session.backward((model(x) - y).square().mean(1))
        optimizer.step()
    return engine


@pytest.mark.parametrize("way", ["part", "nested", "sequential", "last"])
def test_reentrant_checkpointing_passes_the_probe(way: str) -> None:
    engine = trained(Checkpointed(way=way))
    assert engine.session.steps == 2
    assert engine.session.probe_report.examined


def test_reentrant_checkpointing_with_dropout_passes_the_probe() -> None:
    model = Checkpointed(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.4), nn.Linear(4, 4)))
    assert trained(model).session.probe_report.examined


class OwnNoise(nn.Module):
    """Noise from a generator that the model keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.generator = nn.Linear(4, 4), torch.Generator().manual_seed(3)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.layer(h)
        return out + 0.1 * torch.randn(h.shape, generator=self.generator)


def test_noise_from_a_generator_of_the_model_is_not_taken_for_mixing() -> None:
    """Fewer examples get other noise, as from the global generator."""
    assert trained(Checkpointed(OwnNoise(), way="plain")).session.probe_report.examined
    with pytest.raises(HushgradError, match=r"mixes the examples|cannot be told apart"):
        trained(Checkpointed(OwnNoise(), change=centred, way="plain"))


def centred(h: Tensor) -> Tensor:
    return h - h.mean(0)


def centred_gradient(h: Tensor) -> Tensor:
    if h.requires_grad:
        h.register_hook(lambda gradient: gradient - gradient.mean(0))
    return h


@pytest.mark.parametrize("change", [centred, centred_gradient])
def test_a_leak_inside_reentrant_checkpointing_is_found(change: Part) -> None:
    with pytest.raises(HushgradError) as caught:
        trained(Checkpointed(change=change))
    assert caught.value.code in ("DP301", "DP304")
    if change is centred_gradient:
        assert isinstance(caught.value, CrossSampleLeakError)
        assert "the gradient of one example depends on the others" in str(caught.value)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_probe_of_a_gradient_leaves_no_gradient_behind(monkeypatch: pytest.MonkeyPatch, frozen: bool) -> None:
    model = Checkpointed()
    if frozen:
        model.part.requires_grad_(False)
    examined, right = [], GradientProbe.require_own_gradient

    def watched(probe: GradientProbe, *args: Any, **named: Any) -> Any:
        leaves = [*model.parameters(), probe.probed.scope.anchor]
        before = [leaf.grad for leaf in leaves]
        marks = [None if gradient is None else gradient.clone() for gradient in before]
        found = right(probe, *args, **named)
        for leaf, gradient, mark in zip(leaves, before, marks, strict=True):
            assert leaf.grad is gradient
            assert mark is None or torch.equal(mark, gradient)
        examined.append(found)
        return found

    monkeypatch.setattr(GradientProbe, "require_own_gradient", watched)
    trained(model)
    assert examined
