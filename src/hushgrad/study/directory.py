"""The folder that a run leaves behind. Each file in it is whole, whatever stops the run.

Files are replaced in one step (written beside, flushed to disk, renamed); measurements are appended line by line. The
summary is replaced before the model, so a crash between the two leaves a summary that states at least the epsilon that
the model has cost.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hushgrad.accounting.ledger.records import LedgerHead
from hushgrad.errors import InvalidArgumentError
from hushgrad.result_file import replace_file
from hushgrad.study.account import FILE as ACCOUNT
from hushgrad.study.account import Account
from hushgrad.study.model_file import as_bytes
from hushgrad.study.outcome import Measurement
from hushgrad.study.scoring import Scores

MOST_DIGITS = 300
# Times show how many records were drawn.
NOT_COVERED = ("loss", "train_accuracy", "train_largest_class", "examples_per_second", "seconds")


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The folder of one run and its files."""

    path: Path

    @classmethod
    def claim(cls, path: Path) -> RunDirectory:
        """Return the folder, created if need be, readable by its owner only. Raises what `require_unused` raises."""
        require_unused(path)
        make_folder(path)
        return cls(path)

    @property
    def metrics(self) -> Path:
        """One JSON object per measurement."""
        return self.path / "metrics.jsonl"

    @property
    def config(self) -> Path:
        """All settings of the run, as `hushgrad train --config` takes them, one JSON object."""
        return self.path / "config.json"

    @property
    def summary(self) -> Path:
        """Settings and results of the run, one JSON object."""
        return self.path / "summary.json"

    @property
    def model(self) -> Path:
        """The parameters."""
        return self.path / "model.safetensors"

    @property
    def curves(self) -> Path:
        """Loss, accuracy and epsilon over the steps."""
        return self.path / "curves.png"

    @property
    def account(self) -> Account:
        """What the run is charged in. Raises InvalidArgumentError where the file that says so is damaged."""
        return Account.read(self.path)

    @property
    def ledger(self) -> Path:
        """The ledger of what was released, in this folder or shared with other runs; epsilon is computed from it."""
        return self.account.ledger

    @property
    def checkpoint(self) -> Path:
        """Where a run that was stopped goes on from."""
        return self.path / "checkpoint.safetensors"

    @property
    def fingerprint(self) -> Path:
        """What tells the run's data from others; not covered by ε."""
        return self.path / "fingerprint.json"

    @property
    def provenance(self) -> Path:
        """When the run began, by whom, on which file of data; its digest is not covered by ε."""
        return self.path / "provenance.json"

    @property
    def encoding(self) -> Path:
        """How new rows become inputs of the model."""
        return self.path / "encoding.json"

    @property
    def vocabulary(self) -> Path:
        """The hash buckets of the words that have a number of their own, where they were counted."""
        return self.path / "vocabulary.json"

    @property
    def class_counts(self) -> Path:
        """How many training records each class has, with noise, where weights of classes follow from that."""
        return self.path / "class_counts.json"

    def append_measurement(self, measurement: Measurement) -> None:
        """Add one line to the metrics, in a single write, and return when it is on disk: no summary is ahead of it."""
        line = json_text({**asdict(measurement), "not_covered": NOT_COVERED}, indent=None) + "\n"
        descriptor = os.open(self.metrics, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def cut_measurements(self, step: int) -> tuple[Measurement, ...]:
        """Take away what was measured after `step` steps, and a line that was cut off; return the rest."""
        lines = self.metrics.read_bytes().split(b"\n")[:-1] if self.metrics.exists() else []
        rows = [(line, _measurement(line)) for line in lines]
        kept = [(line, row) for line, row in rows if row.step <= step]
        if self.metrics.exists():
            replace_file(self.metrics, b"".join(line + b"\n" for line, _ in kept))
        return tuple(row for _, row in kept)

    def forget_checkpoint(self) -> None:
        """Take away what only a run that is not completed needs."""
        self.fingerprint.unlink(missing_ok=True)
        self.checkpoint.unlink(missing_ok=True)

    def write_config(self, settings: dict[str, Any]) -> None:
        """Write the settings."""
        replace_file(self.config, (json_text(settings, indent=2) + "\n").encode())

    def write_provenance(self, provenance: dict[str, Any]) -> None:
        """Write when the run began, by whom and on what."""
        replace_file(self.provenance, (json_text(provenance, indent=2) + "\n").encode())

    def write_account(self, account: Account) -> None:
        """Write which part of a shared ledger the run is."""
        replace_file(self.path / ACCOUNT, (json_text(account.as_json(self.path), indent=2) + "\n").encode())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replace the summary."""
        replace_file(self.summary, (json_text(summary, indent=2) + "\n").encode())

    def write_model(self, model: nn.Module, description: dict[str, str]) -> None:
        """Replace the model: parameters and buffers in safetensors format, with `description` in its header."""
        replace_file(self.model, as_bytes(model, description))


def _measurement(line: bytes) -> Measurement:
    try:
        row: dict[str, Any] = {name: value for name, value in from_json(line).items() if name != "not_covered"}
        row |= {name: float(value) for name, value in row.items() if isinstance(value, str)}  # infinity, and NaN
        if row.get("test_scores") is not None:
            row["test_scores"] = Scores.from_json(row["test_scores"])
        return Measurement(**row)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InvalidArgumentError(
            "a line is damaged: it is not a measurement", where="metrics.jsonl", cure="Remove the line"
        ) from error


def kept_numbers(path: Path, name: str) -> tuple[float, ...] | None:
    """Return the numbers that a file of the run keeps under a name; None where it is not there."""
    if not path.exists():
        return None
    try:
        kept = from_json(path.read_text(encoding="utf-8"))[name]
        return tuple(float(value) for value in kept)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidArgumentError(
            "the file is damaged", where=path.name, cure="Restore it from a copy, or begin a new run"
        ) from error


def ledger_end(anchor: LedgerHead | None) -> dict[str, Any] | None:
    """Return how many records a ledger has and its last one's hash, as a summary keeps them; None without a ledger."""
    return None if anchor is None else {"records": anchor.seq + 1, "hash": anchor.hash}


def make_folder(path: Path) -> None:
    """Make a folder for results where it is missing, readable by its owner only. Raises InvalidArgumentError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgumentError(
            f"the output folder cannot be created: {error.strerror}", where="--out", cure="Choose another folder"
        ) from error


def require_unused(path: Path) -> None:
    """Raise InvalidArgumentError unless `path` is free or an empty folder: no run overwrites another."""
    if path.is_dir():
        if any(path.iterdir()):
            raise InvalidArgumentError(
                "the output folder must be new or empty, and this one holds files",
                where="--out",
                cure="Choose another folder",
            )
    elif path.exists() or path.is_symlink():
        raise InvalidArgumentError(
            "the output path must be a folder, and this is something else", where="--out", cure="Choose another path"
        )


def json_text(value: Any, *, indent: int | None) -> str:
    """Return strict JSON. JSON has no infinity and no NaN: they become the strings "inf", "-inf" and "nan"."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False)


def from_json(text: str | bytes) -> Any:
    """Return what a JSON text says. Raises ValueError also for a whole number that no float can hold."""
    return json.loads(text, parse_int=_whole)


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number has more than {MOST_DIGITS} digits")
    return int(digits)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
