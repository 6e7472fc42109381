"""`hushgrad verify`: measures whether private training does what its ε claims."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn
from torch.utils.data import DataLoader

from hushgrad.checks.verification.training.verify import verify as measure
from hushgrad.checks.verification.update.verify_update import DEFAULT_FALSE_ALARM, DEFAULT_RESOLUTION
from hushgrad.cli.demo import private_training
from hushgrad.cli.loading import load, made_by
from hushgrad.cli.options import JSON
from hushgrad.cli.output import print_report, screen_width
from hushgrad.errors import InvalidArgumentError
from hushgrad.mechanism import DPSGD
from hushgrad.result_file import claim_file
from hushgrad.sampling.poisson import PoissonSampling
from hushgrad.study.tasks import load_task
from hushgrad.study.training import model_for


@click.command()
@click.argument("setup", metavar="[MODULE:SETUP]", required=False)
@click.option(
    "--resolution",
    type=float,
    default=DEFAULT_RESOLUTION,
    show_default=True,
    help="Relative error of noise and sampling rate that must be found.",
)
@click.option(
    "--false-alarm",
    type=float,
    default=DEFAULT_FALSE_ALARM,
    show_default=True,
    help="Probability that correct training fails.",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the verdict as JSON, too.")
@JSON
def verify(setup: str | None, resolution: float, false_alarm: float, out: Path | None, as_json: bool) -> None:
    """Measure sensitivity, noise, sampling, ledger and replay of private training.

    SETUP is a function without arguments that returns (model, data loader, loss, engine or mechanism): what you give to
    make_private, and the PrivacyEngine or DPSGD that says what is claimed. In place of a module's name the path of a
    file may be given. The code you name is run. Without SETUP the private training of hushgrad demo is measured, with
    its noise; its digits come with the extra study.

    \b
    hushgrad verify
    hushgrad verify train.py:setup --out run/verdict.json

    Exits with 1 if training does not do what it claims.
    """  # fmt: skip
    if out is not None:
        claim_file("--out", out)  # rather now than after measuring
    if setup is None:
        made: Any = _demo()
    else:
        made = made_by(load(setup, "SETUP", _announce), setup, "SETUP", tell_text=True)
    if not isinstance(made, tuple) or len(made) != 4 or not isinstance(made[0], nn.Module):
        raise InvalidArgumentError(
            f"SETUP must return four values, got {_shape_of(made)}",
            cure="Return (model, data loader, loss, engine or mechanism)",
        )
    model, loader, criterion, mechanism = made
    with redirect_stdout(sys.stderr):  # what the model prints
        verdict = measure(
            model, loader, criterion, mechanism, report=out, resolution=resolution, false_alarm=false_alarm
        )
    if as_json:
        click.echo(verdict.to_text())
    else:
        print_report(verdict.text(screen_width()), verdict=0, good=verdict.passed)
    sys.exit(verdict.exit_status)


def _shape_of(made: Any) -> str:
    """Say what came in the place of the four values, without a value of it."""
    if isinstance(made, tuple):
        return f"a tuple of {', '.join(type(value).__name__ for value in made) or 'nothing'}"
    return type(made).__name__


def _announce(file: str) -> None:
    click.echo(f"running {file}", err=True)


def _demo() -> tuple[nn.Module, Any, nn.Module, DPSGD]:
    """Return what the demo trains privately, with its noise, clip norm and batch size."""
    config = private_training()
    privacy = config.privacy
    assert privacy is not None  # private training
    assert privacy.target_epsilon is not None  # the demo aims at an ε
    task = load_task(config.task, config.options)
    model = model_for(config, task)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    loader = DataLoader(task.train, batch_size=config.batch_size, shuffle=True)
    mechanism = DPSGD(
        noise_multiplier=1.0,
        noise_kind=privacy.noise,
        clipping=privacy.clip_rule(config.batch_size),
        sampling=PoissonSampling(config.batch_size / len(task.train)),
        expected_batch_size=config.batch_size,
        steps=config.epochs * len(loader),
    ).calibrate(epsilon=privacy.target_epsilon, delta=privacy.delta)
    return model, loader, nn.CrossEntropyLoss(), mechanism
