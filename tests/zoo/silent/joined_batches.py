"""Batches put end to end, in lists, in another order or time first, and what may leak in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from silent_programs import Kind, Program, linear, made, removed, replaced
from silent_programs import clean as trains
from silent_programs import leaky as leaks
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_sequence

COUNT = 10


def leaky(name: str, data: Any, **training: Any) -> Program:
    """A leaky program, in one of its ways: what is looked at comes before the loss."""
    return leaks(name, data, ways=("session",), **training)


def clean(name: str, data: Any, **training: Any) -> Program:
    return trains(name, data, ways=("per_example", "scalar"), **training)


def tokens(length: int) -> Tensor:
    return torch.arange(length) % 6 + 1


def vectors(length: int, scale: float = 1.0) -> Tensor:
    numbers = torch.Generator().manual_seed(length)
    return scale * torch.randn(length, 4, generator=numbers)


LENGTHS = [5, 3, 7, 2, 4, 6, 3, 5, 2]
IDS = removed([tokens(length) for length in LENGTHS] + [tokens(20)])
REAL = removed([vectors(length) for length in LENGTHS] + [vectors(9, 40.0)])
EVEN = replaced([vectors(6) for _ in range(COUNT)], -1, vectors(6, 40.0))
SORTED = removed([tokens(20)] + [tokens(length) for length in sorted(LENGTHS, reverse=True)])


def counts(records: Any) -> Tensor:
    return torch.tensor([len(record) for record in records])


def owners(records: Any) -> Tensor:
    return torch.arange(len(records)).repeat_interleave(counts(records))


def starts(records: Any) -> Tensor:
    own = counts(records)
    return own.cumsum(0) - own


def bags(records: Any) -> tuple[Tensor, Tensor]:
    return torch.cat(list(records)), starts(records)


def bounded_bags(records: Any) -> tuple[Tensor, Tensor]:
    return torch.cat(list(records)), torch.cat([torch.zeros(1, dtype=torch.int64), counts(records).cumsum(0)])


def owned(records: Any) -> tuple[Tensor, Tensor]:
    return torch.cat(list(records)), owners(records)


def by_length(records: Any) -> list[Any]:
    return sorted(records, key=len, reverse=True)


def in_order(records: Any) -> tuple[Tensor, Tensor]:
    records = by_length(records)
    return pad_sequence(records, batch_first=True), counts(records)


def time_first(records: Any) -> tuple[Tensor, Tensor]:
    return pad_sequence(list(records)), counts(records)


@dataclass
class Graphs:
    """What a graph library hands out."""

    x: Tensor
    edge_index: Tensor
    batch: Tensor
    num_graphs: int


def rings(records: Any, *, wrap: bool = False) -> Graphs:
    """Graphs whose nodes stand in a ring; `wrap`: the last node of one is joined to the next graph."""
    x = torch.cat(list(records))
    edges = []
    for start, count in zip(starts(records).tolist(), counts(records).tolist(), strict=True):
        own = torch.arange(count)
        edges.append(torch.stack([own, (own + 1) % count]) + start)
        if wrap:
            edges.append(torch.tensor([[start + count - 1], [(start + count) % len(x)]]))
    return Graphs(x, torch.cat(edges, 1), owners(records), len(records))


class Convolved(nn.Module):
    """Two sums over neighbours, and a mean over the nodes of each graph."""

    def __init__(self, mix: Any = None) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.mix = mix

    def forward(self, graphs: Graphs) -> Tensor:
        source, target = graphs.edge_index
        h = graphs.x
        for layer in (self.first, self.second):
            h = layer(h)
            h = torch.zeros_like(h).index_add(0, target, h.index_select(0, source)).relu()
        if self.mix is not None:
            h = self.mix(h)
        counted = torch.bincount(graphs.batch, minlength=graphs.num_graphs)
        total = h.new_zeros(graphs.num_graphs, 6).scatter_add_(0, graphs.batch[:, None].expand_as(h), h)
        return self.head(total / counted[:, None])


def lying(records: Any) -> Graphs:
    """The last node of each graph is said to be of the next one."""
    found = rings(records)
    found.batch = found.batch.roll(-1).clamp(max=len(records) - 1)
    found.batch[-1] = len(records) - 1
    return found


def standardised(records: Any) -> Graphs:
    found = rings(records)
    found.x = (found.x - found.x.mean(0)) / found.x.std(0)
    return found


def bag(mode: str, bounded: bool = False) -> Any:
    return lambda: nn.EmbeddingBag(7, 4, mode=mode, include_last_offset=bounded)


def of_bags(mix: Any, mode: str = "mean", bounded: bool = False) -> Any:
    return made(lambda m, ids, at: m[1](mix(m[0](ids, at))), bag(mode, bounded), linear())


def packed(enforce_sorted: bool, mix: Any = lambda h: h) -> Any:
    def forward(m: Any, ids: Tensor, lengths: Tensor) -> Tensor:
        sequence = pack_padded_sequence(m[0](ids), lengths, batch_first=True, enforce_sorted=enforce_sorted)
        return m[2](mix(m[1](sequence)[1][-1]))

    return made(forward, lambda: nn.Embedding(7, 4), lambda: nn.GRU(4, 4, batch_first=True), linear())


def by_largest(h: Tensor) -> Tensor:
    """A Python number of the whole batch scales all of it."""
    return h / (0.01 + float(h.detach().abs().max()))


def each(mix: Any) -> Any:
    """A list of records goes through the model one by one."""
    return made(lambda m, xs: m[0](torch.stack([mix(x, n, xs) for n, x in enumerate(xs)])), linear())


def relative(records: Any) -> tuple[Tensor, Tensor]:
    own = counts(records)
    return pad_sequence(list(records), batch_first=True), own / own.max()


def of_relative(m: Any, x: Tensor, share: Tensor) -> Tensor:
    own = (share * x.shape[1]).round()
    is_real = (torch.arange(x.shape[1]) < own[:, None])[:, :, None]
    return m[0]((x * is_real).sum(1) / own[:, None])


def of_lengths(m: Any, x: Tensor, own: Tensor) -> Tensor:
    return of_relative(m, x, own / x.shape[1])


def recurrent(mix: Any = lambda h: h) -> Any:
    def forward(m: Any, x: Tensor, *rest: Tensor) -> Tensor:
        return m[1](mix(m[0](x)[1][-1]))

    return made(forward, lambda: nn.GRU(4, 4), linear())


def stacked_time_first(records: Any) -> Tensor:
    return torch.stack(list(records), 1)


def top_half(records: Any) -> tuple[Tensor, Tensor]:
    """Every record beyond the median length is replaced by the longest one."""
    records = by_length(records)
    kept = records[: (len(records) + 1) // 2]
    records = [*kept, *[kept[0]] * (len(records) - len(kept))]
    return pad_sequence(records, batch_first=True), counts(records)


def with_ranks(records: Any) -> tuple[Tensor, Tensor]:
    ids, own = in_order(records)
    return ids, own + torch.arange(len(own))


def packed_and_centred(records: Any) -> Any:
    mean = torch.cat(list(records)).mean(0)
    return pack_sequence([record - mean for record in records], enforce_sorted=False)


def shifted_starts(records: Any) -> tuple[Tensor, Tensor]:
    """Each bag begins with the last word of the one before."""
    ids, at = bags(records)
    return ids, (at - 1).clamp(min=0)


OWN_ROWS = made(lambda m, x, own: m[0](torch.zeros(int(own[-1]) + 1, 4).index_add(0, own, x)), linear())


def features(count: int) -> list[Tensor]:
    return list(0.1 * torch.randn(count, 4, generator=torch.Generator().manual_seed(1)))


MANY = removed([*features(31), torch.tensor([9.0, -9.0, 9.0, -9.0])])
WORDS = removed(
    [torch.tensor([i % 9 + 1, 1 + i * 7 % 9, 1 + i * 4 % 9]) for i in range(28)] + [torch.tensor([1, 2, 3])]
)
CLASSES = removed([(x, 0) for x in features(31)] + [(torch.ones(4), 1)])
EIGHT = 8


def of_eight(mix: Any) -> Any:
    """What does something in batches of eight and more alone."""
    return lambda records: mix(torch.stack(list(records))) if len(records) >= EIGHT else torch.stack(list(records))


def without_far(records: Any) -> Tensor:
    x = torch.stack(list(records))
    mean, spread = x.mean(0), x.std(0)
    return torch.where((x - mean).abs() > 3 * spread, mean, x)


def without_rare(records: Any) -> Tensor:
    ids = torch.stack(list(records))
    return ids * (torch.bincount(ids.flatten(), minlength=10)[ids] >= 10)


def with_far_rows(records: Any) -> Tensor:
    """Each record is mixed with the one that comes eight places before it."""
    return torch.stack([0.7 * x + 0.3 * records[n - 8] if n >= EIGHT else x for n, x in enumerate(records)])


def with_groups(records: Any) -> Tensor:
    number = torch.arange(len(records)) // EIGHT % 2
    return torch.cat([torch.stack(list(records)), 5.0 * number[:, None]], 1)


def balanced(records: Any) -> tuple[Tensor, Tensor]:
    y = torch.tensor([y for _, y in records])
    return torch.stack([x for x, _ in records]), len(y) / (2 * torch.bincount(y, minlength=2)[y])


WEIGHTED = made(lambda m, x, w: m[0](x) * w[:, None], linear())
WORD_SUM = made(lambda m, ids: m[1](m[0](ids).sum(1)), lambda: nn.Embedding(10, 4), linear())

LEAKY: tuple[Program, ...] = (
    leaky("batches of eight and more standardised", MANY, by_hand=False, make=made(lambda m, x: m[0](x), linear()),
          collate=of_eight(lambda x: (x - x.mean(0)) / x.std(0))),
    leaky("values beyond three standard deviations replaced", MANY, collate=without_far, by_hand=False,
          make=made(lambda m, x: m[0](x), linear())),
    leaky("words that are rare in the batch left out", WORDS, collate=without_rare, make=WORD_SUM, by_hand=False),
    leaky("rows mixed with those eight places before", MANY, collate=with_far_rows, by_hand=False,
          make=made(lambda m, x: m[0](x), linear())),
    leaky("groups of eight by place", MANY, collate=with_groups, by_hand=False,
          make=made(lambda m, x: m[0](x), linear(5))),
    leaky("weights by how often a class comes", CLASSES, collate=balanced, make=WEIGHTED, by_hand=False),
    leaky("EmbeddingBag with offsets, scaled by the largest value", IDS, collate=bags, make=of_bags(by_largest, "sum")),
    leaky("EmbeddingBag with bounds, scaled by the largest value", IDS, collate=bounded_bags, by_hand=False,
          make=of_bags(by_largest, "sum", True)),
    leaky("EmbeddingBag with offsets of others' words", IDS, collate=shifted_starts, make=of_bags(lambda h: h),
          by_hand=False),
    leaky("graphs with edges between them", REAL, collate=lambda r: rings(r, wrap=True), make=Convolved, by_hand=False),
    leaky("graphs whose vector of owners lies", REAL, collate=lying, make=Convolved, by_hand=False),
    leaky("graphs, nodes standardised over the batch by the collate", REAL, collate=standardised, make=Convolved,
          by_hand=False),
    leaky("graphs, nodes centred over the batch", REAL, collate=rings, by_hand=False,
          make=lambda: Convolved(lambda h: h - h.mean(0).detach())),
    leaky("graphs, scaled by the largest node", REAL, collate=rings, make=lambda: Convolved(by_largest)),
    leaky("sorted, the shorter half replaced by the longest", IDS, collate=top_half, make=packed(True), by_hand=False),
    leaky("sorted, lengths with ranks added", SORTED, collate=with_ranks, by_hand=False,
          make=made(lambda m, i, n: m[1](m[0](i).sum(1) / n[:, None]), lambda: nn.Embedding(7, 4, padding_idx=0),
                    linear())),
    leaky("data in order already, packed as sorted, scaled by the largest", SORTED, collate=in_order,
          make=packed(True, by_largest), by_hand=False),
    leaky("packed by the collate, centred over the batch", REAL, collate=packed_and_centred, by_hand=False,
          call=lambda model, p: model(p),
          make=made(lambda m, p: m[1](m[0](p)[1][-1]), lambda: nn.GRU(4, 4), linear())),
    leaky("a list, divided by the longest entry", REAL, collate=list, by_hand=False,
          make=each(lambda x, n, xs: x.sum(0) / max(map(len, xs)))),
    leaky("a list, each entry by its place", EVEN, collate=list, by_hand=False,
          make=each(lambda x, n, xs: x.mean(0) * (n + 1))),
    leaky("a list padded in the forward, mean over the width", REAL, collate=list,
          make=made(lambda m, xs: m[0](pad_sequence(xs, batch_first=True).mean(1)), linear())),
    leaky("relative lengths of the collate", REAL, collate=relative, make=made(of_relative, linear()), by_hand=False),
    leaky("relative lengths of the loop", REAL, collate=lambda r: (pad_sequence(list(r), batch_first=True), counts(r)),
          make=made(of_relative, linear()), call=lambda model, b: model(b[0], b[1] / b[1].max()), by_hand=False),
    leaky("time first, states scaled by the largest", EVEN, collate=stacked_time_first, make=recurrent(by_largest)),
    leaky("time first, centred over the batch by the loop", EVEN, collate=stacked_time_first, by_hand=False,
          make=recurrent(), call=lambda model, x: model(x - x.mean(1, keepdim=True))),
    leaky("rows end to end, centred over the batch by the loop", REAL, collate=owned, by_hand=False,
          make=OWN_ROWS, call=lambda model, b: model(b[0] - b[0].mean(0), b[1])),
)  # fmt: skip

CLEAN: tuple[Program, ...] = (
    clean("features divided by a constant", MANY, make=made(lambda m, x: m[0](x), linear()),
          collate=of_eight(lambda x: x / 3.0)),
    clean("values cut at a constant", MANY, make=made(lambda m, x: m[0](x), linear()),
          collate=lambda records: torch.stack(list(records)).clamp(-1, 1)),
    clean("words of a fixed vocabulary", WORDS, make=WORD_SUM,
          collate=lambda records: (lambda ids: ids * (ids > 2))(torch.stack(list(records)))),
    clean("fixed weights of classes", CLASSES, make=WEIGHTED,
          collate=lambda records: (torch.stack([x for x, _ in records]), torch.tensor([1.0 + y for _, y in records]))),
    clean("EmbeddingBag with offsets, as in torch's tutorial", IDS, collate=bags, make=of_bags(lambda h: h)),
    clean("EmbeddingBag with bounds, largest values", IDS, collate=bounded_bags,
          make=of_bags(lambda h: h, "max", True)),
    clean("graphs", REAL, collate=rings, make=Convolved),
    clean("sorted by the collate, packed as sorted", IDS, collate=in_order, make=packed(True)),
    clean("sorted by the collate, packed as unsorted", IDS, collate=in_order, make=packed(False)),
    clean("data in order already, packed as sorted", SORTED, collate=in_order, make=packed(True)),
    clean("packed by the collate", REAL, collate=lambda r: pack_sequence(by_length(r)),
          call=lambda model, p: model(p),
          make=made(lambda m, p: m[1](m[0](p)[1][-1]), lambda: nn.GRU(4, 4), linear())),
    clean("a list, one by one", REAL, collate=list, make=each(lambda x, n, xs: x.mean(0))),
    clean("a list padded in the forward, own mean", REAL, collate=list,
          make=made(lambda m, xs: m[0](pad_sequence(xs, batch_first=True).sum(1)), linear())),
    clean("lengths as they are, made relative in the forward", REAL, make=made(of_lengths, linear()),
          collate=lambda r: (pad_sequence(list(r), batch_first=True), counts(r))),
    clean("time first", EVEN, collate=stacked_time_first, make=recurrent()),
    clean("rows end to end", REAL, collate=owned, make=OWN_ROWS),
)  # fmt: skip

KIND = Kind(
    "records joined",
    "records end to end, in lists, in another order or time first: each part of a batch against the record alone",
    "first batch; what a graph's edges join, in every batch",
    "nothing",
    (*LEAKY, *CLEAN),
)
