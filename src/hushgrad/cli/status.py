"""`hushgrad status`: what the runs in a folder have spent on the same data, each and all together."""

from __future__ import annotations

from pathlib import Path

import click

from hushgrad.accounting.guarantee import delta_text
from hushgrad.arguments import open_unit_interval
from hushgrad.cli.options import JSON
from hushgrad.cli.output import print_json, print_table
from hushgrad.study.configuration import DEFAULT_DELTA
from hushgrad.study.report.document import up
from hushgrad.study.status import DataSet, status_of


@click.command(name="status")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--delta", type=float, default=DEFAULT_DELTA, show_default=True, help="The δ of every ε.")
@JSON
def status(folder: Path, delta: float, as_json: bool) -> None:
    """Sum what was spent on each data set by the runs in FOLDER and below it.

    Every run spends for itself: who sees the results of several runs on the same records sees what all of them have
    released together. Runs whose data are not known count with every data set.

    \b
    hushgrad status runs
    """
    found = status_of(folder, open_unit_interval("delta", delta))
    if as_json:
        print_json({"delta": delta, "data": [one.as_json() for one in found]})
        return
    for place, data in enumerate(found):
        if place:
            click.echo()
        _print(data, delta)
    click.echo()
    click.echo(
        "Files that share records are one data set, though they count apart here; what was spent elsewhere is unknown."
    )


def _print(data: DataSet, delta: float) -> None:
    click.secho(f"Data: {data.name}", bold=True)
    rows = [
        (run.place, run.status, run.began or "–", "–" if run.steps is None else str(run.steps), up(run.epsilon))
        for run in data.runs
    ]
    print_table(("run", "status", "began", "steps", "ε alone"), rows, right=("steps", "ε alone"))
    if data.ledgers:
        counted = "1 ledger" if data.ledgers == 1 else f"all {data.ledgers} ledgers together"
        sharing = sum(run.shared for run in data.runs)
        shared = f" (runs in a shared ledger: {sharing})" if sharing else ""
        click.echo(f"ε of {counted}{shared}: {up(data.private)} at δ = {delta_text(delta)}")
    if data.ordinary:
        click.secho(
            f"{data.ordinary} of these runs have no ledger that can be read: where their results were given away, no ε "
            "holds for the data.",
            fg="red",
        )
