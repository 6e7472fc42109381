"""`hushgrad compare`: one plan under every way to draw batches, and by every accountant."""

from __future__ import annotations

import math
from typing import Any

import click

from hushgrad.accounting.accountants import epsilon_bounds
from hushgrad.accounting.composition import Composition, adjacency_of
from hushgrad.accounting.events.disjoint_pass import DisjointPass
from hushgrad.accounting.events.event import ADD_REMOVE_ONE, REPLACE_ONE, ZERO_OUT
from hushgrad.accounting.events.fixed_size import FixedSizeSampled
from hushgrad.accounting.events.gaussian import Gaussian
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.accounting.events.random_allocation import RandomAllocation
from hushgrad.accounting.events.truncated_poisson import TruncatedPoisson
from hushgrad.accounting.guarantee import round_up
from hushgrad.accounting.neighbours import epsilon_under
from hushgrad.arguments import non_negative_number, probability, whole_number
from hushgrad.cli.options import DELTA, JSON
from hushgrad.cli.output import print_json, print_table
from hushgrad.errors import AccountingError, MissingExtraError

Row = dict[str, Any]

_NOTES = {"shuffled batches": "charged without amplification: the best that is certified"}


@click.command()
@click.option("--noise-multiplier", type=float, required=True, help="Standard deviation of the noise over clip norm.")
@click.option("--batch-size", type=int, required=True, help="Records in a step, or expected.")
@click.option("--dataset-size", type=int, required=True, help="Number of records.")
@click.option("--epochs", type=int, required=True, help="Passes over the data.")
@DELTA
@JSON
def compare(
    noise_multiplier: float, batch_size: int, dataset_size: int, epochs: int, delta: float, as_json: bool
) -> None:
    """Compare what one plan costs, by the way batches are drawn and by accountant.

    \b
    hushgrad compare --noise-multiplier 1.1 --batch-size 256 --dataset-size 60000 --epochs 15 --delta 1e-5

    Numbers under different neighbouring relations answer different questions; the relation is in the table.
    """
    sigma = non_negative_number("noise_multiplier", noise_multiplier)
    records = whole_number("dataset_size", dataset_size, minimum=1)
    size = whole_number("batch_size", batch_size, minimum=1)
    passes = whole_number("epochs", epochs, minimum=1)
    rate = probability("batch_size / dataset_size", size / records)
    per_pass = -(-records // size)
    steps = passes * per_pass
    room = math.ceil(size + 8 * math.sqrt(size))
    plans: list[tuple[str, Composition, str]] = [
        ("Poisson", [(PoissonSampled(rate, sigma), steps)], "saddle-point"),
        ("Poisson", [(PoissonSampled(rate, sigma), steps)], "pld"),
        ("Poisson", [(PoissonSampled(rate, sigma), steps)], "rdp"),
        (f"Poisson, at most {room}", [(TruncatedPoisson(rate, sigma, records, room), steps)], "saddle-point"),
        ("fixed size", [(FixedSizeSampled(size, records, sigma), steps)], "saddle-point"),
        ("balls in bins", [(RandomAllocation(per_pass, sigma, index), per_pass) for index in range(passes)],
         "saddle-point"),
        ("shuffled batches", [(DisjointPass(sigma, index), per_pass) for index in range(passes)], "saddle-point"),
        ("full batch, every step", [(Gaussian(sigma), steps)], "saddle-point"),
    ]  # fmt: skip
    rows = [_row(name, plan, accountant, delta) for name, plan, accountant in plans]
    for relation, group in ((ZERO_OUT, 1), (REPLACE_ONE, 1), (ADD_REMOVE_ONE, 2), (ADD_REMOVE_ONE, 8)):
        rows.insert(len(rows) - 5, _row("Poisson", plans[0][1], "saddle-point", delta, relation, group))
    if as_json:
        facts = {"noise_multiplier": sigma, "sampling_rate": rate, "steps": steps, "delta": delta}
        print_json({**facts, "rows": rows})
        return
    table = [
        [row["sampling"], row["adjacency"], row["accountant"], _shown(row["epsilon"]), _error(row), row["reason"]]
        for row in rows
    ]
    print_table(["sampling", "neighbours", "accountant", "epsilon", "error at most", "note"], table)


def _row(
    name: str, plan: Composition, accountant: str, delta: float, relation: str | None = None, group_size: int = 1
) -> Row:
    adjacency = relation or adjacency_of(event for event, _ in plan)
    row: Row = {
        "sampling": name,
        "adjacency": adjacency if group_size == 1 else f"{adjacency}, groups of {group_size}",
        "accountant": accountant,
        "epsilon": None,
        "error": None,
        "reason": _NOTES.get(name, ""),
    }
    try:
        if relation is None:
            bounds = epsilon_bounds(plan, delta, accountant)
        else:
            bounds = epsilon_under(plan, delta, relation, group_size)
    except (AccountingError, MissingExtraError) as error:
        row["reason"] = f"refused: {error}"
        return row
    row["epsilon"] = bounds.upper if math.isfinite(bounds.upper) else "inf"
    if bounds.lower > 0 and math.isfinite(bounds.upper):
        row["error"] = bounds.error
    return row


def _shown(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else round_up(value)


def _error(row: Row) -> str:
    return "-" if row["error"] is None else round_up(row["error"], 2)
