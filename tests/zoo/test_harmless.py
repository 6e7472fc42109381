"""What looks like a leak and is none trains: the probe refuses nothing here, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harmless_models import CRITERIA, ON_FEATURES, ON_TOKENS
from leaky_models import BATCH, CLASSES, WIDTH
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine

LOGITS: dict[str, Callable[[Any], Tensor]] = {
    "tensor": lambda out: out,
    "float64": lambda out: out,
    "dataclass": lambda out: out.logits,
    "dictionary": lambda out: out["logits"],
    "tuple": lambda out: out[0],
}

MOST_FORWARDS = 8.4
"""A backward counts as two; the example alone as a part of one."""

FOR_DRAWS = 7 / 8
"""Draws `[B, n]` are compared once more, on four examples and on three of eight."""

FOR_A_SECOND_LOOK = 2.0
"""More for a model that keeps activations, or whose values decide how many random numbers are drawn."""


def train(
    model: nn.Module, x: Tensor, loss: Callable[[PrivacyEngine, nn.Module, Tensor, Tensor], None], steps: int = 3
) -> PrivacyEngine:
    engine = PrivacyEngine(test_key=1)
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, weight_decay=0.1),
        data_loader=DataLoader(TensorDataset(x, torch.arange(len(x)) % CLASSES), batch_size=BATCH),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    for _, (features, labels) in zip(range(steps), loader, strict=False):
        optimizer.zero_grad()
        loss(engine, model, features, labels)
        optimizer.step()
    assert engine.session.steps == steps
    return engine


def features() -> Tensor:
    return torch.randn(3 * BATCH, WIDTH)


def tokens() -> Tensor:
    return torch.randint(0, 11, (3 * BATCH, 5))


@pytest.mark.parametrize("path", ["criterion", "losses", "scalar"])
@pytest.mark.parametrize(
    ("name", "make", "kind"), [*ON_FEATURES, *ON_TOKENS], ids=[case[0] for case in [*ON_FEATURES, *ON_TOKENS]]
)
def test_a_harmless_model_trains(name: str, make: Callable[[], nn.Module], kind: str, path: str) -> None:
    """Guarantee: the probe costs at most about eight forwards of one batch."""

    def loss(engine: PrivacyEngine, model: nn.Module, x: Tensor, y: Tensor) -> None:
        x = x.double() if kind == "float64" else x
        if kind == "own loss":
            model(x)["loss"].backward()
        elif path == "criterion":
            engine.per_example(nn.CrossEntropyLoss())(LOGITS[kind](model(x)), y).backward()
        elif path == "losses":
            engine.session.backward(F.cross_entropy(LOGITS[kind](model(x)), y, reduction="none"))
        else:
            F.cross_entropy(LOGITS[kind](model(x)), y).backward()

    on_tokens = any(name == case[0] for case in ON_TOKENS)
    report = train(make(), tokens() if on_tokens else features(), loss).session.probe_report
    assert report.examined
    assert report.calls == 1
    extra = FOR_A_SECOND_LOOK if "cached" in name or "random leaky" in name else 0
    extra += FOR_DRAWS if name.startswith("noise") else 0
    assert report.forwards <= MOST_FORWARDS + extra


@pytest.mark.parametrize(("name", "make"), CRITERIA, ids=[case[0] for case in CRITERIA])
def test_a_harmless_criterion_trains(name: str, make: Callable[[], Any]) -> None:
    criterion: list[Any] = []

    def loss(engine: PrivacyEngine, model: nn.Module, x: Tensor, y: Tensor) -> None:
        criterion[:] = criterion or [engine.per_example(make())]
        criterion[0](model(x), y).backward()

    assert train(nn.Linear(WIDTH, CLASSES), features(), loss).session.probe_report.criteria == 1


def test_the_zoo_holds_at_least_twenty_look_alikes() -> None:
    assert len(ON_FEATURES) + len(ON_TOKENS) + len(CRITERIA) >= 20
