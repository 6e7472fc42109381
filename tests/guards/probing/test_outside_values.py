"""What an item holds in Python's own values, and which tensors were made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.guards.probing.constants import Constants
from hushgrad.guards.probing.outside_values import OutsideValues

X = torch.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize(
    "item", [(X, [1, 2, 3]), {"x": X, "texts": ["a", "b"]}, X.numpy(), (X, 7), [X, np.float32(2)], (X, b"ab")]
)
def test_numbers_arrays_and_texts_of_an_item_are_readable(item: Any) -> None:
    assert OutsideValues(item, Constants()).is_readable


@pytest.mark.parametrize("item", [X, (X, None), {"x": X, "y": [X, X]}, [X, (X,)]])
def test_an_item_of_tensors_is_not(item: Any) -> None:
    assert not OutsideValues(item, Constants()).is_readable


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_copy_of_an_array_or_a_list_is_known_in_any_precision(dtype: torch.dtype) -> None:
    values = OutsideValues({"array": X.numpy(), "list": [1, 2, 3], "nested": [[1.5], [2.5]]}, Constants())
    assert values.path_in_item(X.to(dtype)) == ("array",)
    assert values.path_in_item(torch.tensor([1, 2, 3]).to(dtype)) == ("list",)
    assert values.path_in_item(torch.tensor([[1.5], [2.5]]).to(dtype)) == ("nested",)
    assert values.path_in_item(torch.tensor([1, 3, 2]).to(dtype)) is None
    assert values.path_in_item(torch.tensor(1).to(dtype)) is None


def test_a_ragged_list_has_no_copy() -> None:
    assert OutsideValues([[1, 2], [3]], Constants()).path_in_item(torch.ones(2, 2)) is None


def test_a_tensor_of_pythons_numbers_comes_in_only_beside_an_item_that_python_can_read() -> None:
    for item, is_told in ((X, False), ((X, [1, 2, 3]), True)):
        values, made = OutsideValues(item, Constants()), torch.tensor([0.5])
        values.note("tensor", ([0.5],), made)
        doubled = made * 2
        values.note("mul", (made, 2), doubled)
        values.meet(doubled)
        assert values.has_come is is_told


def test_random_numbers_are_no_values_of_pythons() -> None:
    constants = Constants()
    values, drawn = OutsideValues((X, [1, 2, 3]), constants), torch.randn(3)
    values.note("randn", ((3,), {}), drawn)
    values.meet(drawn)
    constants.end_item()
    assert not values.has_come
    assert not constants.are_open


def test_what_is_made_of_a_tensor_that_no_call_made_is_told_by_that_tensor() -> None:
    constants, unknown = Constants(), torch.ones(2)
    values = OutsideValues(X, constants)
    made = unknown + 1
    values.note("add", (unknown, 1), made)
    values.meet(made)
    constants.end_item()
    assert constants.are_open
    del unknown
    constants.end_item()
    assert constants.are_made_anew


def test_parameters_are_no_values_from_outside() -> None:
    constants = Constants()
    OutsideValues(X, constants).meet(torch.nn.Parameter(torch.ones(2)))
    constants.end_item()
    assert not constants.are_open


def test_a_list_that_is_copied_by_one_call_for_each_tensor_keeps_each_of_them_once() -> None:
    """`copy.deepcopy` hands every call all that was copied before it."""
    values, memo = OutsideValues(X, Constants()), {}
    for number in range(200):
        one = torch.ones(2)
        copied = one + number
        memo[number] = copied
        values.note("__deepcopy__", ((one, memo), {}), copied)
    assert max(len(made.roots) for made in values._made.values()) <= 2 * 200


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_which_may_have_no_shape_holds_no_rows_that_are_compared(layout: torch.layout) -> None:
    rows = [torch.ones(2), torch.ones(3)]
    nested = torch.nested.nested_tensor(rows, layout=layout)
    outside = OutsideValues([np.ones((2, 3))], Constants(), 2)
    outside.note("nested_tensor", (rows, {}), nested)
    assert outside.path_in_item(nested) is None
    assert not outside.has_own_rows(nested)
    assert not outside.rows_of_numbers([nested])


def test_a_write_that_no_call_showed_is_told_and_one_that_was_seen_is_not() -> None:
    values, made, other = OutsideValues(X, Constants()), torch.zeros(3), torch.zeros(3)
    values.note("zeros", ((3,), {}), made)
    assert not values.are_written_unseen([made, other])
    made[:1].fill_(1)
    values.note("fill_", (made[:1], 1), made[:1])
    assert not values.are_written_unseen([made])
    other.real = torch.ones(3)
    assert not values.are_written_unseen([other])  # nobody saw it made
    made.real = torch.ones(3)
    assert values.are_written_unseen([made])


@pytest.mark.parametrize("when", ["before the forward", "after it", "after the backward", "after the step"])
@pytest.mark.parametrize("of_list", [True, False])
def test_a_count_under_inference_mode_goes_on_from_item_to_item(when: str, of_list: bool) -> None:
    """Such tensors count no writes, and torch refuses to say how often they were written to."""
    model, engine = nn.Linear(4, 3), PrivacyEngine()
    x, y = torch.randn(32, 4), torch.randint(0, 3, (32,))
    _, _, loader = engine.make_private(
        module=model,
        optimizer=(optimizer := torch.optim.SGD(model.parameters(), lr=0.1)),
        data_loader=DataLoader(list(zip(x, y, strict=True)) if of_list else TensorDataset(x, y), batch_size=16),  # type: ignore[arg-type]
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    criterion, hits, steps = engine.per_example(nn.CrossEntropyLoss()), torch.zeros(()), 0
    for _ in range(3):
        for features, target in loader:
            out = model(features)
            for moment in ("before the forward", "after it", "after the backward", "after the step"):
                if moment == "after it":
                    out = model(features)
                elif moment == "after the backward":
                    criterion(out, target).backward()
                elif moment == "after the step":
                    optimizer.step()
                if moment == when:
                    with torch.inference_mode():
                        hits = hits + (model(features).argmax(1) == target).sum()
            steps += 1
    assert steps == engine.session.steps == 6
