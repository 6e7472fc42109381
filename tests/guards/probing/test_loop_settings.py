"""What a loop sets beside tensors is compared from item to item; what a forward changes by itself is not."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine
from hushgrad.guards.probing.loop_settings import LoopSettings


class Counting(nn.Module):
    """Counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls, self.scale, self.shift = nn.Linear(3, 2), 0, 1.0, torch.ones(2)
        self.register_buffer("centre", torch.zeros(3))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self) -> None:
        self.calls += 1
        self.seen += 1


def changed(between: Callable[[Counting], Any], *inputs: Any) -> bool:
    """Tell of two items, each with one of the inputs, or both with the same; return whether the settings changed."""
    model = Counting()
    settings = LoopSettings(model)
    found = False
    for given in (inputs[0], inputs[-1]):
        settings.given(((given,), {}), 4)
        model()
        settings.returned()
        found = settings.have_changed()
        between(model)
    return found


def nothing(model: Counting) -> None:
    """A loop that sets nothing."""


@pytest.mark.parametrize(
    "set_",
    [
        lambda m: m.eval(),
        lambda m: setattr(m, "scale", 2.0),
        lambda m: m.layer.requires_grad_(False),
        lambda m: m.centre.add_(torch.tensor([0.0, 0.0, 1.0])),
        lambda m: setattr(m, "shift", torch.tensor([1.0, 2.0])),
        lambda m: m.shift.data.mul_(2),
    ],
)
def test_modes_attributes_buffers_and_what_is_trained_are_compared(set_: Callable[[Counting], Any]) -> None:
    assert changed(set_, torch.ones(4, 3))


@pytest.mark.parametrize(("one", "other"), [(1, 2), (True, False), (0.5, 0.25), ("a", "b"), (None, 3)])
def test_numbers_and_flags_that_are_passed_are_compared(one: Any, other: Any) -> None:
    assert changed(nothing, one, other)
    assert changed(nothing, {"a": [one, 7]}, {"a": [other, 7]})
    assert not changed(nothing, one, one)


def test_counters_of_forwards_lengths_of_inputs_and_entries_of_examples_are_not() -> None:
    assert not changed(nothing, torch.ones(4, 3))
    assert not changed(nothing, (torch.ones(4, 3), 3), (torch.ones(4, 5), 5))
    assert not changed(nothing, [1, 2, 3, 4], [5, 6, 7, 8])


def test_an_item_that_is_forgotten_is_compared_with_none() -> None:
    settings = LoopSettings(None)
    for number in (1, 2):
        settings.given(((number,), {}), 4)
        settings.returned()
        settings.forget()
    assert not settings.have_changed()


WEIGHTS = torch.ones(2)


class Weighed(nn.Module):
    """A criterion that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(2))
        self.kept = {"scale": 1.0, "calls": 0}

    def forward(self) -> None:
        self.kept["calls"] += self.kept["scale"] * float(WEIGHTS[0])


@pytest.mark.parametrize(
    ("write", "is_told"),
    [
        (lambda criterion: criterion.weight.mul_(2), True),
        (lambda criterion: criterion.kept.update(scale=2.0), True),
        (lambda criterion: WEIGHTS.mul_(2), True),
        (lambda criterion: None, False),
    ],
)
def test_what_a_criterion_reads_is_compared_but_for_what_its_calls_change(write: Any, is_told: bool) -> None:
    criterion, settings = Weighed(), LoopSettings(None)
    for _ in range(2):
        settings.evaluating(criterion)
        criterion()
        settings.evaluated(criterion)
        found = settings.have_changed()
        write(criterion)
    assert found == is_told


def loop_that(writes: str) -> set[str]:
    """Train two passes of a model that reads nested settings; return the names of the conditions."""
    torch.manual_seed(0)
    level = {"t": 1.0}

    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.part, self.seen = nn.Linear(3, 2), SimpleNamespace(t=[1.0]), {"rows": 0}

        def forward(self, x: Tensor) -> Tensor:
            self.seen["rows"] += len(x)
            return self.layer(x) / self.part.t[0] / level["t"]  # type: ignore[no-any-return]

    engine, model = PrivacyEngine(), Reading()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(torch.randn(24, 3), batch_size=4),  # type: ignore[arg-type]
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    criterion, report = engine.per_example(lambda out: out.square().sum(1)), []
    for _ in range(2):
        largest = 1.0
        for x in loader:
            criterion(model(x)).backward()
            optimizer.step()
            largest = max(largest, float(x.abs().max()))
            report.append(largest)
            if writes == "each step":
                model.part.t[0] = largest
        if writes == "each pass":
            level["t"] = largest
        if writes == "the same":
            level["t"], model.part.t[0] = 1.0, 1.0
    return {condition.name for condition in engine.guarantee(1e-5).conditions}


@pytest.mark.parametrize("writes", ["each step", "each pass", "the same", "nothing"])
def test_a_loop_that_writes_what_a_forward_reads_states_the_condition(writes: str) -> None:
    assert ("losses that change between batches" in loop_that(writes)) == writes.startswith("each")
