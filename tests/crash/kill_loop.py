"""Trains in forked processes, kills each with SIGKILL at a random moment, and compares the ledger with a witness.

Run as a program: `kill_loop.py FOLDER KILLS LEASE SEED`; prints one JSON object. The witness is a file to which the
training process appends one byte after each `optimizer.step()`: what it has more than the ledger was released
uncharged.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from hushgrad import DPSGD, FlatClipping, PoissonSampling, privatize
from hushgrad.accounting import read_ledger

STEPS_OF_A_LEDGER = 10**6
KILLS_OF_A_LEDGER = 25


def train(ledger: Path | None, witness: Path, lease: int, ready: int, steps: int) -> None:
    """Train for so many steps; write a byte to `ready` after the first."""
    model = nn.Linear(3, 1)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.1), expected_batch_size=4,
        steps=STEPS_OF_A_LEDGER,
    )  # fmt: skip
    released = os.open(witness, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = privatize(model, optimizer, mechanism, ledger=ledger, lease=lease)
    x = torch.randn(4, 3)
    for step in range(steps):
        session.backward(model(x).squeeze(1))
        optimizer.step()
        os.write(released, b".")
        if step == 0:
            os.write(ready, b"1")
    session.close()


def main(folder: str, kills: int, lease: int, seed: int) -> None:
    """Kill `kills` times and print what was found."""
    torch.set_num_threads(1)
    # Once here, so that the forked processes find everything imported and spend their lives training.
    train(None, Path(folder, "warm.witness"), 1, os.open(os.devnull, os.O_WRONLY), 3)
    chance = random.Random(seed)
    uncharged, worst, total, died_early, excess = 0, 0, 0, 0, 0
    for kill in range(kills):
        number, turn = divmod(kill, KILLS_OF_A_LEDGER)
        ledger, witness = Path(folder, f"{number}.jsonl"), Path(folder, f"{number}.witness")
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                train(ledger, witness, lease, writable, STEPS_OF_A_LEDGER)
            except BaseException as error:
                print(error, file=sys.stderr, flush=True)
            os._exit(1)
        os.close(writable)
        if chance.random() < 0.8:
            os.read(readable, 1)
        os.close(readable)
        time.sleep(chance.uniform(0, 0.012))
        os.kill(child, signal.SIGKILL)
        died_early += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL
        charged = read_ledger(ledger).steps if ledger.exists() else 0
        released = witness.stat().st_size if witness.exists() else 0
        uncharged += released > charged
        # What this kill over-charged: what earlier ones did stays in the ledger.
        excess_before = excess if turn else 0
        excess = charged - released
        worst = max(worst, excess - excess_before)
        total += released if turn == KILLS_OF_A_LEDGER - 1 or kill == kills - 1 else 0
    found = {"kills": kills, "uncharged": uncharged, "worst_over_charge": worst, "steps": total, "failed": died_early}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
