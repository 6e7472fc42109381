"""`hushgrad release`: statistics of a table's rows, noised and charged in a ledger."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hushgrad.cli.options import JSON
from hushgrad.cli.output import print_facts, print_json, print_table

if TYPE_CHECKING:
    from hushgrad.releases.released import Released

_Command = Callable[..., Any]

FILE = click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))


def _noise_options(command: _Command) -> _Command:
    for option in (
        JSON,
        click.option(
            "--delta",
            type=float,
            help="In (0, 1), less than 1 / N: for --epsilon, and to say what was spent.",
        ),
        click.option("--epsilon", type=float, help="In its place: what the release may cost by itself, at --delta."),
        click.option("--noise-multiplier", type=float, help="Standard deviation of the noise over the sensitivity."),
    ):
        command = option(command)
    return command


_LEDGER = click.option(
    "--ledger", type=click.Path(dir_okay=False), required=True, help="The account to charge; a missing file is begun."
)


@click.group()
def release() -> None:
    """Release a statistic of private records: with noise, and charged in a ledger.

    A mean, a histogram or an accuracy tells of the records that it was read off. Here it gets noise and stands in the
    ledger beside the steps of training, so that one epsilon covers all.
    """


@release.command()
@FILE
@click.option(
    "--column",
    "columns",
    type=(str, float, float),
    multiple=True,
    required=True,
    metavar="NAME LOW HIGH",
    help="A column and its public range, which is not read off the file; may be given more than once.",
)
@_LEDGER
@_noise_options
def mean(file: Path, columns: Sequence[tuple[str, float, float]], as_json: bool, **how: Any) -> None:
    """Release mean and standard deviation of columns, all at once.

    Cells outside of the range count as its end, and cells that are no number as its middle.

    \b
    hushgrad release mean people.csv --column age 17 90 --column hours 0 99 \\
        --epsilon 0.1 --delta 1e-6 --ledger people.jsonl
    """
    from hushgrad import releases
    from hushgrad.study.tasks.table import read_table

    table = read_table(file)
    places = [(table.position(name), (low + high) / 2) for name, low, high in columns]
    query = releases.Normalisation(
        low=[low for _, low, _ in columns],
        high=[high for _, _, high in columns],
        of=lambda row: [_number(row[place], middle) for place, middle in places],
    )
    found = releases.release(query, table.rows, **_asked(how))
    rows = [
        (name, float(one), float(other))
        for (name, _, _), one, other in zip(columns, found.answer.mean, found.answer.std, strict=True)
    ]
    if as_json:
        print_json({"columns": [{"column": n, "mean": m, "std": s} for n, m, s in rows], **_facts(found, **how)})
        return
    print_table(["column", "mean", "std"], [[name, f"{one:.6g}", f"{other:.6g}"] for name, one, other in rows])
    _say(found, **how)


@release.command()
@FILE
@click.option("--column", required=True, help="The column that is counted.")
@click.option("--categories", help="Its public values, separated by commas; all others are counted together.")
@click.option("--edges", help="In their place: rising numbers, separated by commas, that divide the values.")
@_LEDGER
@_noise_options
def histogram(file: Path, column: str, categories: str | None, edges: str | None, as_json: bool, **how: Any) -> None:
    """Release how many rows have each value of a column; noised counts may be below 0.

    \b
    hushgrad release histogram people.csv --column sex --categories Female,Male \\
        --epsilon 0.1 --delta 1e-6 --ledger people.jsonl
    """
    from hushgrad import releases
    from hushgrad.study.tasks.table import read_table

    if (categories is None) == (edges is None):
        raise click.UsageError("give --categories or --edges")
    table = read_table(file)
    place = table.position(column)
    if categories is not None:
        values = [value.strip() for value in categories.split(",")]
        query = releases.Histogram(categories=values, of=lambda row: row[place])
        names = [*values, "(all others)"]
    else:
        bounds = _edges(edges or "")
        query = releases.Histogram(edges=bounds, of=lambda row: row[place])
        between = [f"{one:g} to below {other:g}" for one, other in itertools.pairwise(bounds)]
        names = [f"below {bounds[0]:g}", *between, f"{bounds[-1]:g} and more, or no number"]
    found = releases.release(query, table.rows, **_asked(how))
    counts = [float(value) for value in found.answer]
    if as_json:
        print_json({"counts": dict(zip(names, counts, strict=True)), **_facts(found, **how)})
        return
    print_table(["value", "count"], [[name, f"{count:.1f}"] for name, count in zip(names, counts, strict=True)])
    _say(found, **how)


@release.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Private rows: a CSV or TSV file.")
@click.option("--target", required=True, help="The column with their classes.")
@click.option("--ledger", type=click.Path(dir_okay=False), help="The account to charge; default: the run's own.")
@_noise_options
def accuracy(run: Path, data: Path, target: str, ledger: str | None, as_json: bool, **how: Any) -> None:
    """Release how often the model of RUN is right on private rows of a table.

    Rows that the run did not train on are private records all the same: their accuracy, too, tells of them. One account
    for both says the most that any record has spent.

    \b
    hushgrad release accuracy runs/adult --data new.csv --target income --noise-multiplier 20
    """
    import hushgrad
    from hushgrad import releases
    from hushgrad.errors import InvalidArgumentError
    from hushgrad.study.directory import RunDirectory
    from hushgrad.study.tasks.encoders import TableEncoder

    trained = hushgrad.load(run)
    if not isinstance(trained.encoder, TableEncoder):
        raise InvalidArgumentError(
            "this command reads tables, and the run was trained on other data",
            where="--data",
            cure="In Python: hushgrad.release(releases.Accuracy(hushgrad.load(RUN).model), data, ledger=...)",
        )
    table = trained.encoder.table(data)
    table.position(target)
    how["ledger"] = str(RunDirectory(run).ledger) if ledger is None else ledger

    def pair(row: tuple[str, ...]) -> tuple[Any, int]:
        cells = dict(zip(table.columns, row, strict=True))
        label = cells[target]
        place = trained.classes.index(label) if label in trained.classes else -1
        return trained.encode([cells])[0], place

    found = releases.release(releases.Accuracy(trained.model, of=pair), table.rows, **_asked(how))
    share = found.noise_std / len(table.rows)
    facts = {"accuracy": found.answer, "noise_on_it": share, "rows": len(table.rows)}
    if as_json:
        print_json({**facts, **_facts(found, **how)})
    else:
        print_facts({**facts, **_facts(found, **how)}, "")


def _asked(how: dict[str, Any]) -> dict[str, Any]:
    """Return what a release is asked with: δ chooses the noise where an ε does, and is looked at before the charge."""
    from hushgrad.arguments import open_unit_interval

    if how["delta"] is not None:
        open_unit_interval("delta", how["delta"], "Pass less than 1 / the number of rows")
    return how if how["noise_multiplier"] is None else {**how, "delta": None}


def _number(cell: str, middle: float) -> float:
    try:
        value = float(cell)
    except ValueError:
        return middle
    return middle if math.isnan(value) else value


def _edges(text: str) -> list[float]:
    try:
        return [float(edge) for edge in text.split(",")]
    except ValueError:
        raise click.UsageError("--edges must be numbers separated by commas") from None


def _facts(found: Released, ledger: str, **how: Any) -> dict[str, Any]:
    """Return what was charged, and what the account has spent where a δ was named."""
    from hushgrad.accounting.accountants import epsilon
    from hushgrad.accounting.ledger.view import read_ledger

    facts: dict[str, Any] = {"noise_multiplier": found.noise_multiplier, "noise_std": found.noise_std, "ledger": ledger}
    delta = how.get("delta")
    if delta is None:
        return facts
    all_of_it = epsilon(read_ledger(ledger).events, delta)
    return {**facts, "delta": delta, "epsilon_of_this": found.epsilon(delta), "epsilon_of_all_so_far": all_of_it}


def _say(found: Released, **how: Any) -> None:
    click.echo()
    print_facts(_facts(found, **how), "")
