"""What a loop writes into collate_fn or the dataset between two items is told; what changes in a draw is not."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hushgrad import PrivacyEngine
from hushgrad.guards.probing.item_settings import ItemSettings


class Collator:
    """Keeps what it takes away, a counter and a part of its own."""

    def __init__(self) -> None:
        self.shift: Any = torch.zeros(4)
        self.calls, self.width = 0, 5
        self.part = SimpleNamespace(scale=np.ones(4), names={"a": 1})

    def __call__(self, records: Any) -> Tensor:
        self.calls += 1
        return torch.stack(list(records)) - self.shift  # type: ignore[no-any-return]


class Records(Dataset[Tensor]):
    def __init__(self) -> None:
        self.x, self.shift, self.read = torch.randn(24, 4), torch.zeros(4), 0

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Tensor:
        self.read += 1
        return self.x[index] - self.shift


class Trainer:
    """Has a collate function among its methods, and counts its steps."""

    def __init__(self) -> None:
        self.steps, self.shift = 0, 0.0

    def collate(self, records: Any) -> Tensor:
        return self.shifted(torch.stack(list(records)))

    def shifted(self, x: Tensor) -> Tensor:
        return x - self.shift


def changed(collate_fn: Any, dataset: Any, between: Callable[[], Any], model: nn.Module | None = None) -> bool:
    """Draw three items that are looked at; return whether the loop changed what makes them."""
    settings = ItemSettings(model)
    for _ in range(3):
        settings.before_draw(collate_fn, dataset, is_wanted=True)
        collate_fn([dataset[n] for n in range(4)])
        settings.drawn(collate_fn, dataset)
        between()
    settings.before_draw(collate_fn, dataset, is_wanted=False)
    return settings.have_changed


WRITES: dict[str, Callable[[Collator, Records], Any]] = {
    "a tensor": lambda c, d: setattr(c, "shift", c.shift + 1),
    "a tensor in its place": lambda c, d: c.shift.add_(1),
    "a number": lambda c, d: setattr(c, "width", c.width + 1),
    "an array of a part": lambda c, d: np.add(c.part.scale, 1, out=c.part.scale),
    "an entry": lambda c, d: c.part.names.update(a=2),
    "a new attribute": lambda c, d: setattr(c, "mean", 1.0),
    "the dataset's tensor": lambda c, d: setattr(d, "shift", d.shift + 1),
    "the dataset's number": lambda c, d: setattr(d, "epoch", getattr(d, "epoch", 0) + 1),
}


@pytest.mark.parametrize("write", WRITES)
def test_what_the_loop_writes_into_collate_fn_or_the_dataset_is_told(write: str) -> None:
    collator, records = Collator(), Records()
    assert changed(collator, records, lambda: WRITES[write](collator, records))


def test_counters_of_draws_constants_and_the_model_are_not() -> None:
    collator, records, model = Collator(), Records(), nn.Linear(4, 3)
    collator.part.model = model

    def train() -> None:
        collator.width = 5
        with torch.no_grad():
            model.weight.add_(1)

    assert not changed(collator, records, train, model)


def test_a_variable_around_a_function_is_told_and_of_a_method_s_object_what_the_method_reads() -> None:
    trainer, records, kept = Trainer(), Records(), {"shift": 0.0}

    def shifted(rows: Any) -> Tensor:
        return torch.stack(list(rows)) - kept["shift"]

    assert changed(shifted, records, lambda: kept.update(shift=kept["shift"] + 1))
    assert not changed(trainer.collate, records, lambda: setattr(trainer, "steps", trainer.steps + 1))
    assert changed(trainer.collate, records, lambda: setattr(trainer, "shift", trainer.shift + 1))


def test_items_that_are_not_looked_at_are_not_compared() -> None:
    collator, records, settings = Collator(), Records(), ItemSettings(None)
    for _ in range(3):
        settings.before_draw(collator, records, is_wanted=False)
        collator.width += 1
    assert not settings.have_changed


@pytest.mark.parametrize("writes", [True, False])
def test_a_loop_that_writes_there_states_the_condition(writes: bool) -> None:
    engine, model, collator = PrivacyEngine(), nn.Linear(4, 3), Collator()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(Records(), batch_size=8, collate_fn=collator),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    criterion = engine.per_example(lambda out: out.square().sum(1))
    for x in loader:
        criterion(model(x)).backward()
        optimizer.step()
        if writes:
            collator.shift = x.mean(0)
    names = {condition.name for condition in engine.guarantee(1e-5).conditions}
    assert ("losses that change between batches" in names) == writes


def test_what_changes_between_items_that_are_looked_at_is_told_however_many_items_later() -> None:
    for writes in (False, True):
        collator, records, settings = Collator(), Records(), ItemSettings(None)
        for item in range(9):
            is_looked_at = item in (0, 1, 7)
            settings.before_draw(collator, records, is_wanted=item < 2)
            collator([records[n] for n in range(4)])
            if is_looked_at:
                settings.drawn(collator, records)
            if writes and item == 4:
                records.shift = records.shift + 1
        assert settings.have_changed == writes


class Labelled(Dataset[Any]):
    """Labels, a level and an order that a loop may write."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(24, 4, generator=generator), torch.randint(0, 3, (24,), generator=generator)
        self.level, self.order, self.reads = torch.zeros(4), list(range(24)), 0

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads += 1
        index = self.order[index]
        return self.x[index] - self.level, self.y[index]


def relabelled(data: Labelled) -> None:
    centres = torch.stack([data.x[data.y == label].mean(0) for label in range(3)])
    data.y = torch.cdist(data.x, centres).argmin(1)


AT_THE_END: dict[str, tuple[Callable[[Labelled], Any], bool]] = {
    "labels by class centres": (relabelled, True),
    "a level": (lambda data: setattr(data, "level", data.x.mean(0)), True),
    "a level in its place": (lambda data: data.level.copy_(data.x.mean(0)), True),
    "an order": (lambda data: data.order.sort(key=lambda n: float(data.x[n, 0])), True),
    "the same labels": (lambda data: setattr(data, "y", data.y.clone()), False),
    "nothing": (lambda data: None, False),
}


@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize("what", AT_THE_END)
def test_what_a_loop_writes_at_the_end_of_a_pass_states_the_condition(what: str, breaks: bool) -> None:
    write, is_told = AT_THE_END[what]
    engine, model, data = PrivacyEngine(), nn.Linear(4, 3), Labelled()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=4),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for _ in range(2):
        for step, (x, y) in enumerate(loader):
            criterion(model(x), y).backward()
            optimizer.step()
            if breaks and step == 4:
                break
        write(data)
    names = {condition.name for condition in engine.guarantee(1e-5).conditions}
    assert ("losses that change between batches" in names) == is_told
