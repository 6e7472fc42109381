"""`verify`: does a private training run do what its ε claims? Sensitivity, noise, sampling, ledger and replay.

Everything is measured on copies, with the sessions and loaders that training itself uses. The user's model, optimizer
and ledger are not touched, and no budget is spent: nothing that is measured leaves this process but the verdict.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hushgrad.arguments import open_unit_interval, positive_number
from hushgrad.checks.verification.checks import statistics as st
from hushgrad.checks.verification.checks.noise import NoiseReading, read_noise
from hushgrad.checks.verification.checks.sampling import SamplingReading, draws_needed, read_sampling
from hushgrad.checks.verification.mistakes.clipping import Belief
from hushgrad.checks.verification.training.copies import (
    Indices,
    OptimizerFactory,
    Rig,
    SessionUpdate,
    Trace,
    TrainingLoop,
    ordinary_loop,
)
from hushgrad.checks.verification.update.batches import find_causes, measure, rows_of
from hushgrad.checks.verification.update.paired_update import arrays, kept_randomness, norm
from hushgrad.checks.verification.update.verify_update import DEFAULT_FALSE_ALARM, DEFAULT_RESOLUTION, steps_needed
from hushgrad.checks.verification.verdict import Cause, Check, Measured, Verdict, failed_codes
from hushgrad.engine import PrivacyEngine
from hushgrad.errors import InvalidArgumentError
from hushgrad.guards.probing.state import State
from hushgrad.mechanism import DPSGD
from hushgrad.randomness import KeyStream
from hushgrad.sampling.loader import PrivateLoader
from hushgrad.sampling.records import PhysicalBatch
from hushgrad.sampling.specs import RandomSampling, TruncatedPoissonSampling

_ROWS = 8
_UPDATES = 12
_MOST_INDICES = 4_000_000
_MOST_STEPS = 400


def small_steps(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return SGD with a learning rate of 0.01."""
    return torch.optim.SGD(parameters, lr=0.01)


def verify(
    model: nn.Module,
    data_loader: Any,
    criterion: Any,
    mechanism: Any,
    *,
    loop: TrainingLoop = ordinary_loop,
    optimizer: OptimizerFactory = small_steps,
    max_physical_batch_size: int | None = None,
    constant_shapes: bool = False,
    report: str | os.PathLike[str] | None = None,
    resolution: float = DEFAULT_RESOLUTION,
    false_alarm: float = DEFAULT_FALSE_ALARM,
) -> Verdict:
    """Measure whether private training of this model is what its ledger would say.

    Args:
        model: in training mode; copied, and left as it is. It may be in an open session.
        data_loader: the ordinary `DataLoader`, or the private one; its items must be `(inputs, target)`.
        criterion: the ordinary loss, as it is given to `engine.per_example`.
        mechanism: the claim: a `PrivacyEngine` after `make_private`, or a `DPSGD`. Of a schedule the first step counts.
        loop: `(model, optimizer, loader, criterion)`, one pass of training; by default the ordinary loop.
        optimizer: makes the optimizer of a copy from its parameters; by default SGD with a learning rate of 0.01.
        max_physical_batch_size, constant_shapes: as in `make_private`; by default those of a private loader.
        report: a path for the verdict as JSON, such as `verdict.json` beside the ledger.
        resolution: the relative error of noise and sampling rate that must be found with probability 0.999, as far as
            400 steps of noise and four million drawn indices can show it; each check states what it shows.
        false_alarm: the most probability with which correct training may fail.

    Guarantee: model, criterion and global random numbers are afterwards what they were.
    Guarantee: what is charged is compared with what was measured, and any mismatch fails the verdict; correct training
    fails with a probability of at most `false_alarm`.

    Raises what making the model private raises, and `InvalidArgumentError` for a bad argument.
    """
    started = time.perf_counter()
    claimed = mechanism.mechanism if isinstance(mechanism, PrivacyEngine) else mechanism
    if not isinstance(claimed, DPSGD):
        raise InvalidArgumentError(
            f"mechanism must be a PrivacyEngine or a DPSGD, got {type(mechanism).__name__}",
            cure="Pass the engine after make_private, or the DPSGD that is charged",
        )
    if claimed.noise_multiplier == 0:
        raise InvalidArgumentError(
            "a noise multiplier of 0 is not private, so there is nothing to verify",
            cure="Pass a mechanism with noise_multiplier > 0",
        )
    alpha = open_unit_interval("false_alarm", false_alarm)
    positive_number("resolution", resolution)
    rig = Rig.of(model, data_loader, criterion, claimed, optimizer, max_physical_batch_size, constant_shapes)
    kept = [State(part, parameters=False) for part in (model, criterion) if isinstance(part, nn.Module)]
    try:
        with kept_randomness():
            verdict = _verdict(rig, loop, claimed, resolution, alpha, started)
    finally:
        for state in kept:
            state.restore()  # what copies share: a class's own counts; the criterion itself
    if report is not None:
        with open(report, "w", encoding="utf-8") as file:
            file.write(verdict.to_text() + "\n")
    return verdict


def _verdict(rig: Rig, loop: TrainingLoop, claimed: DPSGD, resolution: float, alpha: float, started: float) -> Verdict:
    belief = Belief(
        rig.mechanism.noise_multiplier,
        rig.mechanism.clipping.sensitivity,
        rig.mechanism.expected_batch_size,
        rig.mechanism.divisor,
    )
    noise = _noise(rig, belief, resolution, alpha / 4)
    rows = min(_ROWS, rig.reading.count)
    batch = rig.item(range(rows))
    _require_pair(batch, rows)
    contributions = measure(SessionUpdate(rig), batch, list(range(rows)), belief, noise, alpha / 8)
    sampling, sampling_checks = _sampling(rig, resolution, alpha / 4)
    run = rig.train(loop, seed=None, updates=_UPDATES)
    measured_multiplier = noise.std / max(contributions.sensitivity, contributions.unit)
    replay = _replay(rig, loop, contributions.unit)
    checks = (
        *contributions.checks,
        *noise.checks.values(),
        *sampling_checks,
        *_ledger(rig, run, measured_multiplier, noise, sampling, alpha / 8),
        *replay,
    )
    checks = tuple(check for check in checks if check.sample_size)
    causes: list[Cause] = []
    if not all(check.passed for check in checks):
        if not all(check.passed for check in (*contributions.checks, *noise.checks.values())):
            causes += find_causes(contributions, belief, claimed.at(0).noise_multiplier, noise)
        causes += sampling.causes if sampling is not None else ()
        causes += _run_causes(checks)
    return Verdict(
        "private training of this model",
        checks,
        tuple(causes),
        Measured(
            belief.max_grad_norm,
            belief.noise_multiplier * belief.max_grad_norm,
            belief.noise_multiplier,
            claimed.sampling.rate if isinstance(claimed.sampling, RandomSampling) else None,
        ),
        Measured(
            contributions.sensitivity * belief.divisor,
            noise.std * belief.divisor,
            measured_multiplier,
            sampling.rate if sampling is not None else None,
            run.updates,
        ),
        notes=contributions.notes,
        seconds=time.perf_counter() - started,
    )


def _require_pair(batch: Any, rows: int) -> None:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise InvalidArgumentError(
            f"items of the loader must be (inputs, target), got {type(batch).__name__}",
            cure="Give the loader a collate_fn that returns such pairs",
        )
    if rows < 4 or rows_of(batch) != rows:
        raise InvalidArgumentError(
            f"the data set must give at least 4 examples, one to a row, got {rows}",
            cure="Pass a loader over more examples, whose collate_fn makes one row of each",
        )


def _noise(rig: Rig, belief: Belief, resolution: float, alpha: float) -> NoiseReading:
    """Read the noise of empty draws of one session under a secret key: an update of noise alone."""
    running = rig.session(seed=None)
    try:
        first = running.update(None)
        size = sum(value.numel() for value in first.values())
        steps = min(_MOST_STEPS, steps_needed(size, resolution, alpha))
        draws = [first, *(running.update(None) for _ in range(steps - 1))]
    finally:
        running.session.close()
    claimed = belief.noise_multiplier * belief.max_grad_norm / belief.divisor
    bits = min(torch.finfo(value.dtype).bits for value in first.values())
    return read_noise([arrays(draw) for draw in draws], claimed, alpha, bits)


def _sampling(rig: Rig, resolution: float, alpha: float) -> tuple[SamplingReading | None, tuple[Check, ...]]:
    """Read draws of the loader that training would use, over indices in place of records."""
    stream = KeyStream.from_operating_system()
    count, sampling = rig.reading.count, rig.mechanism.sampling
    observer = _Draws()
    if not isinstance(sampling, RandomSampling):
        loader = PrivateLoader(
            Indices(count),
            sampling,
            steps_per_pass=rig.reading.steps,
            stream=stream,
            batch_size=rig.reading.batch_size,
            batches=rig.reading.batches,
            observer=observer,
        )
        for _ in range(3):
            for _item in loader:
                pass
        return None, (_each_once(observer.passes, count),)
    draws = draws_needed(count, sampling.rate, resolution, alpha)
    draws = max(40, min(draws, math.ceil(_MOST_INDICES / max(1.0, count * sampling.rate))))
    loader = PrivateLoader(Indices(count), sampling, steps_per_pass=draws, stream=stream, observer=observer)
    for _item in loader:
        pass
    reading = read_sampling(
        [batch.indices for batch in observer.batches],
        population=count,
        rate=sampling.rate,
        false_alarm=alpha,
        max_batch_size=sampling.max_batch_size if isinstance(sampling, TruncatedPoissonSampling) else None,
    )
    return reading, tuple(reading.checks.values())


class _Draws:
    """Notes what a loader hands out."""

    def __init__(self) -> None:
        self.batches: list[PhysicalBatch] = []

    @property
    def passes(self) -> list[list[int]]:
        """The records of each pass."""
        found: dict[int, list[int]] = {}
        for batch in self.batches:
            found.setdefault(batch.pass_index, []).extend(batch.indices)
        return list(found.values())

    def before_draw(self) -> None:
        """Nothing is required."""

    def begin(self, batch: PhysicalBatch) -> None:
        """Note an item."""
        self.batches.append(batch)

    def lost(self, batch: PhysicalBatch) -> None:
        """Nothing is noted: its records were not handed out."""


def _each_once(passes: Sequence[Sequence[int]], count: int) -> Check:
    twice = sum(len(set(records)) < len(records) for records in passes)
    return Check(
        code="sampling-each-once",
        part="sampling",
        claim="every record takes part at most once in a pass over the data",
        measured=f"{twice} of {len(passes)} passes hold a record twice",
        passed=twice == 0,
        sample_size=sum(map(len, passes)),
        power="every case",
    )


def _ledger(
    rig: Rig,
    run: Trace,
    multiplier: float,
    noise: NoiseReading,
    sampling: SamplingReading | None,
    alpha: float,
) -> tuple[Check, ...]:
    """Compare the ledger of a run with what was measured."""
    view = run.ledger
    reach = float(-st.ndtri(alpha / 2)) / math.sqrt(2 * noise.count)
    events = [event for event, _ in view.events]
    charged = max((event.noise_multiplier for event in events), default=math.inf)
    rates = [rate for rate in (event.charged_rate for event in events) if rate is not None]
    rate_right = True
    said = "no amplification charged"
    if sampling is not None:
        said = f"{min(rates, default=0.0):.6g} charged, {sampling.rate:.6g} measured"
        trials = sampling.checks["sampling-rate"].sample_size
        q = max(rates, default=0.0)
        room = float(-st.ndtri(alpha / 2)) * math.sqrt(max(q * (1 - q), 1e-300) / trials) + 1 / trials
        rate_right = bool(rates) and max(abs(rate - sampling.rate) for rate in rates) <= room
    contract, mechanism = view.contract, rig.mechanism
    same = (
        contract.max_grad_norm == mechanism.clipping.max_grad_norm
        and contract.expected_batch_size == mechanism.expected_batch_size
        and contract.loss_reduction == mechanism.loss_reduction
        and contract.noise_is_secret
    )
    return (
        Check(
            code="ledger-multiplier",
            part="ledger",
            claim="the charged noise multiplier is the noise over the sensitivity that were measured",
            measured=f"{charged:.5g} charged, {multiplier:.5g} measured",
            passed=bool(abs(multiplier / charged - 1) <= 2e-3 + reach),
            sample_size=noise.count,
            statistic=multiplier / charged,
            false_alarm=alpha,
            power=f"{2e-3 + 2 * reach:.2%} difference",
        ),
        Check(
            code="ledger-rate",
            part="ledger",
            claim="the charged sampling rate is the measured one",
            measured=said,
            passed=rate_right,
            sample_size=max(1, run.updates),
            false_alarm=alpha if sampling is not None else 0.0,
            power="what the check of the rate shows",
        ),
        Check(
            code="ledger-charged-before",
            part="ledger",
            claim="every update is charged, and before it is written",
            measured=f"{view.steps} charged, {run.updates} updates"
            + ("" if run.charged_before else ", some uncharged"),
            passed=view.steps == run.updates and run.charged_before,
            sample_size=max(1, run.updates),
            power="every case",
        ),
        Check(
            code="ledger-contract",
            part="ledger",
            claim="the ledger states the clip norm, the divisor and the source of noise that ran",
            measured=f"C = {contract.max_grad_norm:g}, B = {contract.expected_batch_size:g}, "
            f"noise: {contract.noise_source}",
            passed=same,
            sample_size=4,
            power="every difference",
        ),
    )


def _replay(rig: Rig, loop: TrainingLoop, unit: float) -> tuple[Check, ...]:
    """Train twice under one key, the second time with an altered record: only values may differ, not what happens."""
    plain = rig.train(loop, seed=31, updates=_UPDATES)
    # A record that takes part at once, so that whatever depends on it has twelve steps to show.
    place = plain.drawn[0] if plain.drawn else 0
    others = [
        rig.train(loop, seed=31, updates=_UPDATES, dataset=_Neighbour(rig.reading.dataset, place, factor))
        for factor in (1e6, -1e6)
    ]
    same = all(plain.flow == other.flow and plain.ledger.events == other.ledger.events for other in others)
    calls = ", ".join(str(len(run.flow)) for run in (plain, *others))
    change = max(
        norm({n: plain.first[n].double() - other.first[n].double() for n in plain.first if n in other.first})
        for other in others
    )
    room = 2 * unit * (1 + 1e-3) + 1e-5 * norm(plain.first)
    return (
        Check(
            code="replay-steps",
            part="replay",
            claim="under the same keys, another record changes values only, not which steps run, their charges or "
            "rates",
            measured=f"{calls} calls of step, " + ("all alike" if same else "which differ in what they did"),
            passed=same and plain.updates > 0,
            sample_size=max(1, len(plain.flow)),
            power="every difference within twelve updates",
        ),
        Check(
            code="replay-first-update",
            part="replay",
            claim="under the same keys, replacing a record changes the first update by at most 2C",
            measured=f"by {change / unit:.4g} C",
            passed=bool(change <= room),
            sample_size=1,
            statistic=change / unit,
            power="noise or draws that depend on the data",
        ),
    )


class _Neighbour(torch.utils.data.Dataset[Any]):
    """A data set with one record exchanged: its inputs enormous, or the next record where it has no floats."""

    def __init__(self, dataset: Any, place: int, factor: float) -> None:
        self._dataset, self._place, self._factor = dataset, place, factor

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        record = self._dataset[index]
        if index != self._place:
            return record
        leaves = [leaf for leaf in pytree.tree_leaves(record) if isinstance(leaf, Tensor)]
        if not any(leaf.is_floating_point() for leaf in leaves):
            return self._dataset[(index + 1) % len(self._dataset)]
        return pytree.tree_map(
            lambda leaf: self._factor * leaf if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, record
        )


_RUN_CAUSES = {
    "ledger-charged-before": Cause(
        "updates-not-charged",
        "updates ran that the ledger does not hold.",
        "update through the session's optimizer step only.",
    ),
    "replay-steps": Cause(
        "control-flow-depends-on-data",
        "which steps run, or their learning rates, depends on a record (early stopping, skipped batches or schedules "
        "that look at the loss).",
        "let nothing but public numbers decide what runs.",
    ),
}
"""What the failure of a check of a run says, by the code of the check."""


def _run_causes(checks: Sequence[Check]) -> list[Cause]:
    failed = failed_codes(checks)
    return [cause for code, cause in _RUN_CAUSES.items() if code in failed]
