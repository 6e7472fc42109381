"""What a use costs in a private step, told from shapes alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hushgrad.checks.doctor.cost import GradientForm, LayerSetting, cost_of, form_of, taken_by, without_values
from hushgrad.gradients.contribution import Contribution, Plan
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.outer import OuterProducts
from hushgrad.gradients.rows import Rows

B, T, P, D = 4, 6, 8, 10


def linear(positions: int = T) -> OuterProducts:
    return OuterProducts(torch.randn(B, positions, P), torch.randn(B, positions, D))


def setting(whole: Contribution, **changes: object) -> LayerSetting:
    return replace(LayerSetting(whole, count=1, held_bytes=100, output_values=B * T * P, input_needed=True), **changes)


def test_shapes_without_values_hold_no_memory_and_say_what_the_real_ones_hold() -> None:
    real = linear()
    shapes, held = without_values(real)
    assert held == real.nbytes == 4 * B * T * (P + D)
    assert [operand.shape for operand in shapes.operands] == [operand.shape for operand in real.operands]
    assert all(operand.is_meta for operand in shapes.operands)


def test_the_form_of_a_matrix_is_its_positions_outputs_and_inputs() -> None:
    assert form_of(linear()) == GradientForm(T, P, D)
    assert form_of(Dense(torch.randn(B, P, D))) == GradientForm(None, None, None)


def test_an_ordinary_step_forms_a_weight_gradient_and_an_input_gradient_where_one_is_needed() -> None:
    gemm = 2 * B * T * P * D
    for needed, products in ((True, 3), (False, 2)):
        cost = cost_of(linear(), setting(linear(), input_needed=needed), Plan())
        assert cost.ordinary_flops == products * gemm


@pytest.mark.parametrize("way", ["gram", "instantiate"])
def test_the_way_is_the_plans_and_a_private_step_costs_no_less(way: str) -> None:
    cost = cost_of(linear(), setting(linear()), Plan(way=way))
    assert cost.way.partition(",")[0] == way
    assert cost.private_flops > cost.ordinary_flops


def test_a_use_at_one_position_is_next_to_nothing() -> None:
    cost = cost_of(linear(1), setting(linear(1)), Plan())
    assert cost.way == "product"
    assert cost.private_flops - cost.ordinary_flops == 2 * B * (P + D)
    assert cost.memory_bytes == 100


def test_gradients_are_kept_where_the_budget_has_room_and_dropped_where_it_has_none() -> None:
    whole = linear(2)  # its gradients take more than its operands
    assert whole.grows_by > 0
    kept, dropped = (cost_of(whole, setting(whole), Plan("instantiate", keep)) for keep in (1 << 20, 0))
    assert (kept.way, dropped.way) == ("instantiate, keep", "instantiate, drop")
    assert kept.memory_bytes == 4 * B * P * D
    assert dropped.private_flops > kept.private_flops
    assert taken_by(whole, Plan("instantiate", 1 << 20)) == whole.grows_by
    assert taken_by(whole, Plan("instantiate", 0)) == taken_by(whole, Plan("gram")) == 0


def test_rows_of_a_table_cost_by_what_was_looked_up_and_not_by_the_table() -> None:
    def cost(rows: int) -> int:
        part = Rows(torch.zeros(B, T, dtype=torch.int64), torch.randn(B, T, D), rows)
        found = cost_of(part, setting(part), Plan())
        assert found.way == "rows"
        return found.private_flops

    assert cost(10) == cost(10_000_000)


def test_uses_that_are_added_up_cost_more_than_one_that_is_alone() -> None:
    part = Dense(torch.randn(B, P))
    alone, shared = (cost_of(part, setting(part, count=count), Plan()) for count in (1, 2))
    assert alone.way == shared.way == "per example"
    assert shared.private_flops > alone.private_flops
    assert shared.memory_bytes > alone.memory_bytes
