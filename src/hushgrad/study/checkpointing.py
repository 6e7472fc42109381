"""The checkpoint of a run: weights, optimizer and average after a step, and the receipt of what they have cost.

It is there from before the first step on, so a ledger with steps and no checkpoint beside it has lost one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from hushgrad import PrivacyEngine
from hushgrad.arguments import count_of
from hushgrad.errors import CheckpointError, ContractChangedError
from hushgrad.session.checkpoint import Checkpoint
from hushgrad.study.averaging import ParameterAverage
from hushgrad.study.config_json import config_to_json
from hushgrad.study.configuration import RunConfig
from hushgrad.study.directory import json_text

MAY_CHANGE = frozenset({"data", "device", "max_physical_batch_size", "threads"})
"""Settings by which a run that goes on may differ: where it computes, and where the same data lie."""


@dataclass(frozen=True, slots=True)
class RunCheckpoint:
    """The checkpoint of one run in the file `path`; `settings` is the digest of the run's settings."""

    path: Path
    settings: str

    @classmethod
    def of(cls, path: Path, config: RunConfig) -> RunCheckpoint:
        """Return the checkpoint of a run with these settings."""
        same = replace(
            config, device="cpu", threads=None, max_physical_batch_size=None, options=replace(config.options, data=None)
        )
        text = json_text(config_to_json(same), indent=None)
        return cls(path, hashlib.sha256(text.encode()).hexdigest())

    def require_continuable(self, ledger: Path) -> None:
        """Raise what is wrong with a checkpoint before anything is opened or changed.

        Raises:
            CheckpointError: it is damaged.
            ContractChangedError: it is one of other settings.
            LedgerError: the ledger is missing, was cut, or is that of another run.
        """
        found = Checkpoint.read(self.path)
        _step(found.extra)
        if found.extra.get("settings") != self.settings:
            raise ContractChangedError(
                "the run was begun with other settings than those in config.json now",
                where="config.json",
                cure="Restore the file; for a run with other settings give --config and a new --out",
            )
        found.receipt.steps_of(ledger)

    def begin(self, engine: PrivacyEngine, average: ParameterAverage | None) -> int | None:
        """Go on from the checkpoint and return how many steps its weights have seen; None where the run begins."""
        if not self.path.exists():
            self.save(engine, average, 0)
            return None
        resumed = engine.load_checkpoint(self.path, schedulers=[average] if average is not None else [])
        return _step(resumed.extra)

    def save(self, engine: PrivacyEngine, average: ParameterAverage | None, step: int) -> None:
        """Write it after `step` steps; return when it is on disk."""
        engine.save_checkpoint(
            self.path,
            schedulers=[average] if average is not None else [],
            extra={"step": step, "settings": self.settings},
        )


def _step(extra: object) -> int:
    if not isinstance(extra, dict) or type(extra.get("step")) is not int:
        raise CheckpointError(
            "it is not one of hushgrad train", where="the checkpoint", cure="Restore the file, or begin a new run"
        )
    return count_of("step", extra["step"], minimum=0)
