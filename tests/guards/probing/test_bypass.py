"""Calls of the model's parts from its own methods: refused where nobody can run again what the method computes."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hushgrad import DPSGD, FlatClipping, PoissonSampling, PrivacyEngine, Session, privatize
from hushgrad.errors import CrossSampleLeakError, UnsupportedModelError
from hushgrad.randomness import KeyStream


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def embed(self, x: Tensor) -> Tensor:
        h = self.one(x)
        return self.two(h - h.mean(0).detach())

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))

    @torch.autocast("cpu", enabled=False)
    def encode(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        return self.head(h - h.mean(0).detach())

    def training_step(self, x: Tensor) -> Tensor:
        return self(x).square().sum(1)


Way = Callable[[Any, Tensor], Tensor]


def train(way: Way, model: nn.Module | None = None) -> Session:
    """Two steps of a loop without a loader, whose own code nobody can run again."""
    model = model or Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.5), expected_batch_size=4
    )
    session = privatize(model, optimizer, mechanism, key=KeyStream.fixed_for_tests(1))
    for x in torch.randn(2, 4, 3):
        session.backward(way(model, x).square().flatten(1).sum(1))
        optimizer.step()
    return session


def with_loader(way: Way) -> PrivacyEngine:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = PrivacyEngine(test_key=1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(list(torch.randn(8, 3)), batch_size=4),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    for x in loader:
        engine.session.backward(way(model, x).square().flatten(1).sum(1))
        optimizer.step()
    return engine


def bound(model: nn.Module) -> nn.Module:
    def encode(self: Any, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).tanh())

    model.encode = types.MethodType(encode, model)  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(
    ("way", "match"),
    [
        (lambda model, x: model.forward(x), r"its forward.*model\(\.\.\.\) in place of model\.forward"),
        (lambda model, x: model.encode(x), r"its method encode"),
        (lambda model, x: model.head(model.encoder.embed(x)), r"Encoder.*its method embed"),
        (lambda model, x: model.head(model.encoder.forward(x)), r"Encoder.*its forward"),
        (lambda model, x: type(model).encode(model, x), r"its method encode"),
    ],
    ids=["forward", "a method", "a part's method", "a part's forward", "unbound"],
)
def test_a_method_that_runs_parts_past_the_call_of_the_model_is_refused_with_the_cure(way: Way, match: str) -> None:
    with pytest.raises(UnsupportedModelError, match=match):
        train(way)


def test_a_function_that_was_set_on_the_model_is_one_of_its_methods() -> None:
    with pytest.raises(UnsupportedModelError, match="its method encode"):
        train(lambda model, x: model.encode(x), bound(Model()))


@pytest.mark.parametrize(
    "way",
    [
        lambda model, x: model(x),
        lambda model, x: model.__call__(x),
        lambda model, x: model.training_step(x).unsqueeze(1),
        lambda model, x: model.head(model.encoder(x)),
    ],
    ids=["call", "dunder", "a step that calls the model", "parts called by the loop"],
)
def test_calls_of_the_model_and_of_its_parts_by_the_loop_are_no_bypass(way: Way) -> None:
    assert train(way).steps == 2


def test_with_a_loader_a_method_that_runs_parts_trains_if_it_mixes_nothing() -> None:
    assert with_loader(lambda model, x: model.forward(x)).session.steps == 2
    with pytest.raises(CrossSampleLeakError, match=r"test_bypass\.py, line"):
        with_loader(lambda model, x: model.encode(x))
