"""What collate_fn makes of all records and is neither tensor, array, number nor text: a program reads it as well."""

from __future__ import annotations

import datetime
import enum
import functools
from collections.abc import Callable, Iterator
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import torch
from silent_programs import Kind, Program, clean, leaky, linear, replaced
from torch import Tensor

COUNT = 16
ONE_WAY = ("per_example",)
X = 0.5 * torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(1))
DATA = replaced(X, COUNT - 1, torch.full((4,), 1e3))


class Mode(enum.Enum):
    NEAR, FAR = 1.0, 7.0


def marked(far: bool) -> Tensor:
    mark = torch.zeros(1)
    mark.far = far  # type: ignore[attr-defined]
    return mark


Part = Callable[[bool], Any]
Read = Callable[[Tensor, Any], Tensor]

PARTS: dict[str, tuple[Part, Read]] = {
    "a set": (lambda far: {"far"} if far else set(), lambda x, part: x / 100 if part else x),
    "an enumeration's value": (lambda far: Mode.FAR if far else Mode.NEAR, lambda x, part: x / part.value**2),
    "a date": (lambda far: datetime.date(2020, 1, 2 if far else 1), lambda x, part: x / part.day**6),
    "a fraction": (lambda far: Fraction(1, 100 if far else 1), lambda x, part: x * float(part)),
    "bytes": (lambda far: b"far" if far else b"", lambda x, part: x / 100 if part else x),
    "a slice": (lambda far: slice(0, 1 if far else 4), lambda x, part: x / (5 - len(range(4)[part])) ** 3),
    "a dtype": (lambda far: torch.float64 if far else torch.float32, lambda x, part: x / part.itemsize**3),
    "a function around a number": (lambda far: lambda x: x / (100 if far else 1), lambda x, part: part(x)),
    "a partial": (lambda far: functools.partial(torch.div, other=100 if far else 1), lambda x, part: part(x)),
    "an iterator": (lambda far: iter([100 if far else 1]), lambda x, part: x / next(part)),
    "the order of keys": (
        lambda far: {"b": 1, "a": 1} if far else {"a": 1, "b": 1},
        lambda x, part: x / 100 if next(iter(part)) == "b" else x,
    ),
    "an attribute of a tensor": (marked, lambda x, part: x / 100 if part.far else x),
    "nothing or something": (lambda far: Mode if far else None, lambda x, part: x / 100 if part else x),
    "a set in an object": (
        lambda far: SimpleNamespace(k=[{"far"} if far else set()]),
        lambda x, part: x / 100 if part.k[0] else x,
    ),
}


def collated(part: Part, follows: bool) -> Callable[[Any], dict[str, Any]]:
    """Hand out a part beside the rows that follows whether a record is far, or does not."""

    def collate(records: Any) -> dict[str, Any]:
        x = torch.stack(list(records))
        return {"x": x, "part": part(follows and bool(x.max() > 50))}

    return collate


def programs() -> Iterator[Program]:
    for name, (part, read) in PARTS.items():

        def call(model: Any, batch: Any, read: Read = read) -> Any:
            return model(read(batch["x"], batch["part"]))

        settings: dict[str, Any] = {"make": linear(), "call": call, "ways": ONE_WAY}
        yield leaky(f"{name} of the batch's", DATA, collate=collated(part, True), by_hand=False, **settings)
        yield clean(f"{name}, of a constant", DATA, collate=collated(part, False), **settings)


def entries(entry: Callable[[Tensor], Any], pack: Callable[[list[Any]], Any]) -> dict[str, Any]:
    """Hand out an entry for each record beside the rows."""
    return {
        "make": linear(),
        "collate": lambda records: {"x": torch.stack(list(records)), "part": pack([entry(x) for x in records])},
        "call": lambda model, batch: model(batch["x"]),
        "ways": ONE_WAY,
    }


CLEAN = (
    clean("a date of each record's own", DATA, **entries(lambda x: datetime.date(2020, 1, 1 + int(x[0] > 0)), list)),
    clean("a set of each record's own", DATA, **entries(lambda x: {bool(x[0] > 0)}, tuple)),
    clean("names in an object", DATA, **entries(lambda x: f"{x[0]:.2f}", lambda names: SimpleNamespace(names=names))),
)

KIND = Kind(
    "other parts of a batch",
    "sets, dates, functions, iterators, attributes of tensors, the order of keys that collate_fn makes of all records: "
    "compared by what they hold",
    "first two batches, secret random steps",
    "what cannot be looked into: `not examined`",
    (*programs(), *CLEAN),
)
