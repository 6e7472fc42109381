"""`hushgrad sweep`: many runs over noise and other settings, side by side, resumable; a table and pictures."""

from __future__ import annotations

import os
import shlex
import sys
from inspect import cleandoc
from pathlib import Path
from typing import Any

import click

from hushgrad.accounting.guarantee import round_up
from hushgrad.cli.groups import GroupedCommand, GroupedOption
from hushgrad.cli.output import INTERRUPTED, program
from hushgrad.cli.settings import SET, given, options_of
from hushgrad.extras import require
from hushgrad.study.named_settings import DEFAULT_TASK, SETTINGS, values_from_text
from hushgrad.study.settings import settings_of
from hushgrad.study.sweep.folder import SweepFolder
from hushgrad.study.sweep.plan import ORDINARY, Grid, SweepPlan, check_data, config_of
from hushgrad.study.sweep.results import write_results
from hushgrad.study.sweep.scheduler import CoreBudget, run_sweep
from hushgrad.study.sweep.sweep_file import plan_from, read_sweep, shipped
from hushgrad.study.tasks import TaskOptions

DEFAULT_NOISE = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)


ALSO = ("task", "data", "target", "delta", "model", "epochs", "spare_steps")
DESCRIBED = (*settings_of(Grid).values(), *(SETTINGS[name] for name in ALSO))
"""The settings that describe a sweep without a file."""


@click.command(name="sweep", cls=GroupedCommand)
@click.argument("file", required=False)
@options_of(DESCRIBED)
@SET
@click.option(
    "--classes",
    cls=GroupedOption,
    group="Data",
    metavar="A,B",
    multiple=True,
    help="Only these classes; several times: several subjects.",
)
@click.option("--function", metavar="MODULE:FUNCTION", help="Your own training function, in place of a task.")
@click.option(
    "--no-baseline",
    cls=GroupedOption,
    group="Privacy",
    is_flag=True,
    help="Leave out ordinary training without privacy.",
)
@click.option("--search", "trials", type=int, metavar="N", help="Search N trials of settings at one ε (Optuna).")
@click.option("--storage", metavar="URL", help="With --search: Optuna's storage, shared by processes [a file in OUT].")
@click.option("--cores", cls=GroupedOption, group="Machine", type=int, help="CPU threads for all runs together [all].")
@click.option(
    "--threads-per-run",
    cls=GroupedOption,
    group="Machine",
    type=int,
    default=1,
    show_default=True,
    help="CPU threads of each run.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder; one with this sweep resumes it.")
@click.option(
    "--resume",
    "stopped",
    type=click.Path(path_type=Path),
    metavar="SWEEP",
    help="In place of all that describes a sweep: the folder of one that was stopped; it goes on with its plan.",
)
def sweep(
    file: str | None,
    assignments: tuple[str, ...],
    classes: tuple[str, ...],
    function: str | None,
    no_baseline: bool,
    trials: int | None,
    storage: str | None,
    cores: int | None,
    threads_per_run: int,
    out: Path | None,
    stopped: Path | None,
    **flags: Any,
) -> None:
    """Train again and again with different noise and show what it does: a table, pictures, and a folder per run.

    FILE is a sweep file (TOML) or the name of a sweep that comes with hushgrad. Without it the options describe the
    sweep; --data goes with both. Start it again with the same words, or by --resume OUT, to resume it: finished runs
    are left as they are, and private ones that were killed go on from their checkpoints.

    Example: hushgrad sweep mnist --data DIR --out results
    """
    named = {**values_from_text(assignments), **given(flags)}
    if (out is None) == (stopped is None):
        raise click.UsageError("Give --out for a sweep, or --resume for one that was stopped.")
    budget = CoreBudget(cores or os.cpu_count() or 1, threads_per_run)
    if stopped is not None:
        if named or file or classes or function or no_baseline or trials or storage:
            raise click.UsageError("--resume goes on with the plan in the folder, so nothing else describes the sweep")
        _sweep(SweepFolder.existing(stopped).plan(), stopped, budget)
        return
    assert out is not None  # one of both is given
    data = named.pop("data", None)
    if file is not None:
        others = {"classes": classes, "function": function, "no_baseline": no_baseline}
        names = [f"--{name.replace('_', '-')}" for name, value in {**named, **others}.items() if value]
        if names:
            raise click.UsageError(f"{', '.join(names)} cannot be combined with a sweep file; write it in the file")
        plan = read_sweep(file, data)
    else:
        plan = plan_from(_described(named, classes, function, no_baseline), data)
    if trials is not None:
        _search(plan, out, trials, storage)
        return
    if storage is not None:
        raise click.UsageError("--storage goes with --search")
    _sweep(plan, out, budget)


def _described(
    named: dict[str, Any], classes: tuple[str, ...], function: str | None, no_baseline: bool
) -> dict[str, Any]:
    """Return the sweep that options describe, as a sweep file would."""
    grid = {name: list(named.pop(name)) for name in settings_of(Grid) if name in named}
    if not grid.keys() & {"noise_multipliers", "target_epsilons"}:
        grid["noise_multipliers"] = list(DEFAULT_NOISE)
    delta = {"delta": named.pop("delta")} if "delta" in named else {}
    task = named.pop("task", None)
    options = {name: named.pop(name) for name in settings_of(TaskOptions) if name in named}
    return {
        "name": f"Noise on {function or task or DEFAULT_TASK}",
        "subjects": _subjects(task, function, classes, options),
        "baseline": not no_baseline,
        "settings": named,
        **grid,
        **delta,
    }


def _search(plan: SweepPlan, out: Path, trials: int, storage: str | None) -> None:
    """Search around the settings of the plan's only private run, and show the best trial and what the search cost."""
    require("optuna", extra="sweep", what="--search")
    configs = {run.aim: config_of(run) for run in plan.runs if run.aim != ORDINARY}
    if len(configs) != 1 or len({run.series for run in plan.runs}) != 1 or None in configs.values():
        raise click.UsageError("--search goes with one task, one --epsilons value and no other lists")
    check_data(plan.runs)
    from hushgrad.study.sweep.search import search

    (config,) = (found for found in configs.values() if found is not None)
    found = search(
        config,
        out,
        trials=trials,
        storage=storage,
        on_trial=lambda number, accuracy: click.echo(f"trial {number}: test accuracy {accuracy:.1%}"),
    )
    click.echo(f"Best of {found.trials} trials: number {found.number}, test accuracy {found.test_accuracy:.1%}")
    for name, value in found.settings.items():
        click.echo(f"  {name} {value:.4g}")
    click.echo(f"Its ε alone {round_up(found.epsilon)}; all trials together {round_up(found.together)}; an honest")
    click.echo(f"choice (a random number of trials, drawn beforehand) {round_up(found.drawn_number)}.")


def _sweep(plan: SweepPlan, out: Path, budget: CoreBudget) -> None:
    """Run or resume the plan in `out`, show the end, and leave with the exit status that says how it went."""
    from hushgrad.study.sweep.screen import SweepScreen, new_console, show_results

    console = new_console()
    check_data(run for run in plan.runs if not SweepFolder(out).is_finished(run.name))
    folder = SweepFolder.open(out, plan)
    side_by_side = min(budget.side_by_side, len(plan.runs))
    click.echo(f"{len(plan.runs)} runs, {side_by_side} at a time, {budget.threads_per_run} thread each.")
    with SweepScreen(console, folder, plan) as screen:
        end = run_sweep(plan, folder, budget, screen.show)
    rows = write_results(folder, plan)
    show_results(console, rows)
    if any(row.status == "completed" for row in rows):
        click.echo("Each ε is its run's alone, and no ε covers the test records: the report says what choosing costs.")
        click.echo(f"Look at  {out / 'accuracy.png'}")
        click.echo(f"Try      {program()} report {shlex.quote(str(out))}")
    if end.interrupted:
        click.echo("Interrupted; the same command resumes it.")
        sys.exit(INTERRUPTED)
    if end.failed:
        click.echo(f"{len(end.failed)} of {len(plan.runs)} runs failed; the same command tries them again.", err=True)
        sys.exit(1)


def _subjects(
    task: str | None, function: str | None, classes: tuple[str, ...], options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the subjects that the options describe, one for each --classes."""
    if function is not None:
        if task is not None or classes or options:
            raise click.UsageError("--function goes without --task, --classes and --target")
        return [{"label": function, "function": function}]
    shared = {"task": task or DEFAULT_TASK, **options}
    if not classes:
        return [{"label": shared["task"], **shared}]
    return [
        {"label": f"{shared['task']} {text}", "classes": [name.strip() for name in text.split(",")], **shared}
        for text in classes
    ]


sweep.help = cleandoc(sweep.help or "") + f"\n\nSweeps that come with hushgrad: {', '.join(shipped())}."
