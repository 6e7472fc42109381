"""Accuracy with correlated and independent noise at the same ε and δ, in real sessions: softmax regression on MNIST.

    python -m benchmarks.correlated_noise --data DIR --out docs/results/correlated-noise.json

Fixed features (scattering, pooled: 1,296) of the 8,000 images, batches of 64, clip norm 1, δ = 1e-5. The learning rate
is the best of a grid for each method, the same grid for both; it falls to 0 over the last quarter of the steps. Noise
is that of the session: independent with Poisson sampling; banded, with as many bands as `compare_noise` advises, with
cyclic Poisson sampling. Keys are fixed for each
run, so that the table can be made again; no ε of these runs is a claim.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.scattering import pooled_features
from hushgrad import DPSGD, FlatClipping, compare_noise, privatize
from hushgrad.mechanism.choice import NoiseOption
from hushgrad.randomness import KeyStream
from hushgrad.study.tasks import TaskOptions, load_task

BATCH, DELTA, CLIP = 64, 1e-5, 1.0
RATES = (2.0, 4.0, 8.0, 16.0, 32.0)
PLANS = ((1, 1.0), (1, 4.0))


@dataclass(frozen=True)
class Row:
    """One method of one plan: accuracy in percent of test images, mean and standard deviation over the runs."""

    passes: int
    epsilon: float
    noise: str
    bands: int
    noise_multiplier: float
    rmse: float
    learning_rate: float
    accuracy: float
    deviation: float
    scores: tuple[float, ...]


def trained(
    option: NoiseOption, data: TensorDataset, test: tuple[Tensor, Tensor], steps: int, learning_rate: float, key: int
) -> float:
    """Train in a session of its own; return the accuracy in percent."""
    features = data.tensors[0].shape[1]
    model = nn.Linear(features, 10)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    mechanism = DPSGD(
        noise_multiplier=option.noise_multiplier,
        strategy=option.strategy,
        clipping=FlatClipping(CLIP),
        sampling=option.sampling,
        expected_batch_size=BATCH,
        steps=steps,
    )
    session = privatize(model, optimizer, mechanism, key=KeyStream.fixed_for_tests(key))
    loader = session.batches(data, steps_per_pass=steps)
    for step, (x, y) in enumerate(loader):
        optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, (steps - step) / (0.25 * steps))
        session.backward(nn.functional.cross_entropy(model(x), y, reduction="none"))
        optimizer.step()
    session.close()
    with torch.no_grad():
        return 100 * float((model(test[0]).argmax(1) == test[1]).float().mean())


def measured(data: Path, runs: int, plans: tuple[tuple[int, float], ...]) -> list[Row]:
    """Return a row for each plan and method, the best learning rate of the grid for each."""
    task = load_task("mnist", TaskOptions(data=data))
    (images, labels), (test_images, test_labels) = task.train.tensors, task.test.tensors
    records = TensorDataset(pooled_features(images.reshape(-1, 28, 28)), labels)
    test = pooled_features(test_images.reshape(-1, 28, 28)), test_labels
    rows = []
    for passes, epsilon in plans:
        steps, rate = passes * len(records) // BATCH, BATCH / len(records)
        found = compare_noise(epsilon=epsilon, delta=DELTA, steps=steps, rate=rate)
        print(f"{passes} pass, epsilon {epsilon:g}: {found}", flush=True)
        for option in (found.independent, found.named("banded")):
            best = None
            for learning_rate in RATES:
                scores = [trained(option, records, test, steps, learning_rate, key) for key in range(runs)]
                mean = statistics.fmean(scores)
                if best is None or mean > best.accuracy:
                    deviation = statistics.stdev(scores) if runs > 1 else 0.0
                    size = option.strategy.bands or 0
                    best = Row(passes, epsilon, option.name, size, option.noise_multiplier, option.rmse,
                               learning_rate, mean, deviation, tuple(scores))  # fmt: skip
            assert best is not None
            print(best, flush=True)
            rows.append(best)
    return rows


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST's files")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the rows")
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--four-passes", action="store_true", help="four passes, too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    plans = PLANS + (((4, 1.0), (4, 4.0)) if given.four_passes else ())
    rows = measured(given.data, given.runs, plans)
    given.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
