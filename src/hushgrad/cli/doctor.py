"""`hushgrad doctor`: how a model would be trained privately, what it would cost, and what would be refused."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import Any

import click
from torch import nn

from hushgrad.checks.doctor.examination import doctor as examine
from hushgrad.cli.loading import load, made_by
from hushgrad.cli.options import JSON
from hushgrad.cli.output import print_report, screen_width
from hushgrad.errors import InvalidArgumentError


@click.command()
@click.argument("factory", metavar="MODULE:FACTORY")
@click.option("--batch", metavar="MODULE:BATCH", help="A batch, or a function that makes one; the model is run on it.")
@click.option("--criterion", metavar="MODULE:LOSS", help="The loss; the batch is then (inputs, target).")
@JSON
def doctor(factory: str, batch: str | None, criterion: str | None, as_json: bool) -> None:
    """Examine a model: a table of its parameters' uses, and every problem with its cure.

    FACTORY is a model, or a function without arguments that returns one. It may also return (model, optimizer). In
    place of a module's name the path of a file may be given. The code you name is run.

    \b
    hushgrad doctor models:make_model
    hushgrad doctor models:make_model --batch models:make_batch
    hushgrad doctor train.py:Net --batch train.py:batch --criterion torch.nn:CrossEntropyLoss

    Exits with 1 if the model cannot be made private as it is.
    """
    if criterion is not None and batch is None:
        raise click.UsageError("--criterion needs --batch")
    made = made_by(load(factory, "FACTORY", _announce), factory, "FACTORY", tell_text=True)
    model, optimizer = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(
            f"FACTORY must give a torch.nn.Module, got {type(made).__name__}",
            cure="Return the model, or (model, optimizer)",
        )
    values: Any = None
    if batch is not None:
        values = made_by(load(batch, "--batch", _announce), batch, "--batch", tell_text=False)
        if values is None:
            raise InvalidArgumentError("there is no batch, but None", where="--batch", cure="Return the batch")
    with redirect_stdout(sys.stderr):  # what the model prints
        diagnosis = examine(model, values, criterion=_criterion(criterion), optimizer=optimizer)
    if as_json:
        click.echo(json.dumps(diagnosis.as_json(), allow_nan=False))
    else:
        print_report(diagnosis.text(screen_width()), verdict=-1, good=diagnosis.is_ready)
    if not diagnosis.is_ready:
        sys.exit(1)


def _announce(file: str) -> None:
    click.echo(f"running {file}", err=True)


def _criterion(reference: str | None) -> Any:
    """Return the loss that a name stands for; a class is made without arguments, a function is the loss itself."""
    if reference is None:
        return None
    found = load(reference, "--criterion", _announce)
    return made_by(found, reference, "--criterion", tell_text=True) if isinstance(found, type) else found
