"""The history that Opacus kept, as events: what its steps are charged here.

Opacus' sampling rate is 1 / len(loader), times the batches that a step joined where gradients were accumulated. Its
Poisson sampler draws with that rate too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hushgrad.accounting.events.disjoint_pass import DisjointPass
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.arguments import count_of, non_negative_number, real_number
from hushgrad.errors import CheckpointError, InvalidArgumentError
from hushgrad.migration.opacus.questions import Declared

_CLOSE = 1e-9


@dataclass(frozen=True, slots=True)
class Steps:
    """Equal steps in a row, as Opacus wrote them down: noise multiplier and sampling rate (no units), and how many."""

    noise_multiplier: float
    sampling_rate: float
    count: int


def read_history(value: Any) -> tuple[Steps, ...]:
    """Return the history of an accountant's state. Raises `CheckpointError` for what is none."""
    try:
        found = tuple(
            Steps(
                non_negative_number("noise_multiplier", sigma),
                real_number("sampling_rate", rate),
                count_of("steps", count, minimum=1),
            )
            for sigma, rate, count in value
        )
    except (TypeError, ValueError):
        found = None
    if found is None or not all(0 < steps.sampling_rate <= 1 for steps in found):
        raise CheckpointError(
            "its history is no list of (noise multiplier, sampling rate, steps)",
            where="the checkpoint",
            cure="Take another checkpoint that Opacus wrote",
        )
    return found


def least_passes(history: Sequence[Steps]) -> int:
    """Return how many passes over the loader these steps take where each is run to its end, at least."""
    return math.ceil(sum(steps.count * steps.sampling_rate for steps in history) - _CLOSE)


def charges(history: Sequence[Steps], said: Declared) -> list[tuple[Event, int]]:
    """Return the history as `(event, count)`, in order.

    Guarantee: Poisson steps cost what a plan of the same noise, rate and number of steps costs; batches of a shuffled
    loader cost one release without amplification for each pass, with the smallest noise that it can have had.

    Raises `InvalidArgumentError` where B and N do not give the sampling rate of the file, or where a step can have
    joined batches of two passes.
    """
    _require_same_rate(history, said)
    if said.passes is None:
        return [(PoissonSampled(steps.sampling_rate, steps.noise_multiplier), steps.count) for steps in history]
    return _passes(history, said.passes)


def _passes(history: Sequence[Steps], passes: int) -> list[tuple[Event, int]]:
    """Return shuffled batches as steps of passes.

    Where all passes ran to their ends it is known which steps each had. Else any step may have been in any pass, so
    each pass is charged with the smallest noise.
    """
    total = sum(steps.count for steps in history)
    if passes > total:
        raise InvalidArgumentError(
            f"the file holds {total} steps, so no more passes than that were begun, got {passes}",
            where="passes",
            cure="Pass how often the loop began to go through the loader",
        )
    each = round(1 / history[0].sampling_rate)
    if passes * each == total:
        noises = [steps.noise_multiplier for steps in history for _ in range(steps.count)]
        parts = [noises[start : start + each] for start in range(0, total, each)]
    else:
        least = min(steps.noise_multiplier for steps in history)
        parts = [[least] * (total // passes + (index < total % passes)) for index in range(passes)]
    found: list[tuple[Event, int]] = []
    for index, part in enumerate(parts):
        for noise in part:
            event = DisjointPass(noise, index)
            if found and found[-1][0] == event:
                found[-1] = (event, found[-1][1] + 1)
            else:
                found.append((event, 1))
    return found


def _require_same_rate(history: Sequence[Steps], said: Declared) -> None:
    lengths = {math.ceil(said.population / said.batch_size), max(1, int(said.population / said.batch_size))}
    lengths |= {int(1 / (1 / length)) for length in lengths}  # a loader of 93 batches was charged as one of 92
    rates = {steps.sampling_rate for steps in history}
    for rate in sorted(rates):
        if any(math.isclose(rate * length, 1, rel_tol=_CLOSE) for length in lengths):
            continue
        joined = not said.poisson_sampling and any(
            math.isclose(rate * length, round(rate * length), rel_tol=_CLOSE) and round(rate * length) >= 1
            for length in lengths
        )
        if not joined:
            raise InvalidArgumentError(
                f"with B = {said.batch_size:g} and N = {said.population} Opacus would have charged a sampling rate of "
                f"1 / {max(lengths)}, and the file has {rate:g}",
                where="batch_size, population",
                cure="Pass the batch size and the number of records of the loader that Opacus was given. Steps over "
                "several loaders of different lengths cannot be imported",
            )
        is_whole = math.isclose(1 / rate, round(1 / rate), rel_tol=_CLOSE)
        if not is_whole or len(rates) > 1 or said.passes != least_passes(history):
            raise InvalidArgumentError(
                "gradients were accumulated over batches that do not fill whole passes, so a step can have joined "
                "batches of two passes, and one record twice: its noise was too small for that",
                where="poisson_sampling",
                cure="There is no true account of these steps: train again from the start",
            )
