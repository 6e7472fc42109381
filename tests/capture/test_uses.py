"""What backwards record: joined when they end, dropped when they do not, and the examples told apart."""

from __future__ import annotations

import pytest
import torch
from attached import Attached, B, assert_same, batch, losses, wanted
from torch import Tensor, nn

from hushgrad.capture.uses import UsePool
from hushgrad.errors import PrivacyUnitError


def test_two_backwards_add_up_per_example_before_clipping(attached: Attached) -> None:
    x = batch()
    out = attached.model(x)
    losses(out).sum().backward(retain_graph=True)
    out.square().sum().backward()
    assert_same(
        attached.sums(),
        wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum(), lambda m, i: m(x[i : i + 1]).square().sum()),
    )


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_forwards_may_run_backward_in_either_order(attached: Attached, order: tuple[int, int]) -> None:
    x = [batch(), batch()]
    found = [losses(attached.model(part)).sum() for part in x]
    for place in order:
        found[place].backward()
    assert_same(
        attached.sums(),
        wanted(attached.model, *[lambda m, i, part=part: losses(m(part[i : i + 1])).sum() for part in x]),
    )


def test_a_forward_without_gradients_in_between_changes_nothing(attached: Attached) -> None:
    x = batch()
    out = attached.model(x)
    attached.model.eval()
    with torch.no_grad():
        shown = attached.model(torch.randn(9, 4, dtype=torch.float64))
    assert not shown.requires_grad
    attached.model(torch.randn(2, 4, dtype=torch.float64))  # with gradients, never run backward
    attached.model.train()
    losses(out).sum().backward()
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum()))


def test_an_aborted_backward_leaves_nothing_recorded(attached: Attached) -> None:
    x = batch().requires_grad_()

    def fail(gradient: Tensor) -> None:
        raise ValueError("a hook of the user")

    x.register_hook(fail)
    with pytest.raises(ValueError, match="a hook of the user"):
        losses(attached.model(x)).sum().backward()
    assert attached.pool.backwards == 0
    assert attached.pool.take() == {}
    y = batch()
    losses(attached.model(y)).sum().backward()
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(y[i : i + 1])).sum()))


def test_a_model_given_another_number_of_rows_than_records_is_refused(attached: Attached) -> None:
    for rows in (2 * B, B - 1, 1):
        with pytest.raises(PrivacyUnitError, match=f"saw {rows} rows for {B} examples"):
            losses(attached.model(torch.randn(rows, 4, dtype=torch.float64))).sum().backward()
    assert attached.pool.take() == {}


def test_a_backward_whose_number_of_examples_nobody_declared_is_refused(model: nn.Module) -> None:
    attached = Attached(model, batch_size=None)
    with pytest.raises(PrivacyUnitError, match="outside"):
        losses(model(batch())).sum().backward()
    attached.scope.detach()


# The examples of a tensor --------------------------------------------------------------------------------------------


def pool(size: int | None) -> UsePool:
    found = UsePool()
    found.batch_size = size
    return found


def test_the_batch_comes_first_wherever_it_lies() -> None:
    x = torch.randn(3, 4, 2)
    assert torch.equal(pool(4).examples(x, 1, "here"), x.movedim(1, 0))


def test_positions_that_are_folded_into_the_batch_become_a_dimension_of_their_own() -> None:
    x = torch.randn(6, 2)
    assert torch.equal(pool(3).examples(x, 0, "here"), x.view(3, 2, 2))


def test_floating_values_come_in_at_least_float32_and_others_as_they_are() -> None:
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int64, torch.int64),
    ):
        assert pool(2).examples(torch.ones(2, 3, dtype=dtype), 0, "here").dtype == expected


@pytest.mark.parametrize(
    ("size", "axis", "message"),
    [
        (None, 0, "number of examples is unknown"),
        (4, None, "can no longer be told apart"),
        (3, 0, "saw 4 rows for 3"),
        (0, 0, "saw 4 rows for 0"),
    ],
)
def test_rows_that_cannot_be_assigned_to_the_examples_are_refused(
    size: int | None, axis: int | None, message: str
) -> None:
    with pytest.raises(PrivacyUnitError, match=f"here: .*{message}"):
        pool(size).examples(torch.randn(4, 2), axis, "here")


def test_to_take_the_uses_is_to_empty_the_pool(attached: Attached) -> None:
    losses(attached.model(batch())).sum().backward()
    assert len(attached.pool.take()) == 4
    assert attached.pool.take() == {}
    assert attached.pool.backwards == 0
