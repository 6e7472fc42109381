"""`hushgrad report`: a page, JSON and a model card of a run or a sweep; `--check` recomputes every number."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from hushgrad.printable import printable
from hushgrad.study.report.document import CONTRADICTION
from hushgrad.study.report.files import CARD, DATA, PAGE, check_report, write_report
from hushgrad.study.report.sweep_document import is_without_a_run


@click.command(name="report")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=Path), help="Where the report goes; default: beside the run's files.")
@click.option("--title", help="What to call the run; default: its folder's or the sweep's name.")
@click.option("--with-uncovered", is_flag=True, help="Show training loss too, which ε does not cover: for you alone.")
@click.option("--with-data-digest", is_flag=True, help="Show the data file's SHA-256, which ε does not cover, too.")
@click.option("--check", is_flag=True, help="Recompute every number of a report that is there, from the run's files.")
def report(
    folder: Path, out: Path | None, title: str | None, with_uncovered: bool, with_data_digest: bool, check: bool
) -> None:
    """Report on the run or the sweep in FOLDER: what it guarantees, what that rests on, what it reached.

    Writes report.html (one page, no scripts, no network), report.json and model-card.md. Exit code 1 where files of the
    run contradict each other: the three then say so first, and show the largest ε that any file says. Exit code 1, too,
    where no run of a sweep was completed.
    """
    place = out or folder
    if not check:
        made = write_report(folder.resolve(), place, name=title, uncovered=with_uncovered, digest=with_data_digest)
        contradictions = made["contradictions"]
        if contradictions:
            click.secho(CONTRADICTION, fg="red", bold=True, err=True)
            for sentence in contradictions:
                click.secho(f"  {printable(sentence, limit=400)}", fg="red", err=True)
        for sentence in made["facts"]["notices"]:
            click.echo(f"{printable(sentence, limit=400)}.", err=True)
        for file in (PAGE, DATA, CARD):
            click.echo(place / file)
        if contradictions or is_without_a_run(made["facts"]):
            sys.exit(1)
        return
    checks = check_report(folder.resolve(), place)
    wrong = [found for found in checks if not found.held]
    for found in wrong:
        click.echo(f"WRONG  {printable(found.what, limit=200)}")
    click.echo(f"{len(checks) - len(wrong)} of {len(checks)} checks hold.")
    if wrong:
        sys.exit(1)
