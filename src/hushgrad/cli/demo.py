"""`hushgrad demo`: the same model on the same digits, with privacy and without, side by side, offline."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import click

from hushgrad.accounting.guarantee import delta_text
from hushgrad.cli.output import INTERRUPTED, print_table, program
from hushgrad.cli.settings import setting_option
from hushgrad.study.configuration import Privacy, RunConfig, max_grad_norm_for, suggested_run
from hushgrad.study.directory import require_unused
from hushgrad.study.named_settings import SETTINGS
from hushgrad.study.run import RunResult

TARGET_EPSILON = 3.0
DEFAULT_FOLDER = "hushgrad-demo"


def private_training() -> RunConfig:
    """Return the settings of the demo's private training."""
    privacy = Privacy(target_epsilon=TARGET_EPSILON, max_grad_norm=max_grad_norm_for("digits", TARGET_EPSILON))
    return suggested_run("digits", privacy=privacy)


@click.command(name="demo")
@click.option("--out", type=click.Path(path_type=Path), help=f"New or empty folder; default: ./{DEFAULT_FOLDER}")
@setting_option(SETTINGS["epochs"], help="Passes over the digits; fewer make a quicker look.")
def demo(out: Path | None, epochs: int | None) -> None:
    """Train a digit classifier with differential privacy and without, and compare. No download, under 90 seconds."""
    folder = out or _first_free(Path(DEFAULT_FOLDER))
    require_unused(folder)
    private_config = private_training()
    if epochs is not None:
        private_config = replace(private_config, epochs=epochs)
    private = _one("1. Private training", private_config, folder / "private")
    ordinary = _one("2. Ordinary training", replace(private_config, privacy=None), folder / "ordinary")
    _compare(private, ordinary)
    _where_to_look_next(folder)


def _one(title: str, config: RunConfig, folder: Path) -> RunResult:
    """Run one of the two trainings; if it is interrupted, the demo ends."""
    from hushgrad.study.progress import run_on_screen

    click.secho(f"── {title} ──", bold=True)
    finished = run_on_screen(config, folder)
    if finished.outcome.status == "interrupted":
        sys.exit(INTERRUPTED)
    return finished


def _compare(private: RunResult, ordinary: RunResult) -> None:
    """Print the two results as a table."""
    from hushgrad.study.progress import epsilon_text

    click.secho("── Side by side ──", bold=True)
    rows = []
    for name, finished in (("private", private), ("ordinary", ordinary)):
        outcome, spent = finished.outcome, finished.outcome.spent
        rows.append(
            (
                name,
                f"{outcome.test_accuracy:.1%}",
                "–" if outcome.test_scores is None else f"{outcome.test_scores.largest_share:.1%}",
                f"{epsilon_text(spent.guarantee.epsilon)} at δ = {delta_text(spent.guarantee.delta)}"
                if spent
                else epsilon_text(None),
                f"{spent.noise_multiplier:.3g}" if spent else "none",
                str(outcome.steps),
                f"{outcome.seconds:.1f}",
            )
        )
    numbers = ("test accuracy", "largest class", "noise σ", "steps", "seconds")
    heads = ("training", "test accuracy", "largest class", "privacy", "noise σ", "steps", "seconds")
    print_table(heads, rows, right=numbers)


def _where_to_look_next(folder: Path) -> None:
    """Say which files were written and which commands to try."""
    private, start = folder / "private", program()
    click.echo(f"Look at  {private / 'curves.png'}")
    click.echo(f"         {private / 'summary.json'}  (the guarantee, and what it leaves out)")
    click.echo(f"         {private / 'ledger.jsonl'}  (the record that epsilon is computed from)")
    click.echo(f"Try      {start} report {shlex.quote(str(private))}")
    click.echo(f"         {start} epsilon --ledger {shlex.quote(str(private / 'ledger.jsonl'))} --delta 1e-5")
    click.echo(f"         {start} train --epsilon 1 --out results           (the same digits, more privacy)")
    click.echo(f"         {start} train --task mnist --data DIR --noise-multiplier 1 --out mnist-results")
    click.echo(f"         {start} train --help")


def _first_free(path: Path) -> Path:
    """Return `path`, or the first of path-2, path-3, … that does not exist yet."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
