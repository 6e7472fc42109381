"""A run that was stopped, by Ctrl-C or by a crash at any moment, goes on in its folder to its planned end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.errors import CheckpointError, ContractChangedError, HushgradError, InvalidArgumentError
from hushgrad.printable import printable
from hushgrad.session.spending import steps_taken
from hushgrad.study.account import Account
from hushgrad.study.checkpointing import MAY_CHANGE, RunCheckpoint
from hushgrad.study.config_json import config_from_json
from hushgrad.study.configuration import RunConfig
from hushgrad.study.directory import RunDirectory, from_json
from hushgrad.study.loggers import MetricLogger
from hushgrad.study.named_settings import values_of
from hushgrad.study.run import SILENT, Reporter, RunResult, carry_out, load_for
from hushgrad.study.summary_file import is_completed

_WHERE = "--resume"


def resume(
    out: Path,
    reporter: Reporter = SILENT,
    *,
    changes: Mapping[str, Any] | None = None,
    loggers: Sequence[MetricLogger] = (),
    share_uncovered: bool = False,
) -> RunResult:
    """Go on with the run in the folder `out`, from its last checkpoint, under its own settings.

    Steps after the checkpoint stay charged and are told (`lost_steps`); `spare_steps` pays for them beforehand. What
    was measured after the checkpoint is taken out of the metrics.

    Args:
        changes: settings by name; those in MAY_CHANGE may differ from the run's, and all others must not.

    Guarantee: a run that cannot be continued is refused before anything of it is changed.

    Raises:
        InvalidArgumentError: the folder holds no run, or one that is completed or was not private.
        ContractChangedError: other settings than those that the run was begun with, or another run has gone on with
            the ledger that they share.
        CheckpointError: the checkpoint is damaged or missing.
        LedgerError: the ledger is missing, was cut, is that of another run, or in use.
        DatasetError: other data than those that the run was begun with.
    """
    config = with_changes(read_config(out), changes or {})
    directory = RunDirectory(out)
    if config.privacy is None:
        raise InvalidArgumentError(
            "the run is ordinary training, which keeps no checkpoint",
            where=_WHERE,
            cure="Train again in a new folder: without privacy a run that was stopped has spent nothing",
        )
    if is_completed(directory):
        directory.forget_checkpoint()  # which the end of the run may have had no time for
        raise InvalidArgumentError(
            "the run is completed: all of its steps are spent",
            where=_WHERE,
            cure="Use it (hushgrad predict), or begin a longer one: --config RUN/config.json --set epochs=… --out NEW",
        )
    _require_its_turn(directory.account)
    if directory.checkpoint.exists():
        _require_counts(config, directory)
        RunCheckpoint.of(directory.checkpoint, config).require_continuable(directory.ledger)
    else:
        _require_nothing_trained(directory)
    task = load_for(config)
    return carry_out(config, task, directory, reporter, loggers=loggers, share_uncovered=share_uncovered)


def read_config(out: Path) -> RunConfig:
    """Return the settings of the run in a folder. Raises InvalidArgumentError where it holds none."""
    try:
        return config_from_json(from_json((out / "config.json").read_bytes()))
    except OSError:
        raise InvalidArgumentError(
            "the folder holds no run: config.json is missing",
            where="the run's folder",
            cure="Name the folder that --out named",
        ) from None
    except ValueError as error:
        if isinstance(error, HushgradError):
            raise
        raise InvalidArgumentError(
            "the file is damaged", where="config.json", cure="Restore it from a copy, or begin a new run"
        ) from error


def with_changes(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Return the settings with those changes that a run which goes on may have. Raises ContractChangedError."""
    own = values_of(config)
    other = sorted(name for name, value in changes.items() if name not in MAY_CHANGE and value != own.get(name))
    if other:
        raise ContractChangedError(
            f"a run goes on with its own settings, and {', '.join(other)} would be another",
            where=_WHERE,
            cure=f"Leave it out ({', '.join(sorted(MAY_CHANGE))} may change), or begin a new run (--config and --out)",
        )
    found = {name: value for name, value in changes.items() if name in MAY_CHANGE - {"data"}}
    options = replace(config.options, data=changes["data"]) if "data" in changes else config.options
    return replace(config, options=options, **found)


def can_go_on(out: Path) -> bool:
    """Can the run in this folder be resumed, as far as its files tell at a glance?"""
    return (out / "config.json").is_file() and (out / "checkpoint.safetensors").is_file()


def _require_counts(config: RunConfig, directory: RunDirectory) -> None:
    """Weights that steps were trained with follow from counts that were paid for: others are no way to go on."""
    if config.class_weights_epsilon is not None and not directory.class_counts.exists():
        raise CheckpointError(
            "it is missing, and the weights of classes follow from it",
            where=directory.class_counts.name,
            cure="Restore it from a copy of the run's folder, or begin a new run; what was spent stays in the ledger",
        )


def _require_its_turn(account: Account) -> None:
    """A part of a shared ledger has ended where another run has gone on with the account."""
    if account.phase is None or not account.ledger.exists():
        return
    *ended, last = (phase.name for phase in read_ledger(account.ledger).phases)
    if account.phase in ended:
        raise ContractChangedError(
            f"another run ({last}) has gone on with the shared ledger {printable(account.ledger.name)}, and a part of "
            f"an account that was left is not taken up again",
            where=_WHERE,
            cure="Begin a new run (--config RUN/config.json --ledger … --out NEW); what this one spent stays spent",
        )


def _require_nothing_trained(directory: RunDirectory) -> None:
    """Without a checkpoint a run begins from its start, which is right only where no step of it was charged."""
    trained = [path.name for path in (directory.metrics, directory.summary, directory.model) if path.exists()]
    account = directory.account
    if steps_taken(account.ledger, account.phase):
        trained.append(directory.ledger.name)
    if trained:
        raise CheckpointError(
            f"it is missing, and {', '.join(trained)} of a run that has begun to train is here",
            where=directory.checkpoint.name,
            cure="Restore it from a copy of the run's folder, or begin a new run; what was spent stays in the ledger",
        )
