"""Padding is known by its place, so a loop that reorders the rows of an item is refused where that shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hushgrad import DPSGD, FlatClipping, PoissonSampling, privatize
from hushgrad.accounting.conditions import ROWS_OF_USERS, Condition
from hushgrad.errors import ProtocolError
from hushgrad.guards.probing.row_order import PADDING, USERS, RowOrder, rows_are_in_order
from hushgrad.randomness import KeyStream


def train(change: Callable[[Tensor], Tensor], *, constant_shapes: bool = True) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.2), expected_batch_size=6
    )
    session = privatize(model, optimizer, mechanism, key=KeyStream.fixed_for_tests(1))
    try:
        loader = session.batches(
            TensorDataset(torch.randn(30, 5)),
            steps_per_pass=4,
            max_physical_batch_size=10,
            constant_shapes=constant_shapes,
        )
        for (x,) in loader:
            session.backward(model(change(x)).squeeze(1).square())
            optimizer.step()
        assert session.steps == 4
    finally:
        session.close()


@pytest.mark.parametrize("reorder", [lambda x: x.flip(0), lambda x: x[x[:, 0].argsort()], lambda x: x.roll(1, 0)])
def test_rows_in_another_order_are_refused_before_a_release(reorder: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ProtocolError, match="in another order than the loader's"):
        train(reorder)
    train(reorder, constant_shapes=False)


@pytest.mark.parametrize("harmless", [lambda x: x, lambda x: x.clone(), lambda x: 2 * x + 1, lambda x: 0 * x])
def test_rows_in_their_order_or_computed_anew_are_not(harmless: Callable[[Tensor], Tensor]) -> None:
    train(harmless)


def told(item: Tensor, *inputs: Tensor) -> list[Condition]:
    """Return what is on trust after one item, for a call by each of the inputs."""
    order = RowOrder()
    order.expect((item,), len(item), USERS)
    for value in inputs:
        order.entering(((value,), {}))
    order.forget()
    order.entering(((item.flip(0),), {}))  # no item is in work
    return list(order.on_trust)


def test_an_item_that_is_written_into_is_compared_as_it_was_handed_out() -> None:
    x = torch.randn(6, 3)
    order = RowOrder()
    order.expect((x,), 6, USERS)
    first = x[0].clone()
    x[0], x[1] = x[1].clone(), first
    with pytest.raises(ProtocolError, match="in another order than the loader's"):
        order.entering(((x,), {}))


def test_every_call_and_every_input_is_looked_at_that_gradients_may_reach() -> None:
    x, z = torch.randn(6, 3), torch.randn(6, 2)
    order = RowOrder()
    order.expect((x, z), 6, USERS)
    order.entering(((x, z), {}))
    with torch.no_grad():
        order.entering(((x.flip(0), z), {}))
    for inputs in (((x, z.flip(0)), {}), ((x.flip(0),), {}), ((), {"z": z.roll(1, 0)})):
        with pytest.raises(ProtocolError, match="in another order than the loader's"):
            order.entering(inputs)


def test_whose_rows_are_is_on_trust_where_any_item_did_not_tell_and_padding_where_none_did() -> None:
    x = torch.randn(6, 3)
    for known, expected in ((USERS, [ROWS_OF_USERS]), (PADDING, [])):
        order = RowOrder()
        for value in (x, 2 * x, x):
            order.expect((x,), 6, known)
            order.entering(((value,), {}))
            order.forget()
        assert list(order.on_trust) == expected
    assert told(x, 2 * x, x) == []  # one call of the item told it
    assert told(x) == [ROWS_OF_USERS]


def test_an_order_is_told_only_from_the_items_own_values() -> None:
    x, labels = torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 0, 1])
    assert rows_are_in_order((x, labels), ((x.clone(),), {}))
    assert rows_are_in_order([x], ((), {"x": x}))
    assert not rows_are_in_order((x, labels), ((x.double(),), {}))
    assert not rows_are_in_order((x, labels), ((labels.flip(0),), {}))  # few values: another part may be alike
    assert not rows_are_in_order((torch.zeros(6, 3),), ((x,), {}))
    assert told(torch.full((6, 3), float("nan")), x) == [ROWS_OF_USERS]
    assert told(torch.full((6, 3), float("nan")), torch.full((6, 3), float("nan"))) == []
    assert not rows_are_in_order((), ((x,), {}))
    images = torch.zeros(6, 1, 28, 28)
    images[:, 0, 14, 14] = torch.arange(6.0)
    with pytest.raises(ProtocolError):
        rows_are_in_order([images], ((images.flip(0),), {}))
