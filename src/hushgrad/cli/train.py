"""`hushgrad train`: a private training run on real data, from a folder of files to a model with a guarantee."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from hushgrad.cli.groups import GroupedCommand
from hushgrad.cli.output import INTERRUPTED
from hushgrad.cli.settings import given, run_options
from hushgrad.errors import InvalidArgumentError
from hushgrad.study.configuration import RunConfig
from hushgrad.study.loggers import TensorBoard
from hushgrad.study.named_settings import AIMS, configured, merged, values_from_file, values_from_text
from hushgrad.study.occupied import require_no_run
from hushgrad.study.tasks import TASKS


@click.command(name="train", cls=GroupedCommand)
@run_options()
@click.option("--tensorboard", "event_files", is_flag=True, help="Write TensorBoard's files to OUT/tensorboard too.")
@click.option("--by", metavar="NAME", help="Who runs it: kept in OUT/provenance.json, shown in the report.")
@click.option(
    "--ledger",
    "shared_ledger",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="One account for all runs on the same data: the run goes on with that in FILE, or begins it; target ε and "
    "budget are those of the whole account.",
)
@click.option("--out", type=click.Path(path_type=Path), help="New or empty folder for the results.")
@click.option(
    "--resume",
    "stopped",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="In place of --out: the folder of a run that was stopped or killed; it goes on to its planned end.",
)
def train(
    file: Path | None,
    assignments: tuple[str, ...],
    event_files: bool,
    by: str | None,
    shared_ledger: Path | None,
    out: Path | None,
    stopped: Path | None,
    **flags: Any,
) -> None:
    """Train a model with differential privacy and write it, its curves and its guarantee to a folder.

    Settings that are not given are those found for the task. The name of a setting is that of its first option, with _
    for -: --set batch_size=256 is --batch-size 256.

    \b
    hushgrad train --task mnist --data DIR --classes 0,1 \\
        --noise-multiplier 5 --batch-size 256 --out results
    hushgrad train --config results/config.json --set epochs=30 --out longer
    hushgrad train --resume results
    hushgrad train --task mnist --data DIR --epsilon 3 \\
        --ledger mnist.jsonl --out second
    """
    if (out is None) == (stopped is None):
        raise click.UsageError("Give --out for a new run, or --resume for one that was stopped.")
    from_file = {} if file is None else values_from_file(file)
    values = merged(from_file, values_from_text(assignments), given(flags))
    if stopped is not None:
        if by is not None:
            raise click.UsageError("--by is of a new run; one that goes on keeps the name it was begun with.")
        if shared_ledger is not None:
            raise click.UsageError("--ledger is of a new run; one that goes on keeps the ledger it was begun with.")
        if _resume_on_screen(stopped, values, event_files):
            sys.exit(INTERRUPTED)
        return
    assert out is not None  # one of both is given
    if not any(values.get(name) is not None for name in AIMS):
        raise InvalidArgumentError(
            "a private run needs --epsilon or --noise-multiplier",
            cure="Give one: --epsilon 3 has the noise chosen, --noise-multiplier 1 fixes it",
        )
    config = configured(values)
    fit_batch_size = "batch_size" not in values
    if _run_on_screen(config, out, event_files, by, fit_batch_size=fit_batch_size, shared_ledger=shared_ledger):
        sys.exit(INTERRUPTED)


def _run_on_screen(
    config: RunConfig,
    out: Path,
    event_files: bool,
    by: str | None,
    *,
    fit_batch_size: bool,
    shared_ledger: Path | None,
) -> bool:
    """Run, showing progress and the end; return whether the run was interrupted."""
    from hushgrad.study.progress import run_on_screen

    require_no_run(out)
    click.echo(f"Settings that are not given are those {_origin_of_settings(config)}.")
    ended = run_on_screen(
        config,
        out,
        loggers=_loggers(out, event_files),
        by=by,
        fit_batch_size=fit_batch_size,
        shared_ledger=shared_ledger,
    )
    return ended.outcome.status == "interrupted"


def _origin_of_settings(config: RunConfig) -> str:
    """Say where the settings come from that suit a task and a model."""
    aim, known = config.privacy.target_epsilon if config.privacy else None, TASKS[config.task]
    cited = known.recipe_at(aim, config.model).cited
    if cited is not None:
        return f"chosen for model {config.model!r} after {cited}"
    return f"found for task {config.task!r}" + (
        f" at ε = {known.nearest(aim, config.model):g}" if aim is not None else ""
    )


def _resume_on_screen(stopped: Path, changes: dict[str, Any], event_files: bool) -> bool:
    """Go on with a run, showing progress and the end; return whether it was interrupted."""
    from hushgrad.study.progress import resume_on_screen

    ended = resume_on_screen(stopped, changes=changes, loggers=_loggers(stopped, event_files))
    return ended.outcome.status == "interrupted"


def _loggers(folder: Path, event_files: bool) -> list[TensorBoard]:
    return [TensorBoard(folder / "tensorboard")] if event_files else []
