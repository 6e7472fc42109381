"""A batch taken apart and put together: it is the batch again where every example is in its place, and only there."""

from __future__ import annotations

import pytest
import torch
from test_segment_ids import assert_owners_are_true, location_of_output
from torch import Tensor
from tracking import B, Transform, tracked_axis

from hushgrad.capture.axes.owners import SegmentIds, Whole
from hushgrad.errors import PrivacyUnitError

AGAIN: dict[str, tuple[Transform, int]] = {
    "unbind": (lambda x: torch.stack(x.unbind()), 0),
    "iteration": (lambda x: torch.stack([row.sort()[0] for row in x]), 0),
    "x[i]": (lambda x: torch.stack([x[i] for i in range(len(x))]), 0),
    "x[-i]": (lambda x: torch.stack([x[i - B] for i in range(B)]), 0),
    "select": (lambda x: torch.stack([x.select(0, i) for i in range(B)], 1), 1),
    "stacked last": (lambda x: torch.stack(list(x), -1), 2),
    "scalars": (lambda x: torch.stack([row.sum() for row in x]), 0),
    "two slices": (lambda x: torch.cat([x[:2], x[2:]]), 0),
    "two batches end to end, unfolded": (lambda x: torch.cat([x, x * 2]).unflatten(0, (2, B)).sum(0), 0),
    "an empty slice": (lambda x: torch.cat([x[:B], x[B:]]), 0),
    "chunk": (lambda x: torch.cat(x.chunk(2)), 0),
    "split": (lambda x: torch.cat([part.tanh() for part in x.split(1)]), 0),
    "narrow": (lambda x: torch.cat([x.narrow(0, 0, 1), x.narrow(0, 1, 2)]), 0),
    "tensor_split": (lambda x: torch.cat(x.tensor_split(2)), 0),
    "slices of the last dimension": (lambda x: torch.cat(x.movedim(0, 2).split(2, -1), -1), 2),
    "folded rows": (lambda x: torch.cat(x.flatten(0, 1).split(B)), 0),
    "two batches end to end": (lambda x: torch.cat([x, x * 2]).chunk(2)[1], 0),
    "joined within each example": (
        lambda x: torch.stack([torch.cat([row[:1], row.sum(0, keepdim=True), torch.ones(1, B)]) for row in x]),
        0,
    ),
    "of one example alone": (lambda x: torch.stack([(row @ row.mT).cumsum(0) for row in x]), 0),
}


def part(x: Tensor) -> Tensor:
    """Change a part of every example, in place."""
    return x[..., :1].mul_(1.0)


NOT_AGAIN: dict[str, Transform] = {
    "joined in another order in one of them": lambda x: torch.stack(
        [torch.cat([row[:1], row[1:]] if i else [row[1:], row[:1]]) for i, row in enumerate(x)]
    ),
    "joined with another constant in each": lambda x: torch.stack(
        [torch.cat([row, torch.full((1, B), float(i))]) for i, row in enumerate(x)]
    ),
    "joined with a row of the first": lambda x: torch.stack([torch.cat([row, x[0, :1]]) for row in x]),
    "each as often as its place says": lambda x: torch.stack(
        [torch.stack([r] * (i + 1)).sum(0) for i, r in enumerate(x)]
    ),
    "backwards": lambda x: torch.stack([x[i] for i in (2, 1, 0)]),
    "repeated": lambda x: torch.stack([x[0], x[0], x[2]]),
    "one is missing": lambda x: torch.stack([x[0], x[1]]),
    "one too many": lambda x: torch.stack([x[0], x[1], x[2], x[0]]),
    "halves exchanged": lambda x: torch.cat([x[2:], x[:2]]),
    "a constant among them": lambda x: torch.stack([x[0], torch.zeros(B, B), x[2]]),
    "constant rows among them": lambda x: torch.cat([x[:1], torch.zeros(1, B, B), x[2:]]),
    "sums of two": lambda x: torch.stack([x[i] + x[i - 1] for i in range(B)]),
    "a running sum": lambda x: torch.stack([sum(x[:i], x[i]) for i in range(B)]),  # type: ignore[call-overload]
    "minus the first": lambda x: x - x[0],
    "minus the first rows": lambda x: x - x[:1],
    "in another dimension": lambda x: torch.cat([x[:2], x[1:]], 1),
    "rows beside other rows": lambda x: x[:2] + x[1:],
    "written to": lambda x: torch.stack([row.clone().add_(1) for row in x]),
    "times their place": lambda x: torch.stack([row * i for i, row in enumerate(x)]),
    "plus a constant of their place": lambda x: torch.stack([row + torch.tensor(float(i)) for i, row in enumerate(x)]),
    "plus a large constant of their place": lambda x: torch.stack(
        [row.repeat(3, 3**8) + torch.full((9, 3**9), float(i)) for i, row in enumerate(x)]
    ),
    "of other tensors": lambda x: torch.stack([(x * i)[i] for i in range(B)]),
    "the first otherwise": lambda x: torch.stack([x[0].sin(), x[1], x[2]]),
    "other parts of them": lambda x: torch.stack([x[i, i] for i in range(B)]),
    "halves otherwise": lambda x: torch.cat([x[:2].tanh(), x[2:].sin()]),
    "rows that are cut in the middle": lambda x: torch.cat(x.flatten(0, 1).split(2)),
    "rows of two batches": lambda x: torch.cat([x, x * 2])[1 : B + 1].index_select(0, torch.tensor([2, 0, 1])),
    "by another function": lambda x: torch.stack([x[0].T, x[1].mT.T.T, x[2].T]),
    "cut before and after a change in place": lambda x: torch.stack([x[0].clone(), *x.mul_(1.0).unbind()[1:]]),
    "cut before and after a change of a part": lambda x: (lambda first: torch.cat([first, (part(x), x[1:])[1]]))(
        x[:1].clone()
    ),
    "cut before and after constants came in": lambda x: (
        lambda first: torch.stack([first, *(x.__setitem__((..., 0), 1.0), x.unbind())[1][1:]])
    )(x[0].clone()),
    "a diagonal of pieces": lambda x: torch.stack([x[0, 0], x[1, 0], x[2, 0]])[[1, 0, 2]],
}


@pytest.mark.parametrize("name", AGAIN)
def test_pieces_in_the_examples_order_are_the_batch_again(name: str) -> None:
    transform, axis = AGAIN[name]
    assert assert_owners_are_true(transform, torch.randn(B, B, B, dtype=torch.float64)) == axis


@pytest.mark.parametrize("name", NOT_AGAIN)
@pytest.mark.parametrize("x", [torch.randn(B, B, B), torch.ones(B, B, B), torch.arange(27.0).view(B, B, B)])
def test_pieces_in_another_order_or_of_other_examples_are_not(name: str, x: Tensor) -> None:
    """Also where the values are all alike, or sorted already."""
    assert tracked_axis(NOT_AGAIN[name], x.clone())[1] is None


def test_pieces_are_owned_as_the_example_says() -> None:
    def owned(transform: Transform) -> object:
        location = location_of_output(transform, torch.randn(3, 2))[1]
        return location.rows.tolist() if isinstance(location, SegmentIds) else location

    assert owned(lambda x: x.unbind()[1]) == Whole(1)
    assert owned(lambda x: torch.stack(x.unbind())) == 0
    assert owned(lambda x: torch.stack(x.unbind()[::-1])) == [2, 1, 0]
    assert owned(lambda x: x[:2]) == [0, 1]
    assert owned(lambda x: x[2:]) == Whole(2)
    assert owned(lambda x: torch.cat([x[:2], x[2:]])) == 0
    assert owned(lambda x: torch.cat([x, 2 * x])) == [0, 1, 2, 0, 1, 2]
    assert owned(lambda x: torch.cat([x, 2 * x]).chunk(2)[0]) == 0
    assert owned(lambda x: x[0] + x[1]) is None


WRITES: dict[str, Transform] = {
    "a row into another": lambda x: x[0].copy_(x[1]),
    "a row added to another": lambda x: x[0].add_(x[1]),
    "rows into others": lambda x: x[:2].copy_(x[1:].clone()),
    "a sum into a row": lambda x: x[0].add_(x.sum(0)),
    "through two views": lambda x: x.transpose(0, 1)[:, 0].mul_(x[1]),
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("of", [lambda x: x.clone(), lambda x: x, lambda x: torch.cat([x, x])[:B]])
def test_a_piece_that_another_example_is_written_into_is_refused(name: str, of: Transform) -> None:
    """The batch that it is a view of would go on as if nothing had happened."""
    with pytest.raises(PrivacyUnitError, match="in place"):
        tracked_axis(lambda x: WRITES[name](of(x)), torch.randn(2 * B, B, B)[:B])
