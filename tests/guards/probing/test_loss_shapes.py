"""What operators that move, choose and join values make of values of single examples, and of sums over them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from reading import B, faults, is_unread, read, rows, terms
from torch import Tensor

W = torch.rand(3, 2)

MOVED: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "transposed": (lambda o: o.transpose(0, 1), 1),
    "T": (lambda o: o.T, 1),
    "permuted": (lambda o: o[None].permute(2, 0, 1), 2),
    "unsqueezed": (lambda o: o.unsqueeze(0), 1),
    "in another shape": (lambda o: o.reshape(B, 1, 3), 0),
    "expanded": (lambda o: o.expand(2, B, 3), 1),
    "multiplied from the right": (lambda o: o @ W, 0),
    "multiplied from the left": (lambda o: W.T @ o.T, 1),
    "a column": (lambda o: o[:, 0], 0),
    "some columns": (lambda o: o[:, 1:], 0),
    "chosen by index": (lambda o: o[torch.arange(B), torch.tensor([0, 1, 2, 0])], 0),
    "joined along features": (lambda o: torch.cat([o, o], 1), 0),
    "stacked in front": (lambda o: torch.stack([o, o]), 1),
    "stacked behind": (lambda o: torch.stack([o, o], 2), 0),
}


@pytest.mark.parametrize("name", MOVED)
def test_the_axis_of_the_examples_is_followed(name: str) -> None:
    make, axis = MOVED[name]
    assert rows(make).axis == axis


def test_what_is_only_laid_out_anew_is_still_the_models_own_output() -> None:
    assert rows(lambda o: o.T.reshape(3, B)).raw is not None
    assert rows(lambda o: o @ W).raw is None


MIXING: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "of a batch with itself": (lambda o: o @ o.T, "products of each example with every other one"),
    "in stacks": (lambda o: torch.bmm(o[None], o.T[None]), "products of each example with every other one"),
    "distances": (lambda o: torch.cdist(o, o), "distances of each example from every other one"),
}


@pytest.mark.parametrize("name", MIXING)
def test_pairs_of_examples_are_a_fault(name: str) -> None:
    make, what = MIXING[name]
    found = faults(lambda o: make(o).sum())
    assert found
    assert what in found[0]


def test_products_within_each_example_are_its_own() -> None:
    assert rows(lambda o: torch.bmm(o, o.transpose(1, 2)), B, 2, 3).axis == 0


def test_a_product_over_the_batch_is_not_read_as_values_of_examples() -> None:
    assert is_unread(lambda o: (o.T @ torch.rand(B, 2)).sum())


def test_a_part_of_the_batch_is_noted_by_its_places_and_counts_as_chosen() -> None:
    for cut, places in ((slice(0, 2), range(0, 2)), (slice(-3, None), range(1, 4)), (slice(0, 4, 2), range(0, 4, 2))):
        reading = read(lambda o, cut=cut: o[cut] * 1)
        assert [list(part) for part, _ in reading.cuts] == [list(places)]
        assert reading.value.picked  # type: ignore[union-attr]


def test_a_chosen_example_is_not_read() -> None:
    assert is_unread(lambda o: o[0].sum())


def test_values_that_a_mask_chose_have_no_axis_and_a_mean_of_them_counts_them() -> None:
    mask = torch.rand(B, 3) > 0.5
    mask[0, 0] = True
    assert rows(lambda o: o[mask] * 1).axis is None
    assert terms(lambda o: o[mask].sum())[0].kind == "sum"


def test_reductions_that_are_stacked_stay_reductions_and_beside_an_examples_values_they_do_not() -> None:
    assert [term.kind for term in terms(lambda o: torch.stack([o.mean(), o.sum()]).sum())] == ["mean", "sum"]
    assert is_unread(lambda o: torch.cat([o.mean()[None], o[:, 0]]).sum())


def test_examples_behind_each_other_have_no_one_axis() -> None:
    assert rows(lambda o: torch.cat([o, o], 0) * 1).axis is None
