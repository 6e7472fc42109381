"""Huge tables whose rows are chosen privately (`SparseRows`) against tables that get noise whole.

    python -m benchmarks.sparse_rows growth --out docs/results/sparse-rows-growth.json
    python -m benchmarks.sparse_rows clicks --out docs/results/sparse-rows.json

*growth*: the time of a step, and the memory that it takes above the model's own, against the number of rows. Each size
and kind runs in a process of its own, because the memory is that of the process.

*clicks*: a made-up click task. Users and items are drawn by Zipf's law; whether a user clicks on an item follows from
hidden vectors of both, the item's and the hour's bias. The model looks up a row for each and scores them. Area under
the ROC curve on records that were not trained on, at the same ε and δ, for some thresholds; learning rate and share of
the counts are chosen on validation records, with a key of their own, and the test records are scored once for each of
three seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor, nn

from benchmarks.memory import FIXED_THRESHOLD
from hushgrad import DPSGD, FlatClipping, PoissonSampling, Session, SparseRows, privatize
from hushgrad.randomness import KeyStream

TABLES = ("users.weight", "items.weight")
USERS, ITEMS, HOURS, DIM, HIDDEN = 50_000, 20_000, 24, 8, 6
TRAIN, HELD_OUT, BATCH, PASSES, DELTA, CLIP = 100_000, 20_000, 2_000, 10, 1e-6, 1.0
SHARES = (0.1, 0.3)
EPSILONS = (1.0, 3.0)
RATES, PLAIN_RATES = (4.0, 8.0, 16.0, 32.0), (4.0, 8.0, 16.0)
THRESHOLDS = (2.0, 8.0, 16.0, 24.0)
SEEDS = 3


class Clicks(nn.Module):
    """A factorisation of users and items, with biases."""

    def __init__(self, users: int = USERS, items: int = ITEMS, dim: int = DIM) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(users, dim), nn.Embedding(items, dim)
        self.hours = nn.Embedding(HOURS, 1)
        self.head = nn.Linear(2 * dim + 1, 1)
        with torch.no_grad():
            for table in (self.users, self.items):
                table.weight.mul_(0.1)
            self.hours.weight.zero_()

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logit of a click for ids `[B, 3]` of a user, an item and an hour."""
        user, item = self.users(ids[:, 0]), self.items(ids[:, 1])
        beside = torch.cat([user, item, (user * item).sum(1, keepdim=True)], 1)
        return cast(Tensor, (self.head(beside) + self.hours(ids[:, 2])).squeeze(1))


@dataclass(frozen=True)
class Data:
    """Ids `[N, 3]` and clicks `[N]`, in three parts."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def made_up(seed: int = 0) -> Data:
    """Return the task: the same records for the same seed."""
    source = np.random.default_rng(seed)
    count = TRAIN + 2 * HELD_OUT
    popularity = [1 / np.arange(1, size + 1) for size in (USERS, ITEMS)]
    user, item = (source.choice(len(p), count, p=p / p.sum()) for p in popularity)
    hour = source.integers(0, HOURS, count)
    vectors = [source.standard_normal((size, HIDDEN)) for size in (USERS, ITEMS)]
    bias, of_hour = source.standard_normal(ITEMS), 0.5 * source.standard_normal(HOURS)
    logit = (vectors[0][user] * vectors[1][item]).sum(1) / HIDDEN**0.5 + 1.5 * bias[item] + of_hour[hour] - 1.0
    clicked = source.random(count) < 1 / (1 + np.exp(-logit))
    ids, clicks = torch.tensor(np.stack([user, item, hour], 1)), torch.tensor(clicked, dtype=torch.float32)
    parts = [slice(0, TRAIN), slice(TRAIN, TRAIN + HELD_OUT), slice(TRAIN + HELD_OUT, count)]
    return Data(*((ids[part], clicks[part]) for part in parts))


def area_under_curve(scores: Tensor, clicks: Tensor) -> float:
    """Return the area under the ROC curve, ties counted half."""
    ranks, positive = rankdata(scores.numpy()), clicks.numpy() > 0
    above = ranks[positive].sum() - positive.sum() * (positive.sum() + 1) / 2
    return float(above / (positive.sum() * (~positive).sum()))


@dataclass(frozen=True)
class Setting:
    """A method: `epsilon` None without privacy, `threshold` None with noise on whole tables."""

    epsilon: float | None
    threshold: float | None
    learning_rate: float
    share: float = SHARES[0]


@dataclass(frozen=True)
class Outcome:
    """What training gave: areas under the curve, the rows that a step updated on average, and seconds of a step."""

    validation: float
    test: float
    rows: float
    seconds: float


def mechanism_of(setting: Setting) -> DPSGD:
    """Return the mechanism of a private setting, its noise chosen for ε."""
    chosen = None
    if setting.threshold is not None:
        chosen = SparseRows(tables=TABLES, threshold=setting.threshold, rows_per_record=2, count_share=setting.share)
    plain = DPSGD(
        noise_multiplier=1.0,
        clipping=FlatClipping(CLIP),
        sampling=PoissonSampling(BATCH / TRAIN),
        expected_batch_size=BATCH,
        steps=PASSES * TRAIN // BATCH,
    )
    assert setting.epsilon is not None
    return replace(plain.calibrate(epsilon=setting.epsilon, delta=DELTA), sparse_rows=chosen)


def batches(seed: int) -> Iterator[Tensor]:
    """Yield Poisson draws of the training records: made-up data, so that their randomness need be no secret."""
    source = torch.Generator().manual_seed(seed)
    for _ in range(PASSES * TRAIN // BATCH):
        yield (torch.rand(TRAIN, generator=source) < BATCH / TRAIN).nonzero().flatten()


def trained(setting: Setting, data: Data, seed: int) -> Outcome:
    """Train in a session of its own, or without one."""
    torch.manual_seed(seed)
    model = Clicks()
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.learning_rate)
    session: Session | None = None
    if setting.epsilon is not None:
        session = privatize(model, optimizer, mechanism_of(setting), key=KeyStream.fixed_for_tests(seed))
    rows: list[int] = []

    def note(*_: Any) -> None:
        gradients = [dict(model.named_parameters())[name].grad for name in TABLES]
        rows.append(sum(len(g.indices()[0]) if g.is_sparse else len(g) for g in gradients if g is not None))

    optimizer.register_step_pre_hook(note)
    began = time.process_time()
    ids, clicks = data.train
    for chosen in batches(seed):
        losses = F.binary_cross_entropy_with_logits(model(ids[chosen]), clicks[chosen], reduction="none")
        if session is None:
            optimizer.zero_grad()
            (losses.sum() / BATCH).backward()  # type: ignore[no-untyped-call]
        else:
            session.backward(losses)
        optimizer.step()
    seconds = (time.process_time() - began) / len(rows)
    if session is not None:
        session.close()
    with torch.no_grad():
        scores = [area_under_curve(model(part[0]), part[1]) for part in (data.validation, data.test)]
    return Outcome(scores[0], scores[1], statistics.fmean(rows), seconds)


@dataclass(frozen=True)
class Row:
    """A method with the setting that did best on the validation records: the area under the curve in percent."""

    method: str
    setting: Setting
    auc: float
    deviation: float
    rows: float
    milliseconds: float


def clicks_table() -> list[Row]:
    """Choose a setting for each method, and score it on the test records."""
    data = made_up()
    methods: list[tuple[str, list[Setting]]] = [("not private", [Setting(None, None, rate) for rate in PLAIN_RATES])]
    for epsilon in EPSILONS:
        methods.append(("noise on whole tables", [Setting(epsilon, None, rate) for rate in RATES]))
        for threshold in THRESHOLDS:
            chosen = [Setting(epsilon, threshold, *rest) for rest in itertools.product(RATES, SHARES)]
            methods.append((f"chosen rows, threshold {threshold:g}", chosen))
    table = []
    for method, settings in methods:
        tried = {setting: trained(setting, data, seed=100).validation for setting in settings}
        for setting, score in tried.items():
            print(f"  {setting}: {score:.4f}", flush=True)
        best = max(tried, key=lambda setting: tried[setting])
        found = [trained(best, data, seed) for seed in range(SEEDS)]
        scores = [100 * outcome.test for outcome in found]
        row = Row(
            method,
            best,
            statistics.fmean(scores),
            statistics.stdev(scores),
            statistics.fmean(outcome.rows for outcome in found),
            1e3 * statistics.fmean(outcome.seconds for outcome in found),
        )
        print(row, flush=True)
        table.append(row)
    return table


# Time and memory against rows -----------------------------------------------------------------------------------------

GROWTH_ROWS = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
MOST_DENSE_ROWS = 10_000_000
GROWTH_BATCH, STEPS, WARM = 512, 60, 30


@dataclass(frozen=True)
class Step:
    """A step over a table of so many rows: seconds of the first and, the median, of later ones; MiB above the model.

    Later ones are those from the thirty-first on, of which the probe examines few.
    """

    rows: int
    kind: str
    first_seconds: float
    seconds: float
    first_mib: float
    mib: float
    updated_rows: float


def resident() -> tuple[int, int]:
    """Return the resident memory of this process and its peak since the last reset, in KiB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return int(values["VmRSS"]), int(values["VmHWM"])


def step_of(rows: int, kind: str) -> Step:
    """Measure steps in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Clicks(users=rows, items=1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    chosen = None
    if kind == "chosen rows":  # at a threshold that two to thirty untouched rows in a step pass
        std = (2 / SHARES[0]) ** 0.5
        chosen = SparseRows(
            tables=TABLES, threshold=std * {8: 5.0, 7: 4.5, 6: 4.0}.get(len(str(rows)) - 1, 3.5), rows_per_record=2,
            count_share=SHARES[0],
        )  # fmt: skip
    mechanism = DPSGD(
        noise_multiplier=1.0,
        clipping=FlatClipping(CLIP),
        sampling=PoissonSampling(0.001),
        expected_batch_size=GROWTH_BATCH,
        sparse_rows=chosen,
    )
    session = privatize(model, optimizer, mechanism)
    source = torch.Generator().manual_seed(1)
    updated: list[int] = []

    def note(*_: Any) -> None:
        gradient = model.users.weight.grad
        assert gradient is not None
        updated.append(len(gradient.indices()[0]) if gradient.is_sparse else len(gradient))

    optimizer.register_step_pre_hook(note)
    seconds, peaks = [], []
    for _ in range(STEPS):
        ids = torch.stack(
            [torch.randint(0, size, (GROWTH_BATCH,), generator=source) for size in (rows, 1000, HOURS)], 1
        )
        clicks = torch.randint(0, 2, (GROWTH_BATCH,), generator=source).float()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before, began = resident()[0], time.perf_counter()
        session.backward(F.binary_cross_entropy_with_logits(model(ids), clicks, reduction="none"))
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
        peaks.append((resident()[1] - before) / 1024)
    session.close()
    return Step(
        rows, kind, seconds[0], statistics.median(seconds[WARM:]), peaks[0], statistics.median(peaks[WARM:]),
        statistics.fmean(updated),
    )  # fmt: skip


def growth_table(out: Path | None) -> list[Step]:
    """Measure each size and kind in a process of its own; go on where `out` was left."""
    table = [] if out is None or not out.exists() else [Step(**row) for row in json.loads(out.read_text("utf-8"))]
    for rows in GROWTH_ROWS:
        for kind in ("noise on whole tables", "chosen rows"):
            if kind == "noise on whole tables" and rows > MOST_DENSE_ROWS:
                continue
            if any((step.rows, step.kind) == (rows, kind) for step in table):
                continue
            command = [sys.executable, "-m", "benchmarks.sparse_rows", "step", "--rows", str(rows), "--kind", kind]
            run = subprocess.run(
                command, check=True, capture_output=True, text=True, env={**os.environ, **FIXED_THRESHOLD}
            )
            table.append(Step(**json.loads(run.stdout.splitlines()[-1])))
            print(table[-1], flush=True)
            write(table, out)
    return table


def write(table: Sequence[Any], out: Path | None) -> None:
    """Write the rows of a table to a file, if one is given."""
    if out is not None:
        out.write_text(json.dumps([asdict(row) for row in table], indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, print and write a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["growth", "clicks", "step"])
    parser.add_argument("--out", type=Path, help="JSON file for the rows of the table")
    parser.add_argument("--rows", type=int, default=GROWTH_ROWS[0], help="of the table of a step")
    parser.add_argument("--kind", default="chosen rows", help="of a step")
    given = parser.parse_args()
    if given.what == "step":
        print(json.dumps(asdict(step_of(given.rows, given.kind))))
        return
    torch.set_num_threads(1)
    write(growth_table(given.out) if given.what == "growth" else clicks_table(), given.out)


if __name__ == "__main__":
    main()
