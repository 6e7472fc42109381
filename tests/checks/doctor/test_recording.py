"""One forward and backward, watched: which module's operator contributed what to which parameter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hushgrad.capture.scope import Scope
from hushgrad.checks.doctor.recording import ModuleAttribution, Recorded, RecordingPool

B = 4


def recorded(model: nn.Module, x: Tensor) -> tuple[list[Recorded], RecordingPool]:
    pool = RecordingPool(len(x))
    attribution = ModuleAttribution(model, pool.backward)
    scope = Scope(model, pool)
    output = model(x)
    with pool.backward:
        output.flatten(1).sin().sum().backward()
    attribution.remove()
    scope.detach()
    return pool.recorded, pool


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(self.inner(x)) * self.scale
        return F.linear(h, self.inner[0].weight)


def test_every_contribution_has_the_module_in_whose_forward_its_operator_ran() -> None:
    found, _ = recorded(Tied(), torch.randn(B, 3))
    places = {(part.parameter, part.module) for part in found}
    assert places == {("scale", ""), ("inner.0.weight", ""), ("inner.0.weight", "inner.0"), ("inner.0.bias", "inner.0")}


def test_each_call_of_an_operator_has_a_number_of_its_own_that_its_parameters_share() -> None:
    found, _ = recorded(Tied(), torch.randn(B, 3))
    calls = [part.call for part in found if part.parameter == "inner.0.bias"]
    assert len(set(calls)) == 2
    assert {part.call for part in found if part.parameter == "inner.0.weight"} > set(calls)


def test_shapes_are_kept_and_values_are_not_and_the_pool_has_what_any_pool_has() -> None:
    found, pool = recorded(nn.Linear(3, 2), torch.randn(B, 3))
    assert all(operand.is_meta for part in found for operand in part.contribution.operands)
    assert {part.held_bytes for part in found if part.parameter == "weight"} == {4 * B * (3 + 2)}
    assert set(pool.take()) == {"weight", "bias"}


def test_the_first_layer_needs_no_gradient_of_its_input_and_later_ones_do() -> None:
    found, _ = recorded(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), torch.randn(B, 3))
    needed = {part.parameter: part.input_needed for part in found}
    assert (needed["0.weight"], needed["1.weight"]) == (False, True)
    assert {part.parameter: part.output_values for part in found}["1.weight"] == B * 2


class Distances(nn.Module):
    """An operator without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.places = nn.Linear(3, 3), nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(self.layer(x), self.places)


def test_an_operator_without_a_rule_is_told_by_its_route_and_no_other_has_one() -> None:
    found, _ = recorded(Distances(), torch.randn(B, 3))
    assert {part.parameter: part.route for part in found} == {"layer.weight": "", "layer.bias": "", "places": "slices"}


def test_no_hook_stays_on_the_model() -> None:
    model = Tied()
    recorded(model, torch.randn(B, 3))
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in model.modules())
