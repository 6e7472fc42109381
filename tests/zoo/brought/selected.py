"""Parameters used by hand, and rows that a forward picks, moves and puts back: tables, experts, masks, halves."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hushgrad
from brought.forwards import labelled, layer, of_sequence, on_sequence, vectors
from brought.running import SEQUENCES, B, Brought, D, Of, T, exact, network, refused

IDS = labelled(torch.arange(B * T).reshape(B, T) % 7)


def table(f: Any, *shape: int) -> Brought:
    """`f(m, ids)` gives `[B, T, D]`; `m.w` is a trained table."""

    def make() -> nn.Module:
        return Of(lambda m, ids: m.head(f(m, ids).sum(1)), w=nn.Parameter(torch.randn(*shape)), head=nn.Linear(D, 3))

    return exact(make=make, records=IDS)


def tokens(f: Any, **parts: Any) -> Brought:
    """`f(m, rows)` works on the tokens of all records, one behind the other; their mean is classified."""

    def make() -> nn.Module:
        made = {name: part() for name, part in parts.items()}
        return Of(lambda m, x: f(m, m.first(x).flatten(0, 1)).view(len(x), T, -1).mean(1), first=layer(), **made)

    return exact(make=make, records=SEQUENCES)


def two() -> nn.Module:
    return nn.ModuleList([nn.Linear(D, 3), nn.Linear(D, 3)])


def choice(rows: Tensor) -> Tensor:
    return (rows[:, 0] > 0).long()


def by_where(m: Any, rows: Tensor) -> Tensor:
    out = rows.new_zeros(len(rows), 3)
    for number, expert in enumerate(m.experts):
        own = torch.where(choice(rows) == number)[0]
        out.index_add_(0, own, expert(rows[own]))
    return out


def by_sort(m: Any, rows: Tensor) -> Tensor:
    order = choice(rows).argsort()
    moved = rows[order]
    return (m.head(moved) * (1 + choice(moved))[:, None])[order.argsort()]


def by_repeat(m: Any, rows: Tensor) -> Tensor:
    both = rows.repeat_interleave(2, dim=0)
    weights = torch.stack([m.experts[0].weight, m.experts[1].weight])[torch.arange(len(both)) % 2]
    return torch.bmm(weights, both[:, :, None]).view(len(rows), 2, 3).sum(1)


def masked_head(m: Any, rows: Tensor) -> Tensor:
    mask, out = rows[:, 0] > 0, rows.new_zeros(len(rows), 3)
    out[mask] = m.head(rows[mask])
    return out


def unpadded(m: Any, x: Tensor) -> Tensor:
    mask = x[..., 0] > -1
    return torch.zeros(len(x), D).index_add(0, mask.nonzero()[:, 0], m.first(x[mask]))


def scattered(m: Any, x: Tensor) -> Tensor:
    """Places of an image are filled with features of an encoder, as vision-language models do."""
    mask = (torch.arange(T) < 2).expand(len(x), T)
    if mask.sum() != len(x) * 2:
        raise ValueError("as many features as places")
    return x.masked_scatter(mask[..., None].expand_as(x), m.first(x[:, 2:]))


def lookup_of_positions(m: Any, x: Tensor) -> Tensor:
    places = torch.arange(T).expand(len(x), T)
    return x + m.table.index_select(0, places.reshape(-1)).view(len(x), T, D)


def columns(x: Tensor) -> Tensor:
    return x[..., 0].argsort(1)[:, :2]


def last_token(m: Any, x: Tensor) -> Tensor:
    lengths = 1 + (x[:, 1:, 0] > 0).sum(1)
    return m.first(x)[torch.arange(len(x)), lengths - 1][:, None]


def by_pairs(m: Any, x: Tensor) -> Tensor:
    rows = torch.arange(len(x)).repeat_interleave(2)
    return m.first(x)[rows, columns(x).flatten()].view(len(x), 2, D)


def by_columns(m: Any, x: Tensor) -> Tensor:
    return m.first(x)[torch.arange(len(x))[:, None], columns(x)]


def repeated(m: Any, x: Tensor) -> Tensor:
    return m.first(x).repeat(3, 1, 1).tanh().view(3, len(x), T, D).sum(0)


def interleaved(m: Any, x: Tensor) -> Tensor:
    return m.first(x).repeat_interleave(3, dim=0).tanh().view(len(x), 3, T, D).sum(1)


def pooled(m: Any, x: Tensor) -> Tensor:
    return m.head(unpadded(m, x))


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return gradient * weight, (gradient * x).sum(0)


def fused(function: Any) -> Any:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(function(x, m.w))

    return lambda: Of(forward, w=nn.Parameter(torch.ones(D)), head=nn.Linear(D, 3))


MASK = torch.eye(3, D)


def hooked() -> nn.Module:
    model = nn.Linear(D, 3)
    model.weight.register_hook(lambda gradient: gradient * MASK)
    return model


def masked_weight() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return F.linear(x, MASK * m.w + ((1 - MASK) * m.w).detach())

    return Of(forward, w=nn.Parameter(torch.randn(3, D)))


def written_into_a_buffer(m: Any, x: Tensor) -> Tensor:
    full = torch.zeros(D, D)
    full[torch.arange(D), torch.arange(D)] = m.w
    return m.head(x @ full)


TABLES: dict[str, Brought] = {
    "a trained table by ids: `self.w[ids]`": table(lambda m, i: m.w[i], 7, D),
    "`self.w.index_select(0, ids.flatten())`": table(
        lambda m, i: m.w.index_select(0, i.flatten()).view(-1, T, D), 7, D
    ),
    "`self.w.gather(...)` by ids": table(
        lambda m, i: m.w.expand(len(i), -1, -1).gather(1, i[..., None].expand(-1, -1, D)), 7, D
    ),
    "scores of neighbouring labels, `self.w[a, b]` (CRF)": table(
        lambda m, i: m.w[i, i.roll(1, 1)][..., None].expand(-1, -1, D), 7, 7
    ),
    "columns of a trained table, `self.w[:, ids]`": table(lambda m, i: m.w[:, i].permute(1, 2, 0), D, 7),
    "a table by flattened positions": of_sequence(
        lookup_of_positions, table=lambda: nn.Parameter(torch.randn(T, D))
    ),
    "a parameter through a custom autograd function": refused(
        "DP401", {"make": fused(Scale.apply)}, "`scale = hushgrad.register_operator(Scale)`",
        {"make": fused(hushgrad.register_operator(Scale))},
    ),
    "values of a parameter written into a buffer": exact(
        make=lambda: Of(written_into_a_buffer, w=nn.Parameter(torch.randn(D)), head=nn.Linear(D, 3))
    ),
    "a hook that masks a parameter's gradient": refused(
        "DP306", {"make": hooked, "clip": 1.0}, "the mask in the forward: `mask * w + ((1 - mask) * w).detach()`",
        {"make": masked_weight, "clip": None},
    ),
    "a layer's output changed in place": exact(
        make=lambda: Of(lambda m, x: m.b(m.a(x).unsqueeze_(1).squeeze(1).relu_()), a=nn.Linear(D, 6), b=nn.Linear(6, 3))
    ),
}  # fmt: skip

ROWS: dict[str, Brought] = {
    "mixture of experts by `torch.where` and `index_add_`": tokens(by_where, experts=two),
    "mixture of experts, tokens sorted by expert": tokens(by_sort, head=lambda: nn.Linear(D, 3)),
    "mixture of experts, `repeat_interleave` of the tokens": tokens(by_repeat, experts=two),
    "a head on the tokens of a mask, `h[mask]`": tokens(masked_head, head=lambda: nn.Linear(D, 3)),
    "tokens without their padding, end to end": exact(
        make=lambda: Of(pooled, first=layer(), head=nn.Linear(D, 3)), records=SEQUENCES
    ),
    "`masked_scatter` of image features among tokens": of_sequence(scattered),
    "the last token, `h[torch.arange(len(h)), lengths - 1]`": of_sequence(last_token),
    "tokens picked by pairs of indices, `h[rows, columns]`": refused(
        "DP304", {"make": on_sequence(by_pairs), "records": SEQUENCES},
        "`h[torch.arange(len(h))[:, None], columns]`, with columns `[B, k]`", {"make": on_sequence(by_columns)},
    ),
    "copies of the batch one behind the other, `h.repeat(k, 1, 1)`": refused(
        "DP304", {"make": on_sequence(repeated), "records": SEQUENCES}, "`h.repeat_interleave(k, dim=0)`",
        {"make": on_sequence(interleaved)},
    ),
    "`torch.stack([f(x) for x in h])`": vectors(lambda h: torch.stack([row.softmax(0) for row in h])),
    "`torch.cat` of two halves of the batch": vectors(lambda h: torch.cat([part.tanh() for part in h.chunk(2)])),
    "`split` over the batch, then `cat`": vectors(lambda h: torch.cat([part.sin() for part in h.split(2)])),
    "two views by `torch.cat` and `chunk` in the forward": vectors(
        lambda h: sum(torch.cat([h, h.sin()]).tanh().chunk(2))
    ),
    "`F.pad` that names the batch's axis with 0": of_sequence(lambda m, x: F.pad(m.first(x), (0, 0, 1, 0, 0, 0))),
    "rows as `torch.nested` tensors": refused(
        "DP304",
        {"make": lambda: Of(lambda m, x: m.head(nested(m.first(x))), first=nn.Linear(D, 6), head=nn.Linear(6, 3))},
        "rows end to end, or padded: `pad_sequence`",
        {"make": lambda: Of(
            lambda m, x: m.head(nn.utils.rnn.pad_sequence(list(m.first(x)), batch_first=True)),
            first=nn.Linear(D, 6), head=nn.Linear(6, 3),
        )},
    ),
    "`torch.func.vmap` over the examples": refused(
        "DP305",
        {"make": lambda: Of(lambda m, x: torch.func.vmap(m.head)(x), head=network())},
        "the layer on the whole batch: `self.head(x)`",
        {"make": lambda: Of(lambda m, x: m.head(x), head=network())},
    ),
}  # fmt: skip


def nested(h: Tensor) -> Tensor:
    return torch.nested.as_nested_tensor(list(h)).to_padded_tensor(0.0)
