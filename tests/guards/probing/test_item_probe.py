"""When the making of an item is examined: once, again where records show something new, and after each refusal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from hushgrad.errors import CrossSampleLeakError, HushgradError, ProtocolError
from hushgrad.guards.probing import item_probe
from hushgrad.guards.probing.collate_examination import require_separate_records
from hushgrad.guards.probing.collate_probe import Form
from hushgrad.guards.probing.collate_runs import CollateRuns
from hushgrad.guards.probing.findings import Findings
from hushgrad.guards.probing.item_probe import ItemProbe
from hushgrad.guards.probing.looks import Looks
from hushgrad.guards.probing.loss_programs import LossPrograms
from hushgrad.guards.probing.on_trust import OnTrust
from hushgrad.guards.probing.other_processes import OtherProcesses
from hushgrad.guards.probing.row_order import PADDING, RowOrder
from hushgrad.guards.probing.scalar_loss import ScalarLoss
from hushgrad.guards.probing.widths import Drawn

Collate = Callable[[list[Tensor]], Any]


class Loader:
    """Hands out items as a session's loader does."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate
        self.told: list[HushgradError] = []
        programs = LossPrograms("mean", 4.0)
        scalar_loss = ScalarLoss(nn.Linear(1, 1), "mean", lambda: True, nullcontext, programs)
        self.looks = Looks(None)
        self.on_trust = OnTrust(scalar_loss, programs, RowOrder())
        findings = Findings(self.told.append, lambda: None, OtherProcesses(), is_split=False)
        self.probe = ItemProbe(self.looks, findings, self.on_trust)

    def hand_out(self, records: Sequence[Tensor]) -> Drawn:
        data = list(records)
        self.probe.before_draw(self.collate, data)
        extents = [len(record) for record in data]
        drawn = Drawn(data, range(len(data)), self.collate(data), len(data), self.collate, extents=extents)
        self.probe.examine(drawn)
        return self.probe.known(drawn)


def even(count: int = 6, length: int = 4) -> list[Tensor]:
    return [torch.randn(length, generator=torch.Generator().manual_seed(n)) for n in range(count)]


def uneven(shortest: int) -> list[Tensor]:
    return [*even(5, 12), torch.randn(shortest)]


def padded(records: list[Tensor]) -> Tensor:
    return pad_sequence(records, batch_first=True)


def test_a_collate_function_is_examined_once_and_again_when_records_differ_in_length_or_an_item_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []

    def counted(runs: CollateRuns, drawn: Drawn, *, is_first: bool) -> Form | None:
        asked.append(is_first)
        return require_separate_records(runs, drawn, is_first=is_first)

    monkeypatch.setattr(item_probe, "require_separate_records", counted)
    loader = Loader(padded)
    counts = []
    for records in (even(1), even(), even(), uneven(8), uneven(8), uneven(3), uneven(3)):
        loader.hand_out(records)
        counts.append(len(asked))
    assert counts == [0, 1, 1, 2, 2, 3, 3]
    loader.looks.wanted = True
    loader.hand_out(even())
    assert asked == [True, False, False, False]
    assert (loader.told, loader.on_trust.conditions) == ([], ())


def test_a_refused_collate_function_is_refused_again_and_each_time_told() -> None:
    def centred(records: list[Tensor]) -> Tensor:
        x = torch.stack(records)
        return x - x.mean(0)

    loader = Loader(centred)
    for count in (1, 2):
        with pytest.raises(CrossSampleLeakError):
            loader.hand_out(even())
        assert len(loader.told) == count


def test_what_was_found_of_a_collate_function_is_known_of_later_items() -> None:
    def across(records: list[Tensor]) -> Tensor:
        return torch.stack(records, 1)

    loader = Loader(across)
    assert loader.hand_out(even(1)).axes == {}
    assert loader.hand_out(even()).axes == {(): 1}
    assert loader.hand_out(even()).axes == {(): 1}
    loader.probe.require_order(PADDING)


def test_what_is_known_by_place_is_refused_where_a_collate_function_sorts() -> None:
    def sorts(records: list[Tensor]) -> Tensor:
        return torch.stack(sorted(records, key=lambda record: float(record[0])))

    loader = Loader(sorts)
    assert loader.hand_out(even()).reorders
    with pytest.raises(ProtocolError, match="collate_fn puts records into another order, and with constant_shapes"):
        loader.probe.require_order(PADDING)
