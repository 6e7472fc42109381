"""Batches that are not one tensor `[B, ...]`: lists, rows end to end, sorted, time first, and constants beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

from brought.running import (
    LABELLED,
    SEQUENCES,
    Brought,
    D,
    Of,
    Run,
    T,
    Y,
    by,
    exact,
    network,
    ordinary_alone,
    ordinary_loop,
    refused,
)

LENGTHS = [5, 3, 4, 2, 3, 1]
WORDS = [(torch.arange(length) + length, y) for length, y in zip(LENGTHS, Y, strict=True)]
RAGGED = [(torch.randn(n, D, generator=torch.Generator().manual_seed(n)), y) for n, y in zip(LENGTHS, Y, strict=True)]
SORTED = sorted(WORDS, key=lambda record: -len(record[0]))


def collated(collate: Callable[[Any], Any], make: Any, records: Any, *, loop: Any = ordinary_loop) -> dict[str, Any]:
    """A program on batches as `collate` makes them; the oracle collates one record."""

    def alone(model: Any, record: Any) -> Tensor:
        *inputs, y = collate([record])
        return F.cross_entropy(model(*inputs), y)

    return {"make": make, "records": records, "collate": collate, "alone": alone, "loop": loop}


def labels(records: Any) -> Tensor:
    return torch.stack([y for _, y in records])


def lists(records: Any) -> Any:
    return [x for x, _ in records], labels(records)


def zipped(records: Any) -> Any:
    return tuple(zip(*records, strict=True))


def detect(run: Run) -> None:
    for xs, ys in run.loader:
        run.optimizer.zero_grad()
        F.cross_entropy(run.model(xs), torch.stack(ys)).backward()
        run.optimizer.step()


def bags(records: Any) -> Any:
    counts = torch.tensor([len(x) for x, _ in records])
    return torch.cat([x for x, _ in records]), counts.cumsum(0) - counts, labels(records)


def in_order(records: Any) -> Any:
    records = sorted(records, key=lambda record: -len(record[0]))
    return padded(records)


def padded(records: Any) -> Any:
    lengths = torch.tensor([len(x) for x, _ in records])
    return pad_sequence([x for x, _ in records], batch_first=True), lengths, labels(records)


def time_first(records: Any) -> Any:
    return torch.stack([x for x, _ in records], 1), labels(records)


def with_states(records: Any) -> Any:
    return torch.stack([x for x, _ in records], 1), torch.zeros(2, len(records), 3), labels(records)


def one_by_one(m: Any, xs: Any) -> Tensor:
    return m.head(torch.stack([m.first(x).tanh().sum(0) for x in xs]))


def packed(m: Any, ids: Tensor, lengths: Tensor) -> Tensor:
    sequence = pack_padded_sequence(m.table(ids), lengths, batch_first=True)
    return m.head(m.body(sequence)[1][-1])


def packs() -> nn.Module:
    return Of(packed, table=nn.Embedding(12, D), body=nn.GRU(D, 3, batch_first=True), head=nn.Linear(3, 3))


def attention() -> nn.Module:
    return nn.TransformerEncoderLayer(D, 2, 6, dropout=0.0)


def bag_of_words() -> nn.Module:
    return Of(lambda m, ids, at: m.head(m.bag(ids, at)), bag=nn.EmbeddingBag(12, D), head=nn.Linear(D, 3))


# Graphs ------------------------------------------------------------------------------------------------------------


@dataclass
class Graphs:
    """Nodes of all graphs end to end, edges, and the graph that each node is of."""

    x: Tensor
    edge_index: Tensor
    batch: Tensor
    count: int


class Data:
    """The same in an object of one's own."""

    def __init__(self, x: Tensor, edge_index: Tensor, batch: Tensor, count: int) -> None:
        self.x, self.edge_index, self.batch, self.count = x, edge_index, batch, count


def graphs(kind: Any) -> Callable[[Any], Any]:
    def collate(records: Any) -> Any:
        counts = torch.tensor([len(x) for x, _ in records])
        starts = (counts.cumsum(0) - counts).tolist()
        rings = [
            torch.stack([torch.arange(n), (torch.arange(n) + 1) % n]) + s
            for n, s in zip(counts.tolist(), starts, strict=True)
        ]
        owners = torch.arange(len(records)).repeat_interleave(counts)
        return kind(torch.cat([x for x, _ in records]), torch.cat(rings, 1), owners, len(records)), labels(records)

    return collate


def convolved(m: Any, g: Any) -> Tensor:
    source, target = g.edge_index
    h = m.first(g.x)
    h = torch.zeros_like(h).index_add(0, target, h[source]).relu()
    return m.head(h.new_zeros(g.count, D).index_add(0, g.batch, h))


def graph_network() -> nn.Module:
    return Of(convolved, first=nn.Linear(D, D), head=nn.Linear(D, 3))


# More rows than records --------------------------------------------------------------------------------------------


def noisy(x: Tensor) -> Tensor:
    return x.flip(-1)


def joined(model: Any, x: Tensor, y: Tensor) -> Tensor:
    a, b = model(torch.cat([x, noisy(x)])).chunk(2)
    return F.mse_loss(a, b)


def one_after_the_other(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), model(noisy(x)))


def folded(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x.flatten(0, 1)).view(len(x), T, 3).mean(1), y)


def folding() -> nn.Module:
    return Of(lambda m, x: m.net(x.flatten(0, 1)).view(len(x), T, 3).mean(1), net=network())


# Constants ---------------------------------------------------------------------------------------------------------


def attending() -> nn.Module:
    return Of(
        lambda m, x, mask: m.head(m.attend(x, x, x, attn_mask=mask)[0].sum(1)),
        attend=nn.MultiheadAttention(D, 2, batch_first=True),
        head=nn.Linear(D, 3),
    )


def given(constant: Tensor, *, is_public: bool) -> dict[str, Any]:
    def loop(run: Run) -> None:
        tensor = run.session.public(constant) if is_public else constant
        for x, y in run.loader:
            run.optimizer.zero_grad()
            F.cross_entropy(run.model(x, tensor), y).backward()
            run.optimizer.step()

    return {"loop": loop, "alone": lambda m, r: F.cross_entropy(m(r[0][None], constant), r[1][None])}


def constant(make: Any, tensor: Tensor, records: Any) -> Brought:
    return refused(
        "DP304", {"make": make, "records": records, **given(tensor, is_public=False)},
        "declared before the loop: `mask = session.public(mask)`", given(tensor.clone(), is_public=True),
    )  # fmt: skip


CAUSAL = torch.triu(torch.full((T, T), -torch.inf), 1)

JOINED: dict[str, Brought] = {
    "a list of tensors, `[r[0] for r in records]`": exact(
        **collated(lists, lambda: Of(one_by_one, first=nn.Linear(D, D), head=nn.Linear(D, 3)), RAGGED)
    ),
    "detection's collate, `tuple(zip(*records))`": exact(
        **collated(
            zipped, lambda: Of(one_by_one, first=nn.Linear(D, D), head=nn.Linear(D, 3)), RAGGED, loop=detect
        ) | {"alone": lambda m, r: F.cross_entropy(m([r[0]]), r[1][None])}
    ),
    "`EmbeddingBag` with offsets by `cumsum`": exact(**collated(bags, bag_of_words, WORDS)),
    "a collate that sorts by length, then `pack_padded_sequence`": exact(**collated(in_order, packs, WORDS)),
    "`pack_padded_sequence` of data in order already": exact(**collated(padded, packs, SORTED)),
    "time first, `[T, B, D]`": exact(
        **collated(time_first, lambda: Of(lambda m, x: m.head(m.body(x)[0][-1]), body=nn.LSTM(D, 3),
                                          head=nn.Linear(3, 3)), SEQUENCES)
    ),
    "`nn.TransformerEncoderLayer` as torch has it, time first": exact(
        **collated(time_first, lambda: Of(lambda m, x: m.head(m.body(x).sum(0)), body=attention(),
                                          head=nn.Linear(D, 3)), SEQUENCES)
    ),
    "states `[layers, B, h]` from outside": exact(
        **collated(with_states, lambda: Of(lambda m, x, h: m.head(m.body(x, h)[0][-1]), body=nn.GRU(D, 3, 2),
                                           head=nn.Linear(3, 3)), SEQUENCES)
    ),
    "graphs: nodes end to end, edges, owners": exact(**collated(graphs(Graphs), graph_network, RAGGED)),
    "graphs in an object of one's own": exact(**collated(graphs(Data), graph_network, RAGGED)),
}  # fmt: skip

ROWS: dict[str, Brought] = {
    "two views by `torch.cat` in the loop": refused(
        "DP304", by(joined), "two calls of the model, or `cat` and `chunk` in its forward", by(one_after_the_other)
    ),
    "views folded into the batch by the loop, `x.flatten(0, 1)`": refused(
        "DP304", {"records": SEQUENCES, **by(folded)},
        "the same in the model's forward", {"make": folding, "loop": ordinary_loop, "alone": ordinary_alone},
    ),
}  # fmt: skip

CONSTANTS: dict[str, Brought] = {
    "a causal mask `[T, T]` that the model is given": constant(attending, CAUSAL, SEQUENCES),
    "features of classes `[C, D]` that the model is given": constant(
        lambda: Of(lambda m, x, c: m.head(x) @ c.T, head=nn.Linear(D, D)), torch.eye(3, D), LABELLED
    ),
    "weights of classes `[C]` that the model is given": constant(
        lambda: Of(lambda m, x, w: m.head(x) * w, head=nn.Linear(D, 3)), torch.tensor([1.0, 2.0, 0.5]), LABELLED
    ),
}
