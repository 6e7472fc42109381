"""`hushgrad demo`: the same model on the same digits, with privacy and without, side by side, offline."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from hushgrad.accounting.guarantee import delta_text
from hushgrad.cli.train import INTERRUPTED
from hushgrad.study.configuration import Privacy, RunConfig, max_grad_norm_for, suggested_run
from hushgrad.study.directory import require_unused
from hushgrad.study.progress import Screen, epsilon_text, show_end
from hushgrad.study.run import RunResult, run

TARGET_EPSILON = 3.0
DEFAULT_FOLDER = "hushgrad-demo"


@click.command(name="demo")
@click.option("--out", type=click.Path(path_type=Path), help=f"New or empty folder; default: ./{DEFAULT_FOLDER}")
@click.option("--epochs", type=int, help="Passes over the digits; fewer make a quicker look.")
def demo(out: Path | None, epochs: int | None) -> None:
    """Train a digit classifier with differential privacy and without, and compare. No download, under 90 seconds."""
    console = Console()
    folder = out or _first_free(Path(DEFAULT_FOLDER))
    require_unused(folder)
    privacy = Privacy(target_epsilon=TARGET_EPSILON, max_grad_norm=max_grad_norm_for("digits", TARGET_EPSILON))
    private_config = suggested_run("digits", privacy=privacy)
    if epochs is not None:
        private_config = replace(private_config, epochs=epochs)
    private = _one(console, "1. Private training", private_config, folder / "private")
    if private is None:
        sys.exit(INTERRUPTED)
    ordinary = _one(console, "2. Ordinary training", replace(private_config, privacy=None), folder / "ordinary")
    if ordinary is None:
        sys.exit(INTERRUPTED)
    _compare(console, private, ordinary)
    _where_to_look_next(folder)


def _one(console: Console, title: str, config: RunConfig, folder: Path) -> RunResult | None:
    """Run one of the two trainings; None if it was interrupted."""
    console.rule(title, align="left")
    with Screen(console, config) as screen:
        finished = run(config, folder, screen.reporter())
    show_end(console, finished)
    return None if finished.outcome.status == "interrupted" else finished


def _compare(console: Console, private: RunResult, ordinary: RunResult) -> None:
    """Print the two results as a table."""
    console.rule("Side by side", align="left")
    table = Table("", "test accuracy", "privacy", "noise σ", "steps", "seconds")
    for name, finished in (("private", private), ("ordinary", ordinary)):
        outcome, spent = finished.outcome, finished.outcome.spent
        table.add_row(
            name,
            f"{outcome.test_accuracy:.1%}",
            f"{epsilon_text(spent.guarantee.epsilon)} at δ = {delta_text(spent.guarantee.delta)}"
            if spent
            else epsilon_text(None),
            f"{spent.noise_multiplier:.3g}" if spent else "none",
            str(outcome.steps),
            f"{outcome.seconds:.1f}",
        )
    console.print(table)


def _where_to_look_next(folder: Path) -> None:
    """Say which files were written and which commands to try."""
    click.echo(f"Look at  {folder / 'private' / 'curves.png'}")
    click.echo(f"         {folder / 'private' / 'summary.json'}  (the guarantee, and what it leaves out)")
    click.echo(f"         {folder / 'private' / 'ledger.jsonl'}  (the record that epsilon is computed from)")
    click.echo(f"Try      hushgrad epsilon --ledger {folder / 'private' / 'ledger.jsonl'} --delta 1e-5")
    click.echo("         hushgrad train --epsilon 1 --out results           (the same digits, more privacy)")
    click.echo("         hushgrad train --task mnist --data DIR --noise-multiplier 1 --out mnist-results")
    click.echo("         hushgrad train --help")


def _first_free(path: Path) -> Path:
    """Return `path`, or the first of path-2, path-3, … that does not exist yet."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
