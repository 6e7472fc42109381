"""Padding to the longest record of a batch, and models that see it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from silent_programs import Kind, Of, Program, clean, leaky, linear, made, removed, replaced
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

SHORT, LONG, COUNT = 3, 60, 16


def tokens(length: int) -> Tensor:
    return torch.arange(length) % 6 + 1


IDS = removed([tokens(SHORT)] * (COUNT - 1) + [tokens(LONG)])
REAL = removed([torch.ones(SHORT, 4)] * (COUNT - 1) + [torch.ones(LONG, 4)])
WIDE = removed([F.pad(tokens(SHORT), (0, LONG - SHORT))] * (COUNT - 1) + [tokens(LONG)])


def with_tail(length: int) -> Tensor:
    """Tokens of which the first four are others than those that come after them."""
    return torch.cat([tokens(4), 5 + torch.arange(length - 4) % 2])


HALVES = replaced([tokens(4)] * 16 + [with_tail(16)] * 16, -1, tokens(4))
SHORTER = replaced([tokens(4)] * 8 + [with_tail(16)] * 8, 0, tokens(1))
FEW_SHORT = replaced([tokens(4)] * 4 + [with_tail(16)] * 12, 0, tokens(1))
FEW_LONG = replaced([tokens(4)] * 2 + [with_tail(12)] * 20 + [with_tail(16)] * 2, 2, tokens(4))
EVEN_FIRST = replaced([with_tail(8)] * 32 + HALVES["records"], -1, tokens(4))


def trimmed(rule: Any) -> Any:
    """What cuts and pads the records of a batch to a length that is made of all lengths."""

    def collate(records: Any) -> Tensor:
        length = rule(sorted(map(len, records)))
        return torch.stack([F.pad(record[:length], (0, max(0, length - len(record)))) for record in records])

    return collate


def to_full_padding(records: Any) -> Tensor:
    """Pads all to one width, and cuts what is padding in all records."""
    ids = to_full_width(records)
    return ids[:, : int((ids != 0).sum(1).max())]


def padded(records: Any) -> Tensor:
    return pad_sequence(list(records), batch_first=True)


def time_first(records: Any) -> Tensor:
    return pad_sequence(list(records))


def to_full_width(records: Any) -> Tensor:
    return torch.stack([F.pad(record, (0, LONG - len(record))) for record in records])


def filled(records: Any) -> tuple[Tensor, Tensor]:
    return pad_sequence(list(records), batch_first=True, padding_value=5.0), lengths(records)


def lengths(records: Any) -> Tensor:
    return torch.tensor([len(record) for record in records])


def with_lengths(records: Any) -> tuple[Tensor, Tensor]:
    return padded(records), lengths(records)


def as_dict(records: Any) -> dict[str, Tensor]:
    return {"ids": padded(records), "count": lengths(records)}


def for_transformers(records: Any) -> dict[str, Tensor]:
    ids = padded(records)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": ids.masked_fill(ids == 0, -100)}


def embedding() -> nn.Module:
    return nn.Embedding(7, 4, padding_idx=0)


def mean_of(h: Tensor, ids: Tensor) -> Tensor:
    """The mean over an example's own positions."""
    is_real = (ids != 0)[:, :, None]
    return (h * is_real).sum(1) / is_real.sum(1).clamp(min=1)


def own_last(h: Tensor, ids: Tensor) -> Tensor:
    last = (ids != 0).sum(1) - 1
    return h.gather(1, last[:, None, None].expand(-1, 1, h.shape[2])).squeeze(1)


def lstm(two_ways: bool = False) -> Any:
    return lambda: nn.LSTM(4, 4, batch_first=True, bidirectional=two_ways)


def attention() -> nn.Module:
    return nn.MultiheadAttention(4, 1, batch_first=True)


def conv() -> nn.Module:
    return nn.Conv1d(4, 4, 3, padding=1)


def masked_conv(m: Any, i: Tensor) -> Tensor:
    h = m[1](m[0](i).transpose(1, 2)).relu().transpose(1, 2)
    return m[2](mean_of(h, i))


def packed(m: Any, i: Tensor) -> Tensor:
    sequence = pack_padded_sequence(m[0](i), (i != 0).sum(1), batch_first=True, enforce_sorted=False)
    return m[2](pad_packed_sequence(m[1](sequence)[0], batch_first=True)[0][:, 0])


def from_the_end(m: Any, i: Tensor) -> Tensor:
    place = i.shape[1] - 1 - torch.arange(i.shape[1])
    return m[2]((m[0](i) + m[1](place))[:, 0])


def from_its_own_end(m: Any, i: Tensor) -> Tensor:
    place = ((i != 0).sum(1)[:, None] - 1 - torch.arange(i.shape[1])).clamp(min=0)
    return m[2]((m[0](i) + m[1](place))[:, 0])


def language(mean_over_width: bool) -> dict[str, Any]:
    """A causal language model by the names of transformers, and the loss of each sequence."""

    def loss(out: Tensor, labels: Tensor) -> Tensor:
        found = F.cross_entropy(out[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100)
        return found.mean(1) if mean_over_width else found.sum(1) / (labels[:, 1:] != -100).sum(1)

    return {
        "make": lambda: Of(lambda m, ids, mask: m[1](m[0](ids)), nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 7)),
        "call": lambda model, batch: model(batch["input_ids"], batch["attention_mask"]),
        "targets": lambda batch: batch["labels"],
        "loss": loss,
        "collate": for_transformers,
        "clip": 0.4,
    }


def next_token(mean_over_width: bool) -> dict[str, Any]:
    """The loop shifts: `model(ids[:, :-1])` against `ids[:, 1:]`."""

    def loss(out: Tensor, labels: Tensor) -> Tensor:
        found = F.cross_entropy(out.transpose(1, 2), labels, reduction="none", ignore_index=-100)
        return found.mean(1) if mean_over_width else found.sum(1) / (labels != -100).sum(1)

    return {
        "make": made(lambda m, i: m[1](m[0](i)), embedding, linear(4, 7)),
        "call": lambda model, ids: model(ids[:, :-1]),
        "targets": lambda ids: ids[:, 1:].masked_fill(ids[:, 1:] == 0, -100),
        "loss": loss,
        "collate": padded,
        "clip": 0.4,
    }


def pooled(x: Tensor) -> Tensor:
    """The mean over an example's own vectors."""
    is_real = (x != 0).any(2)[:, :, None]
    return (x * is_real).sum(1) / is_real.sum(1)


def by_place(x: Tensor) -> Tensor:
    """A sum over positions that are weighed by where they are in the padded width."""
    return (x * torch.linspace(0, 1, x.shape[1])[:, None]).sum(1)


def by_own_place(x: Tensor) -> Tensor:
    return (x * torch.arange(x.shape[1])[:, None]).sum(1) / (x != 0).any(2).sum(1, keepdim=True)


VECTORS = made(lambda m, x: m[0](x), linear())
"""Gets one vector of each record: the loop pools over positions."""

MEAN = made(lambda m, i: m[1](m[0](i).mean(1)), embedding, linear())
OWN_MEAN = made(lambda m, i: m[1](mean_of(m[0](i), i)), embedding, linear())


def cut(model: nn.Module, ids: Tensor) -> Any:
    return model(ids[:, : int((ids != 0).sum(1).max())])


LEAKY: tuple[Program, ...] = (
    leaky("mean over positions", IDS, make=MEAN, collate=padded),
    leaky(
        "convolution, mean over positions",
        IDS,
        collate=padded,
        make=made(lambda m, i: m[2](m[1](m[0](i).transpose(1, 2)).relu().mean(2)), embedding, conv, linear()),
    ),
    leaky(
        "last state of an LSTM",
        IDS,
        collate=padded,
        make=made(lambda m, i: m[2](m[1](m[0](i))[0][:, -1]), embedding, lstm(), linear()),
    ),
    leaky(
        "h_n of an LSTM",
        IDS,
        collate=padded,
        make=made(lambda m, i: m[2](m[1](m[0](i))[1][0][0]), embedding, lstm(), linear()),
    ),
    leaky(
        "attention without a mask",
        IDS,
        collate=padded,
        make=made(
            lambda m, i: m[2]((lambda h: m[1](h, h, h, need_weights=False)[0][:, 0])(m[0](i))),
            embedding,
            attention,
            linear(),
        ),
    ),
    leaky(
        "first state of a two-way LSTM",
        IDS,
        collate=padded,
        clip=0.01,
        make=made(lambda m, i: m[2](m[1](m[0](i))[0][:, 0]), embedding, lstm(True), linear(8, 3)),
    ),
    leaky(
        "maximum over positions, padding 5.0",
        REAL,
        collate=filled,
        make=made(lambda m, x, n: m[0](x.amax(1)), linear()),
    ),
    leaky(
        "positions counted from the end",
        IDS,
        collate=padded,
        make=made(from_the_end, embedding, lambda: nn.Embedding(64, 4), linear()),
    ),
    leaky(
        "the loop pads a list of records",
        IDS,
        collate=list,
        make=MEAN,
        call=lambda model, records: model(padded(records)),
    ),
    leaky("the loop cuts to the longest", WIDE, make=MEAN, call=cut),
    leaky(
        "time first, mean over time",
        IDS,
        collate=time_first,
        make=made(lambda m, i: m[1](m[0](i).mean(0)), embedding, linear()),
    ),
    leaky(
        "a vector of lengths, divided by the longest",
        IDS,
        collate=with_lengths,
        make=made(lambda m, i, n: m[1](m[0](i).sum(1) / n.max()), embedding, linear()),
    ),
    leaky(
        "a dict of ids and lengths, mean over positions",
        IDS,
        collate=as_dict,
        make=made(lambda m, ids, count: m[1](m[0](ids).mean(1)), embedding, linear()),
    ),
    leaky("labels of -100, mean over the padded width", IDS, **language(True)),
    leaky(
        "ids[:, :-1], mean over positions", IDS, make=MEAN, collate=padded, call=lambda model, ids: model(ids[:, :-1])
    ),
    leaky(
        "ids[:, :-1], own mean: the longest alone loses a token",
        IDS,
        make=OWN_MEAN,
        collate=padded,
        call=lambda model, ids: model(ids[:, :-1]),
    ),
    leaky(
        "ids[:, :-1] against ids[:, 1:], mean over the padded width",
        IDS,
        ways=("per_example", "session"),
        **next_token(True),
    ),
    leaky(
        "vectors padded with 0, bias, mean over positions",
        REAL,
        collate=padded,
        make=made(lambda m, x: m[1](m[0](x).relu().mean(1)), linear(4, 4), linear()),
    ),
    leaky("the loop's mean, then the model", REAL, make=VECTORS, collate=padded, call=lambda m, x: m(x.mean(1))),
    leaky(
        "the loop's sum, divided by the width",
        REAL,
        make=VECTORS,
        collate=padded,
        call=lambda m, x: m(x.sum(1) / len(x[0])),
    ),
    leaky("the loop's maximum, then the model", REAL, make=VECTORS, collate=padded, call=lambda m, x: m((-x).amax(1))),
    leaky(
        "the loop weighs by linspace of the width", REAL, make=VECTORS, collate=padded, call=lambda m, x: m(by_place(x))
    ),
    leaky(
        "the loop pads a list, mean, then the model",
        REAL,
        make=VECTORS,
        collate=list,
        call=lambda m, x: m(padded(x).mean(1)),
    ),
    leaky("cut to the median length", HALVES, make=OWN_MEAN, collate=trimmed(lambda n: n[len(n) // 2])),
    leaky("cut to the shortest record", SHORTER, make=OWN_MEAN, collate=trimmed(lambda n: n[0])),
    leaky("cut to the shortest record, few are short", FEW_SHORT, make=OWN_MEAN, collate=trimmed(lambda n: n[0])),
    leaky(
        "cut to the median length, the first batch is even",
        EVEN_FIRST,
        batches=2,
        make=OWN_MEAN,
        collate=trimmed(lambda n: n[len(n) // 2]),
    ),
    leaky("cut to the third shortest", FEW_LONG, make=OWN_MEAN, collate=trimmed(lambda n: n[min(2, len(n) - 1)])),
)

CLEAN: tuple[Program, ...] = (
    clean("mean over the record's own positions", IDS, make=OWN_MEAN, collate=padded),
    clean("convolution, own mean", IDS, make=made(masked_conv, embedding, conv, linear()), collate=padded),
    clean(
        "the record's own last state of an LSTM",
        IDS,
        collate=padded,
        make=made(lambda m, i: m[2](own_last(m[1](m[0](i))[0], i)), embedding, lstm(), linear()),
    ),
    clean(
        "attention with key_padding_mask",
        IDS,
        collate=padded,
        make=made(
            lambda m, i: m[2]((lambda h: m[1](h, h, h, key_padding_mask=i == 0, need_weights=False)[0][:, 0])(m[0](i))),
            embedding,
            attention,
            linear(),
        ),
    ),
    clean("packed two-way LSTM", IDS, make=made(packed, embedding, lstm(True), linear(8, 3)), collate=padded),
    clean(
        "maximum over the record's own positions",
        REAL,
        collate=filled,
        make=made(
            lambda m, x, n: m[0](x.masked_fill((torch.arange(x.shape[1]) >= n[:, None])[:, :, None], -1e9).amax(1)),
            linear(),
        ),
    ),
    clean(
        "positions counted from the record's own end",
        IDS,
        collate=padded,
        make=made(from_its_own_end, embedding, lambda: nn.Embedding(64, 4), linear()),
    ),
    clean(
        "the loop pads a list of records, own mean",
        IDS,
        collate=list,
        make=OWN_MEAN,
        call=lambda model, records: model(padded(records)),
    ),
    clean("the loop cuts to the longest, own mean", WIDE, make=OWN_MEAN, call=cut, told=("values read by the loop",)),
    clean(
        "time first, the loop transposes, own mean",
        IDS,
        collate=time_first,
        make=OWN_MEAN,
        call=lambda model, ids: model(ids.T),
    ),
    clean(
        "a vector of lengths, divided by the record's own",
        IDS,
        collate=with_lengths,
        make=made(lambda m, i, n: m[1](m[0](i).sum(1) / n[:, None]), embedding, linear()),
    ),
    clean(
        "a dict of ids and lengths, own mean",
        IDS,
        collate=as_dict,
        make=made(lambda m, ids, count: m[1](m[0](ids).sum(1) / count[:, None]), embedding, linear()),
    ),
    clean("labels of -100, mean over the record's own tokens", IDS, ways=("per_example", "session"), **language(False)),
    clean(
        "ids[:, :-1] against ids[:, 1:], mean over the record's own tokens",
        IDS,
        ways=("per_example", "session"),
        **next_token(False),
    ),
    clean("the loop's own mean, then the model", REAL, make=VECTORS, collate=padded, call=lambda m, x: m(pooled(x))),
    clean(
        "the loop weighs by arange of the width",
        REAL,
        make=VECTORS,
        collate=padded,
        call=lambda m, x: m(by_own_place(x)),
    ),
    clean(
        "the loop pads to a constant, mean, then the model",
        REAL,
        make=VECTORS,
        collate=padded,
        call=lambda m, x: m(F.pad(x, (0, 0, 0, 64 - x.shape[1])).mean(1)),
    ),
    clean(
        "the loop pads a list, own mean, then the model",
        REAL,
        make=VECTORS,
        collate=list,
        call=lambda m, x: m(pooled(padded(x))),
    ),
    clean("cut to 6 positions, own mean", HALVES, make=OWN_MEAN, collate=trimmed(lambda n: 6)),
    clean("cut to 6 positions at most, own mean", SHORTER, make=OWN_MEAN, collate=trimmed(lambda n: min(6, n[-1]))),
    clean("padded to a multiple of 8, own mean", FEW_SHORT, make=OWN_MEAN, collate=trimmed(lambda n: -n[-1] // 8 * -8)),
    clean(
        "padded to the longest, the first batch is even, own mean", EVEN_FIRST, batches=2, make=OWN_MEAN, collate=padded
    ),
    clean("cut where all records are padding, own mean", FEW_LONG, make=OWN_MEAN, collate=to_full_padding),
    clean("padded to one fixed width, mean over it", IDS, make=MEAN, collate=to_full_width),
    clean(
        "sum over positions, padding_idx",
        IDS,
        collate=padded,
        make=made(lambda m, i: m[1](m[0](i).sum(1)), embedding, linear()),
    ),
)

KIND = Kind(
    "padded length",
    "records drawn again with longer, shorter and no companions, collated and run: the outputs of the others",
    "first batch; as soon as lengths differ",
    "nothing",
    (*LEAKY, *CLEAN),
)
