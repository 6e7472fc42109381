"""A collate function that keeps what follows the records is refused by its place; counters, caches, buffers are not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from hushgrad import PrivacyEngine
from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.collate_probe import require_separate_rows
from hushgrad.guards.probing.collate_runs import CollateRuns
from hushgrad.guards.probing.state import State

Collate = Callable[[list[Tensor]], Any]

GLOBAL: dict[str, float] = {"largest": 1.0}


def largest(records: list[Tensor]) -> float:
    return max(float(record.abs().max()) for record in records)


class InAttribute:
    def __init__(self) -> None:
        self.held: Any = 1.0

    def __call__(self, records: list[Tensor]) -> Tensor:
        self.held = max(self.held, largest(records))
        return torch.stack(records) / self.held


class Silent(InAttribute):
    """Keeps what nothing reads yet."""

    def __call__(self, records: list[Tensor]) -> Tensor:
        self.held = self.kept(records)
        return torch.stack(records)

    def kept(self, records: list[Tensor]) -> Any:
        return max(self.held, largest(records))


class OfTheLast(Silent):
    def kept(self, records: list[Tensor]) -> Any:
        return largest(records)


class AsATensor(Silent):
    def kept(self, records: list[Tensor]) -> Any:
        return torch.stack(records).mean(0)


class AsAnArray(Silent):
    def kept(self, records: list[Tensor]) -> Any:
        return torch.stack(records).mean(0).numpy()


class AsAList(Silent):
    def kept(self, records: list[Tensor]) -> Any:
        return [record.clone() for record in records]


class InASet(Silent):
    def kept(self, records: list[Tensor]) -> Any:
        return {largest(records)}


class InADict(Silent):
    def __init__(self) -> None:
        self.held = {"largest": 1.0}

    def kept(self, records: list[Tensor]) -> Any:
        return {"largest": max(self.held["largest"], largest(records))}


class CalledKeys(Silent):
    """An attribute whose name is that of the list of a dictionary's keys."""

    def __call__(self, records: list[Tensor]) -> Tensor:
        self.keys = (largest(records),)
        return torch.stack(records)


class AsKeys(InAttribute):
    """Divides by the keys of a dictionary."""

    def __init__(self) -> None:
        self.held = {}

    def __call__(self, records: list[Tensor]) -> Tensor:
        self.held[largest(records)] = None
        return torch.stack(records) / max(self.held)


class InABuffer:
    """Rows of others enter a row of the buffer behind them."""

    def __init__(self) -> None:
        self.buffer = torch.zeros(9, 3)

    def __call__(self, records: list[Tensor]) -> Tensor:
        torch.stack(records, out=self.buffer[: len(records)])
        self.buffer[-1] = self.buffer[: len(records)].mean(0)
        return self.buffer[: len(records)]


class ReadsItsBuffer:
    def __init__(self) -> None:
        self.buffer = torch.zeros(8, 3)

    def __call__(self, records: list[Tensor]) -> Tensor:
        x = torch.stack(records) + 0.5 * self.buffer[: len(records)]
        self.buffer[: len(records)] = torch.stack(records)
        return x


def in_closure() -> Collate:
    held = 1.0

    def collate(records: list[Tensor]) -> Tensor:
        nonlocal held
        held = max(held, largest(records))
        return torch.stack(records)

    return collate


def in_default() -> Collate:
    def collate(records: list[Tensor], held: list[float] = [1.0]) -> Tensor:  # noqa: B006
        held[0] = max(held[0], largest(records))
        return torch.stack(records)

    return collate


def in_function() -> Collate:
    def collate(records: list[Tensor]) -> Tensor:
        collate.largest = max(collate.largest, largest(records))  # type: ignore[attr-defined]
        return torch.stack(records)

    collate.largest = 1.0  # type: ignore[attr-defined]
    return collate


def in_partial() -> Collate:
    def collate(held: list[float], records: list[Tensor]) -> Tensor:
        held.append(largest(records))
        return torch.stack(records)

    return functools.partial(collate, [])


def in_global() -> Collate:
    def collate(records: list[Tensor]) -> Tensor:
        GLOBAL["largest"] = max(GLOBAL["largest"], largest(records))
        return torch.stack(records)

    return collate


def in_method() -> Collate:
    return InAttribute().__call__


LEAKY: dict[str, tuple[Callable[[], Collate], str]] = {
    "an attribute": (InAttribute, "held"),
    "an attribute that nothing reads": (Silent, "held"),
    "an attribute, of the last batch": (OfTheLast, "held"),
    "a tensor": (AsATensor, "held"),
    "an array": (AsAnArray, "held"),
    "a list of records": (AsAList, "held"),
    "a set": (InASet, "held"),
    "a dict": (InADict, r"held.largest"),
    "a tuple called keys": (CalledKeys, "keys"),
    "the keys of a dict": (AsKeys, "held"),
    "a row of the buffer": (InABuffer, "buffer"),
    "a buffer that is read": (ReadsItsBuffer, "buffer"),
    "a closure": (in_closure, "held"),
    "a default": (in_default, "held"),
    "a function's attribute": (in_function, "largest"),
    "a partial": (in_partial, "args.0"),
    "a global": (in_global, "GLOBAL.largest"),
    "a method's object": (in_method, "self.held"),
}


class Counting:
    def __init__(self) -> None:
        self.calls = 0
        self.names: list[str] = []

    def __call__(self, records: list[Tensor]) -> Tensor:
        self.calls += 1
        self.names.append("called")
        return torch.stack(records)


class OfConstants:
    """Makes what it needs in its first call."""

    def __init__(self) -> None:
        self.scale: Tensor | None = None

    def __call__(self, records: list[Tensor]) -> Tensor:
        if self.scale is None:
            self.scale = torch.full((3,), 0.5)
        return torch.stack(records) * self.scale


class ByLength:
    """A cache of masks, by lengths that come with the records."""

    def __init__(self) -> None:
        self.masks: dict[int, Tensor] = {}

    def __call__(self, records: list[Tensor]) -> dict[str, Tensor]:
        x = pad_sequence(records, batch_first=True)
        mask = self.masks.setdefault(x.shape[1], torch.ones(x.shape[1], x.shape[1]).tril())
        return {"x": x, "mask": mask}


@functools.lru_cache
def triangle(length: int) -> Tensor:
    return torch.ones(length, length).tril()


def by_lru_cache(records: list[Tensor]) -> tuple[Tensor, Tensor]:
    x = pad_sequence(records, batch_first=True)
    return x, triangle(x.shape[1])


class Buffered:
    """Fills one buffer again and again: of tensors or of an array, with a copy or without, records first or second."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.buffer = torch.zeros((12, 8, 3) if kind == "time first" else (8, 12, 3))
        self.array = self.buffer.numpy() if kind == "an array" else None

    def __call__(self, records: list[Tensor]) -> Tensor:
        self.buffer.zero_()
        rows = self.buffer.transpose(0, 1) if self.kind == "time first" else self.buffer
        for row, record in zip(rows, records, strict=False):
            row[: len(record)] = record
        width = max(map(len, records))
        found = rows[: len(records), :width]
        return found.clone() if self.kind == "a copy" else found


class Noisy:
    """Draws from a generator of its own, as many numbers as the padded batch has."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)

    def __call__(self, records: list[Tensor]) -> Tensor:
        x = pad_sequence(records, batch_first=True)
        return x * torch.bernoulli(torch.full(x.shape, 0.5), generator=self.generator)


HARMLESS: dict[str, Callable[[], Collate]] = {
    "a counter": Counting,
    "constants": OfConstants,
    "masks by length": ByLength,
    "masks under lru_cache": lambda: by_lru_cache,
    **{f"a buffer, {kind}": functools.partial(Buffered, kind) for kind in ("", "an array", "a copy", "time first")},
    "a generator": Noisy,
}

FLAT = [scale * torch.ones(3) for scale in (2.0, 7.0, 1.0, 9.0, 3.0, 0.5)]
LONG = [torch.randn(2 + place, 3, generator=torch.Generator().manual_seed(place)) for place in range(6)]


@pytest.mark.parametrize("kind", LEAKY)
def test_what_follows_the_records_is_refused_by_its_place(kind: str) -> None:
    make, place = LEAKY[kind]
    with pytest.raises(CrossSampleLeakError, match=rf"collate_fn \w+: keeps '[\w.]*{place}[\w.]*', which follows"):
        require_separate_rows(CollateRuns(make()), FLAT)


@pytest.mark.parametrize("kind", HARMLESS)
def test_counters_constants_caches_and_buffers_are_not_refused(kind: str) -> None:
    records = FLAT if kind in ("a counter", "constants") else LONG
    assert require_separate_rows(CollateRuns(HARMLESS[kind]()), records) is not None


@pytest.mark.parametrize("kind", ["a counter", "constants", "masks by length", "a buffer, ", "a generator"])
def test_afterwards_the_function_keeps_what_it_kept_before(kind: str) -> None:
    collate = HARMLESS[kind]()
    before = State(collate)
    collate(FLAT if kind in ("a counter", "constants") else LONG)
    now, runs = State(collate), CollateRuns(collate, before)
    with runs.begun():
        require_separate_rows(runs, FLAT if kind in ("a counter", "constants") else LONG)
        assert not before.moved()
    assert not now.moved()


def test_a_message_holds_no_key_that_came_with_the_records() -> None:
    class Keyed:
        def __init__(self) -> None:
            self.held: dict[str, dict[str, float]] = {}

        def __call__(self, records: list[Tensor]) -> Tensor:
            self.held.setdefault("Mr. Smith", {"largest": 0.0})["largest"] = largest(records)
            return torch.stack(records)

    with pytest.raises(CrossSampleLeakError, match=r"held\.\[\.\.\.\]") as caught:
        require_separate_rows(CollateRuns(Keyed()), FLAT)
    assert "Smith" not in str(caught.value)


def trained(collate: Any, data: Any = None, batches: int = 2) -> PrivacyEngine:
    records = FLAT * 2 if data is None else data
    model, engine = nn.Linear(3, 2), PrivacyEngine(test_key=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(records, batch_size=len(records) // batches, collate_fn=collate),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    for x in loader:
        engine.session.backward(model(x).square().sum(1))
        optimizer.step()
    return engine


@pytest.mark.parametrize("kind", ["an attribute", "an attribute that nothing reads", "a closure", "a global"])
def test_a_largest_value_so_far_is_refused_though_the_first_item_has_raised_it_already(kind: str) -> None:
    GLOBAL["largest"] = 1.0
    with pytest.raises(CrossSampleLeakError, match="which follows the records"):
        trained(LEAKY[kind][0]())


@pytest.mark.parametrize("kind", ["a counter", "constants"])
def test_a_counter_goes_on_as_if_nobody_had_looked(kind: str) -> None:
    collate = HARMLESS[kind]()
    assert "not examined" not in {c.name for c in trained(collate).session.guarantee(1e-5, "rdp").conditions}
    assert getattr(collate, "calls", 2) == 2


class Table(Dataset[Tensor]):
    """More than is looked at, and it counts what is read."""

    def __init__(self) -> None:
        self.rows = [[float(place)] * 3 for place in range(30_000)]
        self.read = 0

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        self.read += 1
        return torch.tensor(self.rows[index])

    def collate(self, records: list[Tensor]) -> Tensor:
        return torch.stack(records)


def test_what_the_dataset_keeps_is_not_looked_at_where_the_function_is_its_method_or_holds_it() -> None:
    table = Table()
    for collate in (table.collate, lambda records: torch.stack(records) * len(table) / 12):
        engine = trained(collate, table)
        assert "not examined" not in {c.name for c in engine.session.guarantee(1e-5, "rdp").conditions}


def test_what_the_function_keeps_out_of_reach_is_said() -> None:
    class Opaque:
        def __init__(self) -> None:
            self.numbers = iter(np.nditer(np.arange(3)))

        def __call__(self, records: list[Tensor]) -> Tensor:
            return torch.stack(records)

    found = CollateRuns(Opaque()).state.unread
    conditions = trained(Opaque()).session.guarantee(1e-5, "rdp").conditions
    assert bool(found) == ("not examined" in {c.name for c in conditions})
