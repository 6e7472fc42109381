"""Where the gradient of a loop's own loss may be multiplied, so that it is divided before it is rounded to 16 bits.

A cut is a number of at least 32 bits in the graph of a loss, above every sum over the batch that gradients come to
through it, and with nothing of 16 bits between the two. What lies above it, up to the loss, is one number for all
examples, which no number of rows has come into.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from hushgrad.guards.probing.loss_graph import MOST_NODES, LossGraph, operator_name
from hushgrad.guards.probing.loss_values import Reading, Total
from hushgrad.torch_internals import dtype_of_output, shape_of_output

WIDE = (torch.float32, torch.float64)
HANDING_ON = {"Add", "Alias", "Clone", "Neg", "Sub", "ToCopy"}
"""What hands the gradient of a sum in 16 bits on as it is; another sign is no rounding."""


class Cut(NamedTuple):
    """A node, the places of its outputs, and the means over the batch below it."""

    node: Any
    places: frozenset[int]
    means: Sequence[Any]


def cuts_of(root: Any, place: int, graph: Callable[[], LossGraph]) -> list[Cut]:
    """Return the cuts of the loss that `root` made: each way down from it passes one of them. None where unclear.

    `graph` gives a new reader, which opens scalars that the model returned.
    """
    found: dict[Any, Reading] = {}
    places: dict[Any, set[int]] = {}
    waiting = [(root, place)]
    while waiting:
        node, index = waiting.pop()
        reading = graph().read(node, index)
        if reading.has_leaf or reading.has_vouched or not _is_of_the_batch(reading):
            return []
        if _is_place(node, index, reading):
            found[node] = reading
            places.setdefault(node, set()).add(index)
        elif operator_name(node) in HANDING_ON and shape_of_output(node, index) == ():
            waiting += [(part, at) for part, at in node.next_functions if part is not None]
        else:
            return []
    if len(found) > 1 and any(_reaches(node, found) for node in found):
        return []
    return [Cut(node, frozenset(places[node]), reading.means) for node, reading in found.items()]


def _is_of_the_batch(reading: Reading) -> bool:
    is_whole = len(reading.operators) < MOST_NODES
    return is_whole and reading.value is not None and (reading.has_own or reading.has_inner)


def _is_place(node: Any, index: int, reading: Reading) -> bool:
    if dtype_of_output(node, index) not in WIDE or shape_of_output(node, index) != () or reading.is_rounded:
        return False
    is_mean = isinstance(reading.value, Total) and all(term.kind == "mean" for term in reading.value.terms)
    return is_mean or not reading.has_narrow


def _reaches(start: Any, others: dict[Any, Reading]) -> bool:
    """Whether one cut lies below another, so that gradients would be multiplied twice."""
    known, waiting = set(), [part for part, _ in start.next_functions]
    while waiting:
        node = waiting.pop()
        if node is None or node in known:
            continue
        if node in others:
            return True
        known.add(node)
        waiting += [part for part, _ in node.next_functions]
    return False
