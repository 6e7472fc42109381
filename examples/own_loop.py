"""A training loop of your own: the mechanism as a value, one loss for each example, a schedule over steps.

Run `python examples/own_loop.py`. It fits a small network to made-up numbers (a regression) and needs nothing but
hushgrad itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import hushgrad

RECORDS, BATCH, EPOCHS, DELTA = 5_000, 250, 8, 1e-5


def made_up(records: int) -> TensorDataset:
    """Return inputs [N, 10] and targets [N, 1] that follow them with some noise."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(records, 10, generator=draw)
    weights = torch.randn(10, 1, generator=draw)
    return TensorDataset(x, torch.tanh(x @ weights) + 0.1 * torch.randn(records, 1, generator=draw))


def main() -> None:
    """Plan, train step by step, and print what it cost."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/own_loop"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    steps = EPOCHS * RECORDS // BATCH
    mechanism = hushgrad.DPSGD(
        noise_multiplier=1.0,
        clipping=hushgrad.AutomaticClipping(1.0),
        sampling=hushgrad.PoissonSampling(rate=BATCH / RECORDS),
        expected_batch_size=BATCH,
        steps=steps,  # a limit: one more raises BudgetExhaustedError before anything is charged
    ).calibrate(epsilon=3.0, delta=DELTA)
    print(f"noise multiplier {mechanism.noise.noise_multiplier:.2f} for {steps} steps")

    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    session = hushgrad.privatize(model, optimizer, mechanism, ledger=out / "ledger.jsonl")

    data = made_up(RECORDS)
    loader = session.batches(data, max_physical_batch_size=128)
    for epoch in range(1, EPOCHS + 1):
        for logical_batch in loader.logical_batches():  # len(loader) of them, however large the draws
            for x, y in logical_batch:
                losses = nn.functional.mse_loss(model(x), y, reduction="none").flatten()  # [b], one for each example
                session.backward(losses)
                session.end_item()
            optimizer.step()  # charge, noise, division, then the optimizer's own update
            schedule.step()
        print(f"epoch {epoch}: ε = {session.epsilon(DELTA):.2f}, {session.steps_left} steps left")
    inputs, targets = data.tensors
    with torch.no_grad():  # computed on private records without noise: for your eyes, not covered by ε
        print(f"mean squared error {float(nn.functional.mse_loss(model(inputs), targets)):.3f}")
    print(session.guarantee(DELTA))


if __name__ == "__main__":
    main()
