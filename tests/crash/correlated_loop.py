"""Trains with correlated noise, is killed between a release and its checkpoint, and goes on in another process.

Run as a program: `correlated_loop.py FOLDER KEY`; prints one JSON object. KEY is "secret", or "fixed" for the mistake
of a key that is kept. Each process writes what it released to a file of its own, before the optimizer has it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from hushgrad import DPSGD, CyclicPoissonSampling, FlatClipping, optimal_banded, privatize
from hushgrad.accounting import read_ledger
from hushgrad.randomness import KeyStream

BANDS, STEPS, DIES_AT, EVERY = 4, 16, 6, 4
STRATEGY = optimal_banded(STEPS, BANDS)
LOUD = 1e6  # beside which the clipped sums are nothing


def train(folder: Path, key: KeyStream | None, name: str, dies_at: int | None) -> None:
    """Train to the planned end, or to the moment after the release of step `dies_at`."""
    torch.manual_seed(0)
    model = nn.Linear(80, 100, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    plan = DPSGD(
        noise_multiplier=LOUD, strategy=STRATEGY, clipping=FlatClipping(1.0),
        sampling=CyclicPoissonSampling(0.2, BANDS), expected_batch_size=4, steps=STEPS + BANDS,
    )  # fmt: skip
    session = privatize(model, optimizer, plan, ledger=folder / "ledger.jsonl", key=key)
    loader = session.batches(TensorDataset(torch.randn(20, 80)), steps_per_pass=STEPS)
    done = 0
    if (folder / "checkpoint").exists():
        done = session.load_checkpoint(folder / "checkpoint").steps
    witness = (folder / name).open("ab")
    step = done

    def released(*_: object) -> None:
        witness.write(model.weight.grad.numpy().tobytes())  # type: ignore[union-attr]
        witness.flush()
        if step == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    optimizer.register_step_pre_hook(released)
    for (x,) in loader:
        session.backward(model(x).square().sum(1))
        optimizer.step()
        step += 1
        if step % EVERY == 0:
            session.save_checkpoint(folder / "checkpoint")
        if step == STEPS:
            break
    session.close()
    (folder / "end").write_text(str(step))


def main() -> None:
    """Run both processes, and say how they ended and what the ledger holds."""
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.0)  # imports what both children need
    ends = []
    for name, dies_at in (("first", DIES_AT), ("second", None)):
        child = os.fork()
        if child == 0:
            train(folder, KeyStream.fixed_for_tests(1) if kind == "fixed" else None, name, dies_at)
            os._exit(0)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    charged = [(event.in_block, count) for event, count in read_ledger(folder / "ledger.jsonl").events]
    print(json.dumps({"ends": ends, "charged": charged, "end": int((folder / "end").read_text())}))


if __name__ == "__main__":
    main()
