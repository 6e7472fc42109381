"""`hushgrad attack`: how well the losses of a finished run's model tell its training records from others."""

from __future__ import annotations

from pathlib import Path

import click

from hushgrad.cli.options import JSON
from hushgrad.cli.output import print_result
from hushgrad.result_file import claim_file


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Of each interval.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the result as JSON, too.")
@JSON
def attack(run: Path, confidence: float, out: Path | None, as_json: bool) -> None:
    """Attack the model of RUN by its losses: training records against the run's test records.

    Prints how many training records have a lower loss than all but a few of the others, beside the most that any attack
    has under the run's epsilon. It needs the data of the run. What it prints was read off the training records, and no
    epsilon covers it: it is for you alone.

    \b
    hushgrad attack runs/adult
    """
    from hushgrad.study.trained.attack import attack_run

    if out is not None:
        claim_file("--out", out)
    report = attack_run(run, confidence=confidence)
    print_result(report, out, as_json=as_json)
    if not as_json:
        click.echo("Not covered by epsilon: it was read off the training records. Keep it to yourself.")
