"""The folder of a sweep. Finished runs stay finished, whatever stops the sweep.

plan.json             what is to run; a sweep resumes only with the plan it began with
runs/NAME/            a finished run, as `hushgrad train` leaves it
working/NAME/         a run that goes on, or was cut off and has a checkpoint from which it will go on
abandoned/NAME-1/     an attempt that failed, or was cut off without a checkpoint: its ledger counts in what the sweep
                      has cost
failures/NAME.json    why the last attempt of a run failed
logs/NAME.txt         the output of a run
table.json, table.csv, *.png, *.svg
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hushgrad.errors import ContractChangedError, InvalidArgumentError
from hushgrad.result_file import replace_file
from hushgrad.study.directory import RunDirectory, json_text, make_folder
from hushgrad.study.summary_file import is_completed, read_summary
from hushgrad.study.sweep.plan import SweepPlan
from hushgrad.system import fcntl

_INNER = ("runs", "working", "abandoned", "failures", "logs")
_BEFORE_THE_PLAN = frozenset({*_INNER, ".plan.json.new"})
"""What a sweep leaves that was killed before its plan was whole: nothing has run then."""


@dataclass(frozen=True, slots=True)
class SweepFolder:
    """The folder of one sweep and what is in it."""

    path: Path

    @classmethod
    def open(cls, path: Path, plan: SweepPlan) -> SweepFolder:
        """Return the folder of `plan`: a new one, an empty one, or the one in which this very plan was begun.

        Raises ContractChangedError for the folder of another plan and InvalidArgumentError for anything else that is
        in the way.
        """
        folder = cls(path)
        if folder.plan_file.exists():
            begun = folder.plan()
            if begun.fingerprint() != plan.fingerprint():
                raise ContractChangedError(
                    "this folder holds a sweep with another plan",
                    where="--out",
                    cure="Repeat that sweep's settings to resume it, or choose another folder",
                )
            return folder
        if path.exists() and (not path.is_dir() or not _BEFORE_THE_PLAN.issuperset(os.listdir(path))):
            raise InvalidArgumentError(
                "the output folder must be new, empty, or hold this sweep", where="--out", cure="Choose another folder"
            )
        for inner in (path, *(path / name for name in _INNER)):
            make_folder(inner)
        replace_file(folder.plan_file, (json_text(plan.to_json(), indent=2) + "\n").encode())
        return folder

    @classmethod
    def existing(cls, path: Path) -> SweepFolder:
        """Return the folder of a sweep that was begun. Raises InvalidArgumentError for anything else."""
        folder = cls(path)
        if not folder.plan_file.is_file():
            raise InvalidArgumentError(
                "the folder holds no sweep: plan.json is missing",
                where="the sweep's folder",
                cure="Name the folder of a sweep. One that was stopped before its plan was written, and a search, go "
                "on by the words that began them",
            )
        return folder

    @property
    def plan_file(self) -> Path:
        """What is to run."""
        return self.path / "plan.json"

    def plan(self) -> SweepPlan:
        """Return the plan on disk."""
        try:
            value = json.loads(self.plan_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidArgumentError(
                "it cannot be read", where="plan.json", cure="Restore it, or choose another folder"
            ) from error
        return SweepPlan.from_json(value)

    def finished(self, name: str) -> Path:
        """Return where the run `name` lies once it is finished."""
        return self.path / "runs" / name

    def working(self, name: str) -> Path:
        """Return where the run `name` lies while it goes on."""
        return self.path / "working" / name

    def log(self, name: str) -> Path:
        """Return what the run `name` prints to."""
        return self.path / "logs" / f"{name}.txt"

    def is_finished(self, name: str) -> bool:
        """Has this run been finished?"""
        return self.finished(name).is_dir()

    def settle(self, name: str, *, failed: bool = False) -> bool:
        """Put what lies in `working` where it belongs and say whether the run is finished.

        A whole run goes to `runs`; one with a checkpoint stays and goes on from it, unless it `failed`; anything else
        goes to `abandoned`, where its ledger still counts. Each by one rename.
        """
        working = self.working(name)
        if working.is_dir():
            if self._is_whole(working):
                RunDirectory(working).forget_checkpoint()  # which the end of the run may have had no time for
                os.replace(working, self.finished(name))
                self._failure_file(name).unlink(missing_ok=True)
            elif not failed and (working / "checkpoint.safetensors").is_file():
                return False
            elif any(working.iterdir()):
                os.replace(working, self._free_place(name))
            else:
                working.rmdir()
        return self.is_finished(name)

    def attempts_abandoned(self) -> list[Path]:
        """Return the folders of attempts that failed or were cut off, in the order of their names."""
        return sorted(path for path in (self.path / "abandoned").iterdir() if path.is_dir())

    def record_failure(self, name: str, kind: str, message: str) -> None:
        """Keep why an attempt failed: the kind of error and the error's own line."""
        text = json_text({"kind": kind, "message": message}, indent=2) + "\n"
        replace_file(self._failure_file(name), text.encode())

    def failure(self, name: str) -> dict[str, str] | None:
        """Return why the last attempt of the run failed, as {"kind", "message"}, or None."""
        try:
            value: dict[str, str] = json.loads(self._failure_file(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return value

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the sweep for this process. Raises InvalidArgumentError while another one holds it."""
        descriptor = os.open(self.plan_file, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InvalidArgumentError(
                    "another process is running this sweep", where="--out", cure="Wait for that process, or stop it"
                ) from error
            yield
        finally:
            os.close(descriptor)

    def _is_whole(self, working: Path) -> bool:
        """Has the run in this folder written all that it ends with? A run of an own function ends with its summary."""
        directory = RunDirectory(working)
        if directory.config.exists():
            return is_completed(directory)
        summary = read_summary(working)
        return summary is not None and summary.get("status") == "completed"

    def _failure_file(self, name: str) -> Path:
        return self.path / "failures" / f"{name}.json"

    def _free_place(self, name: str) -> Path:
        number = 1
        while (place := self.path / "abandoned" / f"{name}-{number}").exists():
            number += 1
        return place
