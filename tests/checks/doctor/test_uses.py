"""One row for each operator of each module."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from patients import Patient, ids
from torch import Tensor, nn

from hushgrad import doctor


def test_every_use_of_every_parameter_has_a_row() -> None:
    diagnosis = doctor(Patient(), ids())
    assert diagnosis.is_ready
    assert diagnosis.batch_size == 4
    rows = {(use.operator, use.parameters): use for use in diagnosis.uses}
    assert rows[("linear", ("twice.weight", "twice.bias"))].calls == 2
    assert ("embedding", ("tokens.weight",)) in rows
    assert any(use.operator == "linear" and use.parameters == ("tokens.weight",) for use in diagnosis.uses)
    assert any(use.parameters == ("scale",) for use in diagnosis.uses)
    assert all(use.private_flops >= use.ordinary_flops > 0 for use in diagnosis.uses)
    assert diagnosis.cost is not None
    assert diagnosis.cost >= 1
    notes = {note.where: note.what for note in diagnosis.notes}
    assert "frozen" in notes["frozen.weight"]
    assert "not used" in notes["unused.weight"]


class Calls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.layer(x)).tanh())


def test_calls_of_one_operator_on_the_same_parameters_are_one_row_in_the_order_of_the_forward() -> None:
    rows = doctor(Calls(), torch.randn(4, 3)).uses
    assert [(use.module, use.parameters, use.calls) for use in rows] == [
        ("layer", ("layer.weight", "layer.bias"), 2),
        ("head", ("head.weight",), 1),
    ]


def test_a_weight_that_is_computed_from_parameters_is_derived_and_a_fallback_says_its_route() -> None:
    class Derived(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.places = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(5, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(F.linear(x, self.weight / 2), self.places)

    ways = {use.parameters: use.way for use in doctor(Derived(), torch.randn(4, 3)).uses}
    assert ways == {("weight",): "derived", ("places",): "generic: slices"}


def test_a_fallback_costs_its_operator_once_more() -> None:
    class Distances(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Parameter(torch.randn(5, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(x, self.places)

    (row,) = doctor(Distances(), torch.randn(4, 3)).uses
    assert row.private_flops == 2 * row.ordinary_flops + 4 * (4 * 5 * 3)  # and what any per-example gradient costs
