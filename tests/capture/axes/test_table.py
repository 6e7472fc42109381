"""Which rule follows the batch through which operator."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from tracking import UNTRACKED, B, Transform, tracked_axis

from hushgrad.capture.axes.table import AXIS_RULES, CONSTANTS, INITIALIZERS, LIKE_ANOTHER


@pytest.mark.parametrize("name", ["tanh", "relu", "masked_fill", "cumsum", "index_add", "scatter", "sigmoid"])
def test_an_operator_and_its_form_in_place_have_one_rule(name: str) -> None:
    rules = [
        AXIS_RULES[getattr(space, form)]
        for space in (torch, Tensor, F)
        for form in (name, f"{name}_")
        if hasattr(space, form)
    ]
    assert len(rules) > 1
    assert len(set(rules)) == 1


def test_functions_and_methods_of_one_name_have_one_rule() -> None:
    for name in ("transpose", "sum", "softmax", "reshape", "flip", "bmm", "unbind"):
        assert AXIS_RULES[getattr(torch, name)] is AXIS_RULES[getattr(Tensor, name)]


BORROWED: dict[str, Transform] = {
    "expand_as": lambda x: torch.zeros(1, 1, 1).expand_as(x),
    "view_as": lambda x: torch.zeros(B**3).view_as(x),
    "reshape_as": lambda x: torch.zeros(B**3).reshape_as(x),
    "type_as": lambda x: torch.zeros(B, B, B).type_as(x),
    "to": lambda x: torch.zeros(B, B, B).to(x),
}


@pytest.mark.parametrize("name", BORROWED)
def test_a_constant_that_borrows_a_shape_or_dtype_from_data_stays_a_constant(name: str) -> None:
    assert getattr(Tensor, name) in LIKE_ANOTHER
    assert tracked_axis(BORROWED[name], torch.randn(B, B, B))[1] == UNTRACKED


@pytest.mark.parametrize(
    "make", [lambda x: x.new_zeros(B, B), lambda x: x.new_full((B, B), 1.0), lambda x: x.new_tensor([1.0])]
)
def test_a_new_tensor_of_constants_is_one(make: Transform) -> None:
    assert tracked_axis(make, torch.randn(B, B))[1] == UNTRACKED


def test_a_new_tensor_with_values_of_the_batch_is_data() -> None:
    x = torch.randn(B, B)
    assert tracked_axis(lambda x: x.new_tensor(x), x)[1] == 0
    assert tracked_axis(lambda x: torch.zeros(1).new_tensor(x.t()), x)[1] == 1
    assert tracked_axis(lambda x: x.new_tensor(data=x.mean(0)), x)[1] is None
    assert tracked_axis(lambda x: x.new_tensor([x.max(), x.min()]), x)[1] is None
    assert tracked_axis(lambda x: x.new_full((B, B), x.max()), x)[1] is None
    assert tracked_axis(lambda x: x.new_full(size=(B, B), fill_value=x.max()), x)[1] is None


def test_triangles_are_of_the_last_two_dimensions_and_the_batch_lies_before() -> None:
    assert tracked_axis(torch.triu, torch.randn(B, B, B))[1] == 0
    assert tracked_axis(torch.triu, torch.randn(B, B))[1] is None


def test_what_makes_constants_follows_no_batch() -> None:
    assert not CONSTANTS & set(AXIS_RULES)


def test_initialisers_are_followed_because_they_write_in_place() -> None:
    assert set(AXIS_RULES) >= INITIALIZERS
    assert tracked_axis(lambda x: torch.nn.init.constant_(x.clone(), 1.0), torch.randn(B, B))[1] == 0


@pytest.mark.parametrize("space", [1, 2, 3])
def test_pools_of_every_dimension_keep_a_batch_before_space_and_lose_one_in_it(space: int) -> None:
    for name in (f"max_pool{space}d", f"avg_pool{space}d"):
        pool = getattr(F, name)
        x = torch.randn(4, 2, *[4] * space)
        assert tracked_axis(lambda x, pool=pool: pool(x, 2), x)[1] == 0
        assert tracked_axis(lambda x, pool=pool: pool(x.movedim(0, -1), 2), x)[1] is None
