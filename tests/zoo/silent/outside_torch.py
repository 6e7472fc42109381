"""What a loop computes of all records where torch's calls do not show it: in Python, in NumPy, in another thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from silent_programs import Kind, Program, clean, leaky, linear, replaced
from torch import Tensor, nn

COUNT = 32
READ = ("values read by the loop",)

ROWS = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(1))
PAIRS = [(1 + 0.2 * row, 10.0 + number % 3) for number, row in enumerate(ROWS)]
LABELLED = [(1 + 0.2 * row, int(number < COUNT - 1)) for number, row in enumerate(ROWS)]
LAST = COUNT - 1

FAR = replaced(list(ROWS), LAST, torch.full((4,), 1e3))
LENGTHS = replaced(PAIRS, LAST, (PAIRS[LAST][0], 1e6))
RARE = replaced(LABELLED, LAST, (LABELLED[LAST][0], 1))


def as_list(records: Any) -> tuple[Tensor, list[float]]:
    return torch.stack([x for x, _ in records]), [value for _, value in records]


def as_array(records: Any) -> np.ndarray[Any, Any]:
    return torch.stack(list(records)).numpy()


def in_a_thread(compute: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    def call(model: nn.Module, x: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            return model(pool.submit(compute, x).result())  # type: ignore[no-any-return]

    return call


def weighed(out: Tensor, weights: Tensor) -> Tensor:
    return out.square().sum(1) * weights


def by_class_counts(batch: Any) -> Tensor:
    counts = Counter(batch[1])
    return torch.tensor([COUNT / (len(counts) * counts[label]) for label in batch[1]])


def standardised(model: nn.Module, a: np.ndarray[Any, Any]) -> Any:
    return model(torch.from_numpy((a - a.mean(0)) / (a.std(0) + 1e-3)))


def divided(model: nn.Module, batch: Any) -> Any:
    return model(batch[0]) / (sum(batch[1]) / len(batch[1]))


STANDARDISED: dict[str, Any] = {"trust": READ, "make": linear(), "collate": as_array, "call": standardised}
CENTRED: dict[str, Any] = {"trust": READ, "make": linear(), "call": in_a_thread(lambda x: x - x.mean(0))}

LEAKY: tuple[Program, ...] = (
    leaky(
        "weights from class counts, counted in Python",
        RARE,
        trust=READ,
        make=linear(),
        collate=as_list,
        call=lambda model, batch: model(batch[0]),
        targets=by_class_counts,
        loss=weighed,
        clip=20.0,
    ),
    leaky("outputs divided by a list's mean", LENGTHS, trust=READ, make=linear(), collate=as_list, call=divided),
    leaky("the batch standardised in NumPy", FAR, batches=2, **STANDARDISED),
    leaky("the batch standardised in NumPy, once", FAR, **STANDARDISED),
    leaky("the batch centred by another thread", FAR, batches=2, **CENTRED),
    leaky("the batch centred by another thread, once", FAR, **CENTRED),
)

WEIGHTS = torch.tensor([1.0, 2.0, 0.5])

CLEAN: tuple[Program, ...] = (
    clean(
        "targets from a list of labels",
        RARE,
        make=linear(),
        collate=as_list,
        call=lambda model, batch: model(batch[0]),
        targets=lambda batch: torch.tensor(batch[1]),
        loss=weighed,
    ),
    clean("an array as a tensor", FAR, make=linear(), collate=as_array, call=lambda m, a: m(torch.from_numpy(a))),
    clean(
        "an array as a tensor of other precision",
        FAR,
        make=linear(),
        collate=lambda records: as_array(records).astype(np.float64),
        call=lambda m, a: m(torch.from_numpy(a).float() * 0.5),
    ),
    clean("each row of an array by its own norm, in NumPy", FAR, told=READ, make=linear(), collate=as_array,
          call=lambda m, a: m(torch.from_numpy(a / np.linalg.norm(a, axis=1, keepdims=True)))),
    clean("each row halved by another thread", FAR, told=READ, make=linear(), call=in_a_thread(lambda x: x / 2)),
    clean("constants of the loop's own", FAR, make=linear(), call=lambda m, x: m(x) * WEIGHTS, batches=2),
    clean(
        "constants made anew in each batch",
        FAR,
        make=linear(),
        call=lambda m, x: m(x) * torch.tensor([1.0, 2.0, 0.5]) + torch.randn(3),
    ),
)  # fmt: skip

KIND = Kind(
    "computed outside of torch",
    "tensors and numbers in the loop's program that no call on the batch has made, where the item holds lists and "
    "arrays, or where they are others in each item",
    "first two batches, secret random steps",
    "what Python, NumPy and other threads compute of all records: `values read by the loop`",
    (*LEAKY, *CLEAN),
)
