"""What backwards record: joined when they end, dropped when they do not, and the examples told apart."""

from __future__ import annotations

import pytest
import torch
from attached import Attached, B, assert_same, batch, losses, wanted
from torch import Tensor, nn

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
