"""Numbers beside the rows of a batch that follow all of its records: by collate_fn, or by a size that values decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from silent_programs import Kind, Program, clean, leaky, linear, made, removed
from torch import Tensor, nn

COUNT, WIDTH = 32, 12
READ = ("values read by the loop",)

X = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(1))
LABELLED = removed([(row, 2 if number == COUNT - 1 else 0) for number, row in enumerate(X)])
IDS = removed([torch.arange(6 if number < 63 else 7) % 8 + 1 for number in range(64)])


def small(out: Tensor, labels: Tensor) -> Tensor:
    return 0.02 * F.cross_entropy(out, labels, reduction="none")


def pairs(records: Any) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in records]), torch.tensor([label for _, label in records])


def with_number(number: Callable[[list[int]], Any]) -> Callable[[Any], Any]:
    """Hand out a number that is made of all labels, beside them."""
    return lambda records: (*pairs(records), number([label for _, label in records]))


def items(labels: list[int]) -> Tensor:
    return torch.tensor(sum(500 if label else 5 for label in labels))


def any_rare(labels: list[int]) -> Tensor:
    return torch.tensor(any(label == 2 for label in labels))


def counted(labels: list[int]) -> Tensor:
    return torch.bincount(torch.tensor(labels), minlength=3)


def labelled(call: Callable[[Any, Any], Any], collate: Any = pairs, make: Any = None) -> dict[str, Any]:
    """A loop over records with labels."""
    return {**LABELLED, "make": make or linear(), "collate": collate, "call": call,
            "targets": lambda batch: batch[1], "loss": small}  # fmt: skip


def by_length(length: Callable[[Tensor], int]) -> dict[str, Any]:
    return labelled(lambda m, batch: m(batch[0]) / length(batch[1]))


def to_width(records: Any) -> Tensor:
    return torch.stack([F.pad(ids, (0, WIDTH - len(ids))) for ids in records])


def with_longest(records: Any) -> tuple[Tensor, int]:
    return to_width(records), max(map(len, records))


def with_lengths(records: Any) -> tuple[Tensor, list[int]]:
    return to_width(records), [len(ids) for ids in records]


def own_mean(m: Any, ids: Tensor) -> Tensor:
    mask = (ids != 0).float()[:, :, None]
    return m[1]((m[0](ids) * mask).sum(1) / mask.sum(1).clamp(min=1))


TEXT: dict[str, Any] = {**IDS, "make": made(own_mean, lambda: nn.Embedding(9, 4), linear())}
GIVEN = made(lambda m, x, n: m[0](x) * 100 / n, linear())


def program(make: Callable[..., Program], name: str, settings: dict[str, Any], **more: Any) -> Program:
    data = {key: settings[key] for key in ("records", "others", "limit")}
    return make(name, data, **{key: value for key, value in settings.items() if key not in data}, **more)


LEAKY: tuple[Program, ...] = (
    program(
        leaky,
        "divided by a count of items that collate_fn made",
        labelled(lambda m, batch: m(batch[0]) * 100 / batch[2], with_number(items)),
    ),
    program(
        leaky,
        "a count of items that the model is given",
        labelled(lambda m, batch: m(batch[0], batch[2]), with_number(items), GIVEN),
    ),
    program(
        leaky,
        "a flag of the batch's",
        labelled(lambda m, batch: m(batch[0]) * torch.where(batch[2], 1.0, 0.1), with_number(any_rare)),
    ),
    program(
        leaky,
        "divided by a class's count",
        labelled(lambda m, batch: m(batch[0]) / (1 + 10 * batch[2][2]), with_number(counted)),
    ),
    program(leaky, "divided by the length of a one-hot coding", by_length(lambda y: F.one_hot(y).shape[1])),
    program(leaky, "divided by the length of a histogram", by_length(lambda y: torch.bincount(y).shape[0])),
    program(leaky, "divided by how many were repeated", by_length(lambda y: 1 + y.repeat_interleave(y).shape[0])),
    program(leaky, "divided by how many were selected", by_length(lambda y: 1 + y[y == 2].shape[0]), trust=READ),
    program(leaky, "divided by how many runs there are", by_length(lambda y: torch.unique_consecutive(y).shape[0]),
            trust=READ),
    program(leaky, "cut below the longest, a number of the item", TEXT, collate=with_longest, trust=READ,
            call=lambda m, batch: m(batch[0][:, : batch[1] - 1])),
    program(leaky, "cut below the longest of a list of lengths", TEXT, collate=with_lengths, trust=READ,
            call=lambda m, batch: m(batch[0][:, : max(batch[1]) - 1])),
    program(leaky, "masked below the longest of a list of lengths", TEXT, collate=with_lengths, trust=READ,
            call=lambda m, batch: m(batch[0].masked_fill(torch.arange(WIDTH) >= max(batch[1]) - 1, 0))),
)  # fmt: skip

CLEAN: tuple[Program, ...] = (
    program(
        clean,
        "a count of items that nothing is made of",
        labelled(lambda m, batch: m(batch[0]), with_number(items)),
    ),
    program(
        clean,
        "a count of items that the model is given and leaves",
        labelled(lambda m, batch: m(batch[0], batch[2]), with_number(items), made(lambda m, x, n: m[0](x), linear())),
    ),
    program(clean, "the length of a fixed one-hot coding", by_length(lambda y: F.one_hot(y, 3).shape[1])),
    program(clean, "cut to the longest, a number of the item", TEXT, collate=with_longest, told=READ,
            call=lambda m, batch: m(batch[0][:, : batch[1]])),
    program(clean, "cut to a constant, beside a number of the item", TEXT, collate=with_longest, told=READ,
            call=lambda m, batch: m(batch[0][:, :8])),
    program(clean, "masked to each record's own length of a list", TEXT, collate=with_lengths,
            call=lambda m, batch: m(batch[0] * (torch.arange(WIDTH) < torch.tensor(batch[1])[:, None]))),
)  # fmt: skip

KIND = Kind(
    "statistics of the batch",
    "whole numbers and flags that collate_fn makes of all records, and sizes that values decide: altered by "
    "themselves, in the loop's calls and in what the model is given",
    "first two batches, secret random steps",
    "what Python makes of numbers and lists of the item: `values read by the loop`",
    (*LEAKY, *CLEAN),
)
