"""`hushgrad sweep`: many runs over noise and other settings, side by side, resumable; a table and pictures."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from inspect import cleandoc
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from hushgrad.accounting.guarantee import round_up
from hushgrad.arguments import whole_number
from hushgrad.cli.train import INTERRUPTED
from hushgrad.errors import InvalidArgumentError
from hushgrad.study.sweep.folder import SweepFolder
from hushgrad.study.sweep.plan import ORDINARY, SweepPlan, config_of
from hushgrad.study.sweep.results import write_results
from hushgrad.study.sweep.scheduler import CoreBudget, run_sweep
from hushgrad.study.sweep.screen import SweepScreen, show_results
from hushgrad.study.sweep.search import search
from hushgrad.study.sweep.sweep_file import plan_from, read_sweep, shipped
from hushgrad.study.tasks import TASKS

Number = TypeVar("Number", int, float)

DEFAULT_NOISE = "0,0.5,1,2,5,10"


@click.command(name="sweep")
@click.argument("file", required=False)
@click.option("--task", type=click.Choice(tuple(TASKS)), help="Without FILE: what to train on [digits].")
@click.option("--function", metavar="MODULE:FUNCTION", help="Without FILE: your own training function.")
@click.option("--data", type=click.Path(path_type=Path), help="Data of the tasks that name none.")
@click.option("--classes", metavar="A,B", multiple=True, help="Only these classes; several times: several subjects.")
@click.option("--target", metavar="COLUMN", help="csv: the column to predict.")
@click.option("--noise-multipliers", metavar="N,N,…", help=f"Noise multipliers σ [{DEFAULT_NOISE}].")
@click.option("--epsilons", metavar="N,N,…", help="Target ε instead of noise multipliers.")
@click.option("--no-baseline", is_flag=True, help="Leave out ordinary training without privacy.")
@click.option("--max-grad-norms", metavar="N,N,…", help="Clipping norms C to try.")
@click.option("--batch-sizes", metavar="N,N,…", help="Batch sizes to try.")
@click.option("--learning-rates", metavar="N,N,…", help="Learning rates to try.")
@click.option("--seeds", type=int, help="How many seeds [3].")
@click.option("--delta", type=float, help="δ of every run [1e-05].")
@click.option("--model", help="As for train.")
@click.option("--epochs", type=int, help="As for train.")
@click.option("--search", "trials", type=int, metavar="N", help="Search N trials of settings at one ε (Optuna).")
@click.option("--storage", metavar="URL", help="With --search: Optuna's storage, shared by processes [a file in OUT].")
@click.option("--cores", type=int, help="CPU threads for all runs together [all].")
@click.option("--threads-per-run", type=int, default=1, show_default=True, help="CPU threads of each run.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder; one with this sweep resumes it.")
def sweep(
    file: str | None,
    task: str | None,
    function: str | None,
    data: Path | None,
    classes: tuple[str, ...],
    target: str | None,
    noise_multipliers: str | None,
    epsilons: str | None,
    no_baseline: bool,
    max_grad_norms: str | None,
    batch_sizes: str | None,
    learning_rates: str | None,
    seeds: int | None,
    delta: float | None,
    model: str | None,
    epochs: int | None,
    trials: int | None,
    storage: str | None,
    cores: int | None,
    threads_per_run: int,
    out: Path,
) -> None:
    """Train again and again with different noise and show what it does: a table, pictures, and a folder per run.

    FILE is a sweep file (TOML) or the name of a sweep that comes with hushgrad. Without it the options describe the
    sweep. Start it again with the same words to resume it.

    Example: hushgrad sweep mnist --data DIR --out results
    """
    described = {
        "--task": task, "--function": function, "--classes": classes, "--target": target,
        "--noise-multipliers": noise_multipliers, "--epsilons": epsilons, "--no-baseline": no_baseline,
        "--max-grad-norms": max_grad_norms, "--batch-sizes": batch_sizes, "--learning-rates": learning_rates,
        "--seeds": seeds, "--delta": delta, "--model": model, "--epochs": epochs,
    }  # fmt: skip
    if file is not None:
        given = [name for name, value in described.items() if value]
        if given:
            raise click.UsageError(f"{', '.join(given)} cannot be combined with a sweep file; write it in the file")
        plan = read_sweep(file, data)
    else:
        value: dict[str, Any] = {
            "subjects": _subjects(task, function, classes, target),
            "noise_multipliers": _numbers("noise-multipliers", noise_multipliers, float),
            "target_epsilons": _numbers("epsilons", epsilons, float),
            "max_grad_norms": _numbers("max-grad-norms", max_grad_norms, float),
            "batch_sizes": _numbers("batch-sizes", batch_sizes, int),
            "learning_rates": _numbers("learning-rates", learning_rates, float),
            "baseline": not no_baseline,
            "name": f"Noise on {function or task or 'digits'}",
        }
        if noise_multipliers is None and epsilons is None:
            value["noise_multipliers"] = _numbers("noise-multipliers", DEFAULT_NOISE, float)
        named = {"model": model, "epochs": epochs}
        value["settings"] = {key: setting for key, setting in named.items() if setting is not None}
        if seeds is not None:
            value["seeds"] = list(range(whole_number("seeds", seeds, minimum=1)))
        if delta is not None:
            value["delta"] = delta
        plan = plan_from(value, data)
    if trials is not None:
        _search(plan, out, trials, storage)
        return
    if storage is not None:
        raise click.UsageError("--storage goes with --search")
    _sweep(plan, out, CoreBudget(cores or os.cpu_count() or 1, threads_per_run))


def _search(plan: SweepPlan, out: Path, trials: int, storage: str | None) -> None:
    """Search around the settings of the plan's only private run, and show the best trial and what the search cost."""
    configs = {run.aim: config_of(run) for run in plan.runs if run.aim != ORDINARY}
    if len(configs) != 1 or len({run.series for run in plan.runs}) != 1 or None in configs.values():
        raise click.UsageError("--search goes with one task, one --epsilons value and no other lists")
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
    console = Console()
    folder = SweepFolder.open(out, plan)
    console.print(
        f"{len(plan.runs)} runs, {min(budget.side_by_side, len(plan.runs))} at a time, "
        f"{budget.threads_per_run} thread each.",
        highlight=False,
    )
    with SweepScreen(console, folder, plan) as screen:
        end = run_sweep(plan, folder, budget, screen.show)
    rows = write_results(folder, plan)
    show_results(console, rows)
    click.echo(f"Look at  {out / 'accuracy.png'}")
    click.echo(f"Try      hushgrad report {out}")
    if end.interrupted:
        click.echo("Interrupted; the same command resumes it.")
        sys.exit(INTERRUPTED)
    if end.failed:
        click.echo(f"{len(end.failed)} of {len(plan.runs)} runs failed; the same command tries them again.", err=True)
        sys.exit(1)


def _subjects(
    task: str | None, function: str | None, classes: tuple[str, ...], target: str | None
) -> list[dict[str, Any]]:
    """Return the subjects that the options describe, one for each --classes."""
    if function is not None:
        if task is not None or classes or target is not None:
            raise click.UsageError("--function goes without --task, --classes and --target")
        return [{"label": function, "function": function}]
    shared: dict[str, Any] = {"task": task or "digits"} | ({"target": target} if target is not None else {})
    if not classes:
        return [{"label": shared["task"], **shared}]
    return [
        {"label": f"{shared['task']} {text}", "classes": [name.strip() for name in text.split(",")], **shared}
        for text in classes
    ]


def _numbers(name: str, text: str | None, kind: Callable[[str], Number]) -> list[Number]:
    if text is None:
        return []
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise InvalidArgumentError(f"{name} must be numbers with commas between them, such as 1,2,4") from None


sweep.help = cleandoc(sweep.help or "") + f"\n\nSweeps that come with hushgrad: {', '.join(shipped())}."
