"""Rows that a forward selects by the batch's values and puts back: masked tokens, mixtures of experts, sorted rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from silent_programs import Kind, Program, clean, leaky, linear, made, removed, replaced
from torch import Tensor

COUNT, T = 8, 4
WAYS = ("per_example",)
NUMBERS = "numbers read in the forward"

TOKENS = torch.ones(COUNT, T, 4)
TOKENS[:, 1:, 0] = -1  # one token of each record is for one expert, the others for the other

GREEDY = TOKENS.clone()
GREEDY[0, :, 0] = 1000
FIRST = {"records": list(GREEDY), "others": list(GREEDY)[1:], "limit": 1.0}
LARGE = replaced(GREEDY, 0, TOKENS[0])

RARE = TOKENS.abs()
RARE[-1, :, 0] = -1
LAST = removed(RARE)  # the only record with the expert 0

LATER = torch.cat([-TOKENS.abs(), GREEDY])
FILLED = replaced(LATER, COUNT, TOKENS[0])  # a capacity that the first batch does not touch, and the second one does


def experts(rows: Tensor) -> Tensor:
    return (rows[..., 0] > 0).long()


def flat(f: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """A forward on tokens of all records, one behind the other."""
    return lambda m, x: f(m, x.flatten(0, 1)).view(len(x), -1, 3)


def zeros(rows: Tensor) -> Tensor:
    return rows.new_zeros(len(rows), 3)


def put(m: Any, rows: Tensor, chosen: Tensor, scale: Any = 1.0) -> Tensor:
    return zeros(rows).index_add(0, chosen, m[0](rows[chosen]) * scale)


def chosen(rows: Tensor, number: int = 1) -> Tensor:
    return torch.where(experts(rows) == number)[0]


def capacity(most: int) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, rows: put(m, rows, chosen(rows)[:most])


def by_place(m: Any, rows: Tensor) -> Tensor:
    out, mask = zeros(rows), (experts(rows).cumsum(0) * experts(rows) <= 4) & (experts(rows) == 1)
    out[mask] = m[0](rows[mask])
    return out


def first_rows(m: Any, rows: Tensor) -> Tensor:
    order = rows[:, 0].argsort(descending=True)
    moved = rows[order]
    return torch.cat([m[0](moved[:4]), 0 * m[0](moved[4:])])[order.argsort()]  # type: ignore[no-any-return]


def largest(m: Any, rows: Tensor) -> Tensor:
    return put(m, rows, rows[:, 0].topk(4).indices)


def above_mean(m: Any, rows: Tensor) -> Tensor:
    mask, out = rows[:, 0] > rows[:, 0].mean(), zeros(rows)
    out[mask] = m[0](rows[mask])
    return out


def ranks(m: Any, rows: Tensor) -> Tensor:
    out = zeros(rows)
    for place, number in enumerate(sorted(set(experts(rows).tolist()))):
        own = chosen(rows, number)
        out = out.index_add(0, own, m[0](rows[own]) * (1 - 2 * place))
    return out


def first_expert(m: Any, rows: Tensor) -> Tensor:
    mask, out = F.one_hot(experts(rows), 2).T, zeros(rows)
    for number in torch.greater(mask.sum(1), 0).nonzero()[:1]:
        own = torch.where(mask[number[0]])[0]
        out.index_add_(0, own, m[0](rows[own]))
    return out


def balanced(m: Any, rows: Tensor) -> Tensor:
    counts = torch.bincount(experts(rows), minlength=2)
    return put(m, rows, chosen(rows), (counts[1] - 9).sign())


def few(m: Any, rows: Tensor) -> Tensor:
    own = chosen(rows)
    return put(m, rows, own, 1.0 if len(own) < 9 else -1.0)


FORWARDS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "a capacity, first come": (capacity(4), FIRST, {}),
    "a capacity that the first batch does not reach": (capacity(5), FILLED, {"batches": 2}),
    "a capacity by places": (by_place, FIRST, {}),
    "the first of the sorted rows": (first_rows, LARGE, {}),
    "the largest rows of the batch": (largest, LARGE, {}),
    "rows above the batch's mean": (above_mean, LARGE, {}),
    "experts by their rank among those that are there": (ranks, LAST, {"trust": (NUMBERS,)}),
    "the first of the experts that are there": (first_expert, LAST, {}),
    "rows times a sign of their number": (balanced, FIRST, {}),
    "a sign by how many rows there are, in Python": (few, FIRST, {"trust": (NUMBERS,)}),
}


def total(out: Tensor, target: Tensor) -> Tensor:
    """Losses whose gradients have the sign of the outputs' factors."""
    return out.flatten(1).sum(1)


LEAKY: tuple[Program, ...] = tuple(
    leaky(name, data, make=made(flat(forward), linear()), loss=total, ways=WAYS, **options)
    for name, (forward, data, options) in FORWARDS.items()
)


def masked_head(m: Any, x: Tensor) -> Tensor:
    mask, out = x[..., 0] > 0, x.new_zeros(*x.shape[:2], 3)
    out[mask] = m[0](x[mask])
    return out


def loop_of_experts(m: Any, rows: Tensor) -> Tensor:
    out = zeros(rows)
    for number in range(2):
        own = chosen(rows, number)
        out = out.index_add(0, own, m[number](rows[own]))
    return out


def there(m: Any, rows: Tensor) -> Tensor:
    mask, out = F.one_hot(experts(rows), 2).T, zeros(rows)
    for number in torch.greater(mask.sum(1), 0).nonzero():
        own = torch.where(mask[number[0]])[0]
        out.index_add_(0, own, m[0](rows[own]))
    return out


def sorted_and_back(m: Any, rows: Tensor) -> Tensor:
    order = experts(rows).argsort()
    return m[0](rows[order])[order.argsort()]  # type: ignore[no-any-return]


def sorted_and_added(m: Any, rows: Tensor) -> Tensor:
    order = experts(rows).argsort()
    return zeros(rows).index_add(0, order, m[0](rows[order]))


def sums_of_records(m: Any, x: Tensor) -> Tensor:
    mask = x[..., 0] > 0
    return torch.zeros(len(x), 3).index_add(0, mask.nonzero()[:, 0], m[0](x[mask]))


def own_largest(m: Any, x: Tensor) -> Tensor:
    places = x[..., 0].topk(2, dim=1).indices
    return m[0](x.gather(1, places.unsqueeze(-1).expand(-1, -1, 4)))  # type: ignore[no-any-return]


CLEAN: tuple[Program, ...] = (
    clean("a head on masked tokens", FIRST, make=made(masked_head, linear()), ways=WAYS),
    clean("each expert's rows", FIRST, make=made(flat(loop_of_experts), linear(), linear()), ways=WAYS),
    clean("the experts that are there", LAST, make=made(flat(there), linear()), ways=WAYS, told=(NUMBERS,)),
    clean("sorted and put back", LARGE, make=made(flat(sorted_and_back), linear()), ways=WAYS),
    clean("sorted and added in place", LARGE, make=made(flat(sorted_and_added), linear()), ways=WAYS),
    clean("sums of each record's own", FIRST, make=made(sums_of_records, linear()), ways=WAYS),
    clean("each record's largest", LARGE, make=made(own_largest, linear()), ways=WAYS),
)

KIND = Kind(
    "selected rows",
    "which record each selected row is of, and that all rows which others put in order are back in their old places",
    "every batch",
    "what a forward decides in Python by numbers of the batch, or of its rows: `numbers read in the forward`",
    (*LEAKY, *CLEAN),
)
