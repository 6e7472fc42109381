"""Options that describe a planned run, shared by `hushgrad epsilon` and `hushgrad calibrate`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from hushgrad.accounting.calibration import disjoint_passes, poisson_steps
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
            click.option("--sampling", type=click.Choice(["poisson", "none"]), default="poisson", show_default=True,
                         help="poisson: every record independently, in every step. none: disjoint batches, --passes "
                              "times over the data, charged without amplification."),
            click.option("--sampling-rate", "--sample-rate", type=float,
                         help="Probability of a record to take part in a step."),
            click.option("--steps", type=int, help="Number of steps (logical batches)."),
            click.option("--batch-size", type=int, help="With --dataset-size: in place of --sampling-rate."),
            click.option("--dataset-size", type=int, help="Number of records."),
            click.option("--epochs", type=int,
                         help="In place of --steps: this many times the batches in the data, the last one included; "
                              "with --sampling-rate q, this many times 1/q steps, rounded up."),
            click.option("--passes", type=int, help="With --sampling none: number of passes over the data."),
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
) -> Plan:
    """Return the plan that the options describe.

    Raises `click.UsageError` where they are too few or contradict each other, and `InvalidArgumentError` where one
    is out of range.
    """
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


def _refuse(beside: str, **options: object) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise click.UsageError(f"{', '.join(given)} cannot be combined with {beside}")
