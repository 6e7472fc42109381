"""`hushgrad train`: a private training run on real data, from a folder of files to a model with a guarantee."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from hushgrad.cli.output import INTERRUPTED
from hushgrad.errors import InvalidArgumentError
from hushgrad.study.configuration import (
    DEFAULT_DELTA,
    OPTIMIZERS,
    Privacy,
    RunConfig,
    max_grad_norm_for,
    suggested_run,
)
from hushgrad.study.directory import require_unused
from hushgrad.study.loggers import TensorBoard
from hushgrad.study.models import ACTIVATIONS, MODELS
from hushgrad.study.tasks import TASKS, TaskOptions


@click.command(name="train")
@click.option("--task", type=click.Choice(tuple(TASKS)), default="digits", show_default=True, help="What to train on.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder (mnist, csv, text, images) or file (csv) with the data."
)
@click.option("--classes", metavar="A,B,…", help="Only these classes, in this order.")
@click.option("--target", metavar="COLUMN", help="csv: the column to predict.")
@click.option("--categorical", metavar="COLUMN,…", help="csv: columns whose numbers are names, such as postcodes.")
@click.option("--bounds", metavar="COLUMN:LOW:HIGH", multiple=True, help="csv: public bounds of a numeric column.")
@click.option("--drop", metavar="COLUMN,…", help="csv: columns to leave out.")
@click.option(
    "--vocabulary", metavar="KIND", help="text: 'hashed' [default], a public file of words, 'counted', 'train'."
)
@click.option("--vocabulary-epsilon", type=float, help="text: what a 'counted' vocabulary may cost of the total ε.")
@click.option("--subgroup", metavar="COLUMN", help="csv: report accuracy on test rows by this column.")
@click.option("--model", type=click.Choice(MODELS), help="Default: what suits the task.")
@click.option("--hidden", metavar="N,N,…", help="Widths of the mlp's hidden layers; 'none' for a linear model.")
@click.option("--activation", type=click.Choice(tuple(ACTIVATIONS)), help="Default: what suits the task.")
@click.option("--noise-multiplier", type=float, metavar="SIGMA", help="Noise σ; give this or --epsilon.")
@click.option("--epsilon", type=float, help="Target ε at --delta; the noise is chosen to meet it.")
@click.option("--delta", type=float, default=DEFAULT_DELTA, show_default=True, help="Must be below 1/N.")
@click.option("--max-grad-norm", type=float, metavar="C", help="Clipping norm of each example's gradient.")
@click.option("--batch-size", type=int, help="Expected size of a batch, drawn by Poisson sampling.")
@click.option("--physical-batch-size", type=int, help="Most examples in memory at once; changes nothing else.")
@click.option("--epochs", type=int, help="Passes over the data (N / batch size steps each).")
@click.option("--optimizer", type=click.Choice(tuple(OPTIMIZERS)))
@click.option("--lr", "learning_rate", type=float, help="Learning rate.")
@click.option("--momentum", type=float, help="Momentum (Adam: the first β).")
@click.option("--augmentations", type=int, metavar="K", help="Images: K random views make one gradient; 0: none.")
@click.option(
    "--average", "average_decay", type=float, metavar="DECAY", help="Release the parameters' average; 0: the last."
)
@click.option("--loss-reduction", type=click.Choice(("mean", "sum")), help="sum: the update is not divided.")
@click.option("--seed", type=int, default=0, show_default=True, help="Initial parameters; never noise or sampling.")
@click.option("--device", default="cpu", show_default=True, help="Such as cpu or cuda:0.")
@click.option("--threads", type=int, help="CPU threads; default: what suits the task.")
@click.option("--tensorboard", "event_files", is_flag=True, help="Write TensorBoard's files to OUT/tensorboard too.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New or empty folder for the results.")
def train(
    task: str,
    data: Path | None,
    classes: str | None,
    target: str | None,
    categorical: str | None,
    bounds: tuple[str, ...],
    drop: str | None,
    vocabulary: str | None,
    vocabulary_epsilon: float | None,
    subgroup: str | None,
    model: str | None,
    hidden: str | None,
    activation: str | None,
    noise_multiplier: float | None,
    epsilon: float | None,
    delta: float,
    max_grad_norm: float | None,
    batch_size: int | None,
    physical_batch_size: int | None,
    epochs: int | None,
    optimizer: str | None,
    learning_rate: float | None,
    momentum: float | None,
    augmentations: int | None,
    average_decay: float | None,
    loss_reduction: str | None,
    seed: int,
    device: str,
    threads: int | None,
    event_files: bool,
    out: Path,
) -> None:
    """Train a model with differential privacy and write it, its curves and its guarantee to a folder.

    Example: hushgrad train --task mnist --data DIR --classes 0,1 --noise-multiplier 5 --max-grad-norm 1
    --batch-size 256 --epochs 15 --out results
    """
    options = TaskOptions(
        data=data,
        classes=_names(classes),
        target=target,
        categorical=_names(categorical) or (),
        bounds=tuple(_bounds(text) for text in bounds),
        drop=_names(drop) or (),
        vocabulary=vocabulary,
        vocabulary_epsilon=vocabulary_epsilon,
        subgroup=subgroup,
    )
    privacy = Privacy(
        noise_multiplier=noise_multiplier,
        target_epsilon=epsilon,
        delta=delta,
        max_grad_norm=max_grad_norm_for(task, epsilon) if max_grad_norm is None else max_grad_norm,
    )
    named: dict[str, Any] = {
        "model": model,
        "hidden_sizes": _hidden_sizes(hidden),
        "activation": activation,
        "batch_size": batch_size,
        "max_physical_batch_size": physical_batch_size,
        "epochs": epochs,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "augmentations": augmentations,
        "average_decay": average_decay,
        "loss_reduction": loss_reduction,
        "seed": seed,
        "device": device,
        "threads": threads,
    }
    config = replace(
        suggested_run(task, privacy=privacy, options=options),
        **{name: value for name, value in named.items() if value is not None},
    )
    if _run_on_screen(config, out, event_files):
        sys.exit(INTERRUPTED)


def _run_on_screen(config: RunConfig, out: Path, event_files: bool) -> bool:
    """Run, showing progress and the end; return whether the run was interrupted."""
    from hushgrad.study.progress import run_on_screen

    require_unused(out)
    click.echo(_where_settings_are_from(config))
    loggers = [TensorBoard(out / "tensorboard")] if event_files else []
    return run_on_screen(config, out, loggers=loggers).outcome.status == "interrupted"


def _where_settings_are_from(config: RunConfig) -> str:
    aim = config.privacy.target_epsilon if config.privacy else None
    found = f" at ε = {TASKS[config.task].nearest(aim):g}" if aim is not None else ""
    return f"What the command does not name is as found for task {config.task!r}{found}."


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(","))


def _hidden_sizes(text: str | None) -> tuple[int, ...] | None:
    if text is None or text == "none":
        return None if text is None else ()
    try:
        return tuple(int(width) for width in text.split(","))
    except ValueError:
        raise InvalidArgumentError("hidden must be whole numbers, such as 64,32, or 'none'") from None


def _bounds(text: str) -> tuple[str, float, float]:
    """Return column, lower and upper bound; the column's own name may contain colons."""
    try:
        column, low, high = text.rsplit(":", 2)
        return column, float(low), float(high)
    except ValueError:
        raise InvalidArgumentError("bounds must be COLUMN:LOW:HIGH with two numbers, such as age:0:120") from None
