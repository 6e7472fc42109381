"""Kills a training process with SIGKILL at a named point of a plain loop with checkpoints, and lets another go on.

Run as a program: `resume_loop.py FOLDER POINT STEP`; prints one JSON object. A witness gets one byte for each update
that the optimizer has written, so that what was released can be compared with what was charged.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad.checkpoints.file
from hushgrad import PrivacyEngine
from hushgrad.accounting import read_ledger
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.session.checkpoint import Checkpoint
from hushgrad.session.update import Update

STEPS, SPARE, EVERY = 12, 12, 2


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Fuse:
    """Ends the process before or after one call of a function: the one in which `is_lit` says so."""

    def __init__(self) -> None:
        self.is_lit = False

    def before(self, owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def replaced(*args: Any, **kwargs: Any) -> Any:
            if self.is_lit:
                die()
            return call(*args, **kwargs)

        setattr(owner, name, replaced)

    def after(self, owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def replaced(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            if self.is_lit:
                die()
            return result

        setattr(owner, name, replaced)


class Witnessed(torch.optim.AdamW):
    """AdamW that tells a file of each update that it has written."""

    witness = -1

    def step(self, closure: Any = None) -> Any:
        return self.update_weights(closure)

    def update_weights(self, closure: Any) -> Any:
        result = super().step(closure)
        os.write(self.witness, b".")
        return result


POINTS: dict[str, Callable[[Fuse], None]] = {
    "before the backward": lambda fuse: fuse.before(torch.Tensor, "backward"),
    "after the backward": lambda fuse: fuse.after(torch.Tensor, "backward"),
    "before the charge": lambda fuse: fuse.before(Ledger, "charge"),
    "after the charge": lambda fuse: fuse.after(Ledger, "charge"),
    "before the noise": lambda fuse: fuse.before(Update, "write"),
    "after the noise": lambda fuse: fuse.after(Update, "write"),
    "before the optimizer's update": lambda fuse: fuse.before(Witnessed, "update_weights"),
    "after the optimizer's update": lambda fuse: fuse.after(Witnessed, "update_weights"),
    "before the checkpoint is written": lambda fuse: fuse.before(os, "open"),
    "before the checkpoint takes its place": lambda fuse: fuse.before(os, "replace"),
    "after the checkpoint took its place": lambda fuse: fuse.after(os, "replace"),
    "after the checkpoint": lambda fuse: fuse.after(hushgrad.checkpoints.file, "replace_file"),
    "while a checkpoint is loaded": lambda fuse: fuse.before(Checkpoint, "load"),
}
OF_CHECKPOINTS = [name for name in POINTS if "checkpoint" in name]


def train(folder: Path, dies_in: int | None, point: str | None) -> None:
    """Train from where the folder says to the planned end, or to the point of step `dies_in`."""
    fuse = Fuse()
    if point is not None:
        POINTS[point](fuse)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = Witnessed(model.parameters(), lr=0.01)
    optimizer.witness = os.open(folder / "witness", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    data = TensorDataset(torch.randn(24, 3), torch.randn(24, 1))
    engine = PrivacyEngine(ledger=folder / "ledger.jsonl")
    _, _, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=8),
        target_epsilon=5.0,
        target_delta=1e-3,
        epochs=STEPS // 3,
        max_grad_norm=1.0,
        spare_steps=SPARE,
    )
    criterion = engine.per_example(nn.MSELoss())
    done, lost = 0, engine.session.steps  # without a checkpoint all that was charged before is lost
    if (folder / "checkpoint").exists():
        fuse.is_lit = point == "while a checkpoint is loaded" and dies_in is not None
        resumed = engine.load_checkpoint(folder / "checkpoint")
        done, lost = resumed.extra["done"], resumed.lost_steps
    while done < STEPS:
        for x, y in loader:
            fuse.is_lit = done == dies_in and point not in OF_CHECKPOINTS
            criterion(model(x), y).backward()
            optimizer.step()
            done += 1
            if done % EVERY == 0:
                fuse.is_lit = done - 1 == dies_in and point in OF_CHECKPOINTS
                engine.save_checkpoint(folder / "checkpoint", extra={"done": done})
            if done == STEPS:
                break
    engine.session.close()
    (folder / "end").write_text(json.dumps({"done": done, "lost": lost, "charged": engine.session.steps}))


Train = Callable[[Path, int | None, str | None], None]
"""Trains in a folder, from where it says, and dies in a step at a point."""


def forked(train: Train, folder: Path, dies_in: int | None, point: str | None) -> int:
    child = os.fork()
    if child == 0:
        try:
            train(folder, dies_in, point)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_and_resumed(train: Train, folder: Path, point: str, step: int) -> dict[str, Any]:
    """Kill one process, let the next one go on, and return what was found."""
    killed = forked(train, folder, step, point)
    charged, released = read_ledger(folder / "ledger.jsonl").steps, (folder / "witness").stat().st_size
    at = {"killed": killed == -signal.SIGKILL, "charged_at_death": charged, "released_at_death": released}
    finished = forked(train, folder, None, None)
    end = json.loads((folder / "end").read_text()) if finished == 0 else {}
    return {**at, **end, "finished": finished == 0, "released": (folder / "witness").stat().st_size}


def kill_pairs(train: Train, folder: Path, pairs: list[str]) -> None:
    """Kill and go on, once for each `POINT:STEP`, and print what was found as a list."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    warm = folder / "warm"
    warm.mkdir()
    train(warm, None, None)  # so that the forked processes find everything imported
    found = []
    for number, pair in enumerate(pairs):
        point, step = pair.split(":")
        own = folder / str(number)
        own.mkdir()
        found.append(killed_and_resumed(train, own, point, int(step)))
    print(json.dumps(found))


def main(folder: Path, point: str, step: int) -> None:
    """Print what was found of one point."""
    torch.set_num_threads(1)
    if point == "while a checkpoint is loaded":
        forked(train, folder, step, "after the checkpoint")
    print(json.dumps(killed_and_resumed(train, folder, point, step)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
