"""Models that people really train: exact against one example at a time, and none refused by the engine."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES
from clean_models import CLEAN, Clean, call, losses, rows
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hushgrad import PrivacyEngine
from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.clipping.flat import FlatClipping
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time

ZOO = {**CLEAN, **ARCHITECTURES}
B = 4


def built(name: str) -> tuple[nn.Module, Clean]:
    entry = ZOO[name]
    model = entry.make()
    return model, entry


def median_norm(per_example: dict[str, Tensor]) -> float:
    squares = [value.double().reshape(B, -1).square().sum(1) for value in per_example.values()]
    return float(torch.stack(squares).sum(0).sqrt().median())


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """‖found − wanted‖ / ‖wanted‖ over all parameters together; a parameter that is missing has the gradient 0."""
    zero = {name: torch.zeros_like(value) for name, value in wanted.items()}
    difference = sum(float((found.get(name, zero[name]) - wanted[name]).double().square().sum()) for name in wanted)
    return (difference / sum(float(value.double().square().sum()) for value in wanted.values())) ** 0.5


def captured(model: nn.Module, inputs: Any, entry: Clean, limit: float) -> dict[str, Tensor]:
    pool = UsePool()
    pool.batch_size = B
    scope = Scope(model, pool)
    try:
        losses(entry.take(call(model, inputs))).sum().backward()
    finally:
        scope.detach()
    return clipped_sums(pool.take(), clip=FlatClipping(limit))


def test_the_zoo_has_at_least_sixty_models() -> None:
    assert len(ZOO) >= 60


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ZOO)
def test_a_clean_model_agrees_with_one_example_at_a_time(name: str) -> None:
    model, entry = built(name)
    model.eval()
    inputs = entry.inputs(B)
    alone = copy.deepcopy(model)
    runs = [lambda i=i: losses(entry.take(call(alone, rows(inputs, slice(i, i + 1))))).sum() for i in range(B)]
    per_example = one_at_a_time(alone, runs)
    limit = median_norm(per_example)
    assert limit > 0
    found = captured(model, inputs, entry, limit)
    assert distance(found, clipped_sum_of(per_example, FlatClipping(limit))) <= 1e-5
    used = {key for key, value in per_example.items() if bool(value.any())}
    assert used <= set(found)


class Records(Dataset[Any]):
    """The examples of a batch of inputs, one by one."""

    def __init__(self, inputs: Any, size: int) -> None:
        self.inputs, self.size = inputs, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.inputs, dict):
            return {name: value[index] for name, value in self.inputs.items()}
        return tuple(value[index] for value in self.inputs) if isinstance(self.inputs, tuple) else self.inputs[index]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ZOO)
def test_a_clean_model_trains_a_step_and_is_not_refused(name: str) -> None:
    model, entry = built(name)
    frozen = {part for part in model.modules() if not part.training}
    model.train()
    for part in frozen:
        part.eval()
    before = {key: value.detach().clone() for key, value in model.named_parameters() if value.requires_grad}
    engine = PrivacyEngine(test_key=1)
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1),
        data_loader=DataLoader(Records(entry.inputs(B), B), batch_size=B),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    for inputs in loader:
        optimizer.zero_grad()
        engine.session.backward(losses(entry.take(call(model, inputs))))
        optimizer.step()
    assert engine.session.probe_report.examined
    now = dict(model.named_parameters())
    assert all(not torch.equal(now[key], value) for key, value in before.items())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ZOO)
def test_a_clean_model_with_a_per_example_loss_takes_nothing_on_trust(name: str) -> None:
    model, entry = built(name)
    frozen = {part for part in model.modules() if not part.training}
    model.train()
    for part in frozen:
        part.eval()
    engine = PrivacyEngine(test_key=1, strict=True)
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1),
        data_loader=DataLoader(Records(entry.inputs(B), B), batch_size=B),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    criterion = engine.per_example(lambda output, _: losses(entry.take(output)))
    for inputs in loader:
        criterion(call(model, inputs), torch.zeros(B)).backward()
        optimizer.step()
    assert engine.session._parts.probe.conditions == ()
