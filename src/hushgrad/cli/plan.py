"""Options that describe a planned run, shared by `hushgrad epsilon` and `hushgrad calibrate`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from hushgrad.accounting.calibration import allocated_passes, disjoint_passes, poisson_steps
from hushgrad.accounting.composition import Composition
from hushgrad.arguments import probability, whole_number

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Plan:
    """A planned run: what runs at a given noise multiplier, and the facts that it was computed from."""

    composition: Callable[[float], Composition]
    facts: dict[str, float | int | str]


def plan_options(command: Command) -> Command:
    """Add the options from which `plan_from` makes a `Plan`."""
    for option in reversed(
        (
            click.option("--sampling", type=click.Choice(["poisson", "balls-in-bins", "none"]), default="poisson",
                         show_default=True,
                         help="poisson: every record independently, in every step. balls-in-bins: every record in one "
                              "random step of each pass of --bins steps. none: disjoint batches, --passes times over "
                              "the data, charged without amplification."),
            click.option("--bins", type=int, help="With --sampling balls-in-bins: the steps of a pass."),
            click.option("--participations", type=int,
                         help="With --sampling balls-in-bins: in how many steps of a pass a record is, 1 by default."),
            click.option("--sampling-rate", "--sample-rate", type=float,
                         help="Probability of a record to take part in a step."),
            click.option("--steps", type=int, help="Number of steps (logical batches)."),
            click.option("--batch-size", type=int, help="With --dataset-size: in place of --sampling-rate."),
            click.option("--dataset-size", type=int, help="Number of records."),
            click.option("--epochs", type=int,
                         help="In place of --steps: this many times the batches in the data, the last one included; "
                              "with --sampling-rate q, this many times 1/q steps, rounded up."),
            click.option("--passes", type=int, help="With --sampling none or balls-in-bins: passes over the data."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def plan_from(
    *,
    sampling: str,
    sampling_rate: float | None,
    steps: int | None,
    batch_size: int | None,
    dataset_size: int | None,
    epochs: int | None,
    passes: int | None,
    bins: int | None,
    participations: int | None,
) -> Plan:
    """Return the plan that the options describe.

    Raises `click.UsageError` where they are too few or contradict each other, and `InvalidArgumentError` where one
    is out of range.
    """
    if sampling == "balls-in-bins":
        _refuse("--sampling balls-in-bins", sampling_rate=sampling_rate, steps=steps)
        times = 1 if participations is None else participations
        return _allocated(bins, passes, times, batch_size, dataset_size, epochs)
    _refuse(f"--sampling {sampling}", bins=bins, participations=participations)
    if sampling == "none":
        _refuse("--sampling none", sampling_rate=sampling_rate, steps=steps, batch_size=batch_size,
                dataset_size=dataset_size, epochs=epochs)  # fmt: skip
        if passes is None:
            raise click.UsageError("--sampling none needs --passes, the number of passes over the data")
        return Plan(disjoint_passes(passes), {"sampling": "none", "passes": passes})
    _refuse("--sampling poisson", passes=passes)
    if sampling_rate is not None:
        _refuse("--sampling-rate", batch_size=batch_size, dataset_size=dataset_size)
        rate = probability("sampling_rate", sampling_rate)
        if (steps is None) == (epochs is None):
            raise click.UsageError("--sampling-rate needs one of --steps and --epochs")
        if steps is None:
            # 1/q of a rate such as 1/49 comes out a hair above 49: that is rounding, not a further step.
            steps = math.ceil(whole_number("epochs", epochs, minimum=1) / rate * (1 - 1e-12))
        return Plan(poisson_steps(rate, steps), {"sampling": "poisson", "sampling_rate": rate, "steps": steps})
    if batch_size is None or dataset_size is None:
        raise click.UsageError("give --sampling-rate, or --batch-size and --dataset-size, or --sampling none")
    records = whole_number("dataset_size", dataset_size, minimum=1)
    size = whole_number("batch_size", batch_size, minimum=1)
    rate = probability("sampling_rate = batch_size / dataset_size", size / records)
    if (steps is None) == (epochs is None):
        raise click.UsageError("give one of --steps and --epochs")
    if steps is None:
        steps = whole_number("epochs", epochs, minimum=1) * -(-records // size)
    declared: dict[str, float | int | str] = {"batch_size": size, "dataset_size": records}
    declared |= {"sampling": "poisson", "sampling_rate": rate, "steps": steps}
    return Plan(poisson_steps(rate, steps), declared)


def _allocated(
    bins: int | None,
    passes: int | None,
    participations: int,
    batch_size: int | None,
    dataset_size: int | None,
    epochs: int | None,
) -> Plan:
    declared: dict[str, float | int | str] = {}
    if bins is not None and passes is not None:
        _refuse("--bins and --passes", batch_size=batch_size, dataset_size=dataset_size, epochs=epochs)
    elif None in (batch_size, dataset_size, epochs) or (bins, passes) != (None, None):
        raise click.UsageError(
            "--sampling balls-in-bins needs --bins and --passes, or --batch-size, --dataset-size and --epochs"
        )
    else:
        records = whole_number("dataset_size", dataset_size, minimum=1)
        size = whole_number("batch_size", batch_size, minimum=1)
        bins, passes = -(-records // size), epochs
        declared = {"batch_size": size, "dataset_size": records}
    composition = allocated_passes(bins, whole_number("passes", passes, minimum=1), participations)
    said: dict[str, float | int | str] = {"sampling": "balls-in-bins", "bins": bins, "passes": passes or 0}
    return Plan(composition, {**declared, **said, "participations": participations})


def _refuse(beside: str, **options: object) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise click.UsageError(f"{', '.join(given)} cannot be combined with {beside}")
