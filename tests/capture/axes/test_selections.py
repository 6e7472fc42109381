"""Rows selected by the batch's own values, and put back: where they are said to lie, and what is never put back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from attached import Attached, Model, assert_same, losses, wanted
from torch import Tensor, nn
from tracking import assert_axis_is_true, tracked_axis

from hushgrad.errors import PrivacyUnitError

B, T, D, P = 5, 4, 4, 3
Forward = Callable[[nn.Module, Tensor], Tensor]


def experts(x: Tensor) -> Tensor:
    """The number of the expert of each row: 0 or 1."""
    return (x[..., 0] > 0).long()


def unfolded(rows: Tensor) -> Tensor:
    return rows.view(-1, T, rows.shape[-1])


def zeros(x: Tensor, width: int = P) -> Tensor:
    return x.new_zeros(*x.shape[:-1], width)


# What is the batch's again -----------------------------------------------------------------------------------------


def masked(m: nn.Module, x: Tensor) -> Tensor:
    mask, out = x[..., 0] > 0, zeros(x)
    out[mask] = m.a(x[mask])
    return out


def masked_head(m: nn.Module, x: Tensor) -> Tensor:
    mask, h = x[..., 0] > 0, x.sin()
    h[mask] = m.n(h[mask] @ m.q).softmax(-1)
    return m.a(h)  # type: ignore[no-any-return]


def tokens_filled(m: nn.Module, x: Tensor) -> Tensor:
    h = m.a(x).clone()
    h[x[..., 0] > 0] = m.token
    return h  # type: ignore[no-any-return]


def by_masks_of_experts(m: nn.Module, x: Tensor) -> Tensor:
    out, weights = zeros(x), m.g(x).softmax(-1)
    for number, expert in enumerate((m.a, m.b)):
        mask = experts(x) == number
        out[mask] = out[mask] + weights[mask][:, number : number + 1] * expert(x[mask])
    return out


def by_where(m: nn.Module, x: Tensor) -> Tensor:
    rows = x.flatten(0, 1)
    out, weights = zeros(rows), m.g(rows).softmax(-1)
    for number, expert in enumerate((m.a, m.b)):
        (chosen,) = torch.where(experts(rows) == number)
        out.index_add_(0, chosen, expert(rows[chosen]) * weights[chosen, number, None])
    return unfolded(out)


def by_the_largest_two(m: nn.Module, x: Tensor) -> Tensor:
    rows = x.flatten(0, 1)
    weights, numbers = m.g(rows).softmax(-1).topk(2, -1)
    out = zeros(rows)
    for number, expert in enumerate((m.a, m.b, m.a)):
        chosen, place = torch.where(numbers == number)
        out = out.index_add(0, chosen, expert(rows[chosen]) * weights[chosen, place, None])
    return unfolded(out)


def by_nonzero(m: nn.Module, x: Tensor) -> Tensor:
    mask, out = x[..., 0] > 0, zeros(x)
    places = mask.nonzero()
    out[places[:, 0], places[:, 1]] = m.a(x[places[:, 0], places[:, 1]])
    rows = x.flatten(0, 1)
    chosen = (rows[:, 0] > 0).nonzero().squeeze(1)
    return out + unfolded(zeros(rows).index_put((chosen,), m.b(rows[chosen]), accumulate=True))


def sums_of_selected(m: nn.Module, x: Tensor) -> Tensor:
    mask = x[..., 0] > 0
    return torch.zeros(len(x), P, dtype=x.dtype).index_add(0, mask.nonzero()[:, 0], m.a(x[mask]))


def table_at_selected(m: nn.Module, x: Tensor) -> Tensor:
    ids, out = (x[..., 0] * 3).long().abs() % 7, zeros(x)
    mask = ids > 0
    out[mask] = m.table[ids[mask]] + F.embedding(ids[mask], m.table)
    return out + m.a(x)  # type: ignore[no-any-return]


def none_selected(m: nn.Module, x: Tensor) -> Tensor:
    mask, out = x[..., 0] > 1e9, zeros(x)
    out[mask] = m.a(x[mask])
    return out + m.b(x)  # type: ignore[no-any-return]


def sorted_and_back(m: nn.Module, x: Tensor) -> Tensor:
    rows = x.flatten(0, 1)
    order = experts(rows).argsort(stable=True)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return unfolded(m.a(rows[order])[back] + m.b(rows[order])[order.argsort()])


def sorted_and_added(m: nn.Module, x: Tensor) -> Tensor:
    rows = x.flatten(0, 1)
    weights, numbers = m.g(rows).softmax(-1).topk(2, -1)
    key, order = numbers.flatten().sort()
    found = m.a(rows[order // 2]) * weights.flatten()[order][:, None] + m.table[key]
    out = torch.empty(len(rows), P, dtype=x.dtype)
    out[experts(rows).argsort()] = m.b(rows[experts(rows).argsort()])
    return unfolded(out.index_add(0, order // 2, found))


def grouped(m: nn.Module, x: Tensor) -> Tensor:
    rows = x.flatten(0, 1)
    key, order = experts(rows).sort()
    found = F.grouped_mm(rows[order].float(), m.matrices, offs=key.bincount(minlength=2).cumsum(0).int())
    return unfolded(found.double()[order.argsort()])


BACK = (
    masked, masked_head, tokens_filled, by_masks_of_experts, by_where, by_the_largest_two, by_nonzero,
    sums_of_selected, table_at_selected, none_selected, sorted_and_back, sorted_and_added,
)  # fmt: skip


def model(forward: Forward) -> nn.Module:
    torch.manual_seed(0)
    parts = {name: nn.Linear(D, P) for name in ("a", "b", "g")}
    made = Model(forward, **parts, n=nn.LayerNorm(D))
    for name, shape in (("q", (D, D)), ("token", (P,)), ("table", (7, P))):
        made.register_parameter(name, nn.Parameter(torch.randn(shape)))
    made = made.double()
    made.matrices = nn.Parameter(torch.randn(2, D, 4))  # in float32, for kernels that know no other
    return made


@pytest.mark.parametrize("forward", BACK, ids=lambda forward: forward.__name__)
def test_selected_rows_that_are_put_back_have_exact_gradients(forward: Forward) -> None:
    attached = Attached(model(forward))
    x = torch.randn(B, T, D, dtype=torch.float64)
    expected = wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum())
    losses(attached.model(x)).sum().backward()
    found = attached.sums()
    assert found
    assert_same(found, {name: value for name, value in expected.items() if name in found})


def test_products_of_groups_that_follow_the_sorted_key_are_exact() -> None:
    attached = Attached(model(grouped))
    x = torch.randn(B, T, D, dtype=torch.float64)
    expected = wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum())["matrices"]
    losses(attached.model(x)).sum().backward()
    torch.testing.assert_close(attached.sums()["matrices"], expected, rtol=1e-5, atol=1e-6)


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "masked values": lambda x: torch.zeros_like(x).masked_fill(x > 0, 1.0),
    "rows by a mask": lambda x: put(x, x[..., 0] > 0),
    "columns of nonzero": lambda x: x[x[..., 0].abs().bool().nonzero(as_tuple=True)].view(x.shape),
    "as many rows of each example": lambda x: x[torch.ones_like(x[..., 0]) * x[..., 0] < 1e9].view(x.shape),
    "copies behind their row": lambda x: x.repeat_interleave(2, dim=0),
    "quantiles": lambda x: torch.quantile(x, torch.tensor([0.2, 0.6], dtype=x.dtype), dim=1),
}


def put(x: Tensor, mask: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[mask] = x[mask].sin()
    return out


@pytest.mark.parametrize("name", SHAPES)
def test_an_axis_that_is_claimed_is_where_the_examples_are(name: str) -> None:
    assert isinstance(assert_axis_is_true(SHAPES[name], torch.randn(3, T, D, dtype=torch.float64)), int)


# What is not ------------------------------------------------------------------------------------------------------


def order_of(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.flatten(0, 1)
    return rows, rows[:, 0].argsort()


def at_half(x: Tensor) -> Tensor:
    rows, order = order_of(x)
    n = len(order) // 2
    return torch.cat([rows[order[:n]].sin(), rows[order[n:]].cos()])[order.argsort()]


def into_halves(x: Tensor) -> Tensor:
    rows, order = order_of(x)
    n, moved = len(order) // 2, rows[order]
    out = torch.zeros_like(rows)
    out[order[:n]] = moved[:n].sin()
    out[order[n:]] = moved[n:].cos()
    return out


def largest(x: Tensor, k: int) -> Tensor:
    rows = x.flatten(0, 1)
    chosen = rows[:, 0].topk(k).indices
    return torch.zeros_like(rows).index_add(0, chosen, rows[chosen].sin())


def with_capacity(x: Tensor, capacity: int) -> Tensor:
    rows = x.flatten(0, 1)
    chosen = torch.where(rows[:, 0] > 0)[0][:capacity]
    return torch.zeros_like(rows).index_add(0, chosen, rows[chosen].sin())


def with_capacity_of_places(x: Tensor, capacity: int) -> Tensor:
    rows = x.flatten(0, 1)
    mask = (rows[:, 0] > 0).long().cumsum(0) <= capacity
    out = torch.zeros_like(rows)
    out[mask] = rows[mask].sin()
    return out


def by_the_batch_mean(x: Tensor) -> Tensor:
    mask = x[..., 0] > x[..., 0].mean()
    return put(x, mask)


def ranked(count: int) -> Tensor:
    """A matrix for each rank."""
    return torch.arange(count, dtype=torch.float64).reshape(-1, 1, 1) * torch.ones(1, D, D, dtype=torch.float64)


def marked_by_the_batch(x: Tensor) -> Tensor:
    marks = torch.zeros(x.shape[:2], dtype=x.dtype)
    marks[x[..., 0] > x[..., 0].mean()] = 1.0
    return x * marks[..., None]


def changed_in_order(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Rows are sorted, changed, and put back."""

    def transform(x: Tensor) -> Tensor:
        rows, order = order_of(x)
        moved, out = change(rows[order].sin()), torch.zeros(rows.shape, dtype=x.dtype)
        out[order] = moved
        return out

    return transform


def assigned(target: Tensor, index: object, value: object) -> Tensor:
    target[index] = value  # type: ignore[index]
    return target


def two_to_one_place(x: Tensor) -> Tensor:
    """Each place is that of two rows; of those copied there, the one that is last in the order stays."""
    rows, order = order_of(torch.cat([x, x.cos()], -1).view(len(x), -1, D))
    return torch.zeros(len(rows) // 2, D, dtype=x.dtype).index_copy(0, order // 2, rows[order])


def by_other_pointers(x: Tensor) -> Tensor:
    """Both write where x > -9: everywhere. The pointers' first is another's by then."""
    rows = x.flatten(0, 1)
    places, others = torch.where(rows[:, 0] > -9)[0], torch.where(rows[:, 0] > -9)[0]
    others[0] = len(rows) - 1
    return torch.zeros(rows.shape, dtype=x.dtype).index_copy(0, places, rows[others])


LOST: dict[str, Callable[[Tensor], Tensor]] = {
    "the last of the sorted overwritten": changed_in_order(lambda h: assigned(h, slice(-2, None), 0.0)),
    "the last of the sorted overwritten through .data": changed_in_order(
        lambda h: (assigned(h.data, slice(-2, None), 0.0), h)[1]
    ),
    "the last of the sorted overwritten through a flat view": changed_in_order(
        lambda h: (assigned(h.view(-1), slice(-8, None), 0.0), h)[1]
    ),
    "the last of the sorted overwritten through its transpose": changed_in_order(
        lambda h: (assigned(h.T, (slice(None), -1), 0.0), h)[1]
    ),
    "the diagonal of the sorted, detached": changed_in_order(lambda h: (h.detach().fill_diagonal_(0.0), h)[1]),
    "ranks written into the sorted": changed_in_order(
        lambda h: assigned(h, (slice(None), 0), torch.arange(len(h)).double())
    ),
    "a triangle of the sorted": changed_in_order(torch.triu),
    "the last of two at each place": two_to_one_place,
    "pointers overwritten": by_other_pointers,
    "sorted, not put back": lambda x: (lambda rows, order: rows[order])(*order_of(x)),
    "sorted, and mixed before": lambda x: (lambda rows, o: rows[o].cumsum(0)[o.argsort()])(*order_of(x)),
    "sorted, and treated by rank": lambda x: (lambda rows, o: (rows[o] * torch.arange(len(o))[:, None])[o.argsort()])(
        *order_of(x)
    ),
    "halves of the sorted": at_half,
    "halves put back": into_halves,
    "the largest": lambda x: largest(x, 5),
    "a capacity": lambda x: with_capacity(x, 3),
    "a capacity that is not reached": lambda x: with_capacity(x, 1000),
    "a capacity by places": lambda x: with_capacity_of_places(x, 3),
    "a capacity by places that is not reached": lambda x: with_capacity_of_places(x, 1000),
    "a mask by the batch's mean": by_the_batch_mean,
    "constants where the batch's mean says": marked_by_the_batch,
    "rows mixed before they are put back": lambda x: (
        lambda mask, out: (out.__setitem__(mask, x[mask] - x[mask].mean(0)), out)[1]
    )(x[..., 0] > 0, torch.zeros_like(x)),
    "rows times their rank": lambda x: (
        lambda mask, out: (out.__setitem__(mask, x[mask] * torch.arange(int(mask.sum()))[:, None]), out)[1]
    )(x[..., 0] > 0, torch.zeros_like(x)),
    "a matrix for each rank": lambda x: (
        lambda mask, out: (
            out.__setitem__(mask, torch.bmm(x[mask].unsqueeze(1), ranked(int(mask.sum()))).squeeze(1)),
            out,
        )[1]
    )(x[..., 0] > -9, torch.zeros_like(x)),
    "a term for each rank": lambda x: (
        lambda mask, out: (
            out.__setitem__(mask, torch.addmm(ranked(int(mask.sum()))[:, 0], x[mask], torch.eye(D).double())),
            out,
        )[1]
    )(x[..., 0] > -9, torch.zeros_like(x)),
    "put to other places": lambda x: (
        lambda rows, i: torch.zeros_like(rows).index_add(0, (i + T) % len(rows), rows[i])
    )(x.flatten(0, 1), torch.where(x.flatten(0, 1)[:, 0] > 0)[0]),
    "pointers as values": lambda x: (lambda rows, i: torch.zeros_like(rows).index_add(0, i, rows[i] * i[:, None]))(
        x.flatten(0, 1), torch.where(x.flatten(0, 1)[:, 0] > 0)[0]
    ),
}

RANDOM = torch.randn(3, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
SORTED = torch.arange(3 * T * D, dtype=torch.float64).reshape(3, T, D) / 7 - 3
SAME = torch.ones(3, T, D, dtype=torch.float64)


@pytest.mark.parametrize("x", [RANDOM, SORTED, SAME], ids=["random", "sorted already", "all alike"])
@pytest.mark.parametrize("name", LOST)
def test_what_others_decided_has_no_axis_whatever_the_values(name: str, x: Tensor) -> None:
    """With sorted data an order is the identity, and records that are alike hide every exchange.

    Guarantee: what has an axis again, after rows of it were selected, holds at each place values of this place's own
    example, put there by this example's own values alone.
    """
    assert not isinstance(claimed(LOST[name], x), int)


@pytest.mark.parametrize("x", [RANDOM, SORTED, SAME], ids=["random", "sorted already", "all alike"])
def test_sorted_rows_that_are_all_changed_alike_are_back(x: Tensor) -> None:
    assert claimed(changed_in_order(lambda h: assigned(h, (slice(None), 0), 0.0)), x) == 0

    def in_their_own_shape(x: Tensor) -> Tensor:
        rows, order = order_of(x)
        h = rows[order].sin()
        out = torch.zeros_like(h)
        out[order] = h
        return out

    assert claimed(in_their_own_shape, x) == 0


@pytest.mark.parametrize("hits", [0, 1])
def test_a_loop_over_what_is_there_in_the_batch_is_told_also_where_nothing_is(hits: int) -> None:
    def over_columns_that_any_row_hits(m: nn.Module, x: Tensor) -> Tensor:
        out = m.a(x)
        for column in (x > 9).any(0).nonzero().flatten():
            out = out + m.a(x.T.unsqueeze(-1).expand(-1, -1, D)[column])
        return out  # type: ignore[no-any-return]

    attached = Attached(Model(over_columns_that_any_row_hits, a=nn.Linear(D, P)).double())
    x = torch.zeros(B, D, dtype=torch.float64)
    x[-1, :hits] = 10.0
    attached.model(x)
    assert attached.scope.decides_by_numbers


def test_rows_are_back_where_each_stands_in_its_old_place_and_nowhere_else() -> None:
    """Looked at by value, in every call: an order that puts all rows back is as good as the inverse."""

    def by_another_order(x: Tensor) -> Tensor:
        rows, order = order_of(x)
        return rows[order][rows[:, 1].argsort()]

    assert claimed(by_another_order, RANDOM) is None
    assert claimed(by_another_order, SORTED) == 0


def claimed(transform: Callable[[Tensor], Tensor], x: Tensor) -> object:
    """The axis that is claimed; None where the forward is refused at once."""
    try:
        return tracked_axis(transform, x)[1]
    except PrivacyUnitError:
        return None


@pytest.mark.parametrize(
    "ends",
    [
        lambda counts: torch.stack([counts.sum() // 2, counts.sum()]),
        lambda counts: counts.flip(0).cumsum(0),
        lambda counts: counts.clamp(max=3).cumsum(0),
    ],
    ids=["halves", "other matrices", "a capacity"],
)
def test_groups_that_are_no_groups_of_the_key_have_no_axis(ends: Callable[[Tensor], Tensor]) -> None:
    matrices = torch.randn(2, D, 4)

    def mixed(x: Tensor) -> Tensor:
        rows = x.flatten(0, 1).float()
        key, order = experts(rows).sort()
        found = F.grouped_mm(rows[order], matrices, offs=ends(key.bincount(minlength=2)).int())
        return found[order.argsort()]

    assert not isinstance(tracked_axis(mixed, RANDOM)[1], int)
