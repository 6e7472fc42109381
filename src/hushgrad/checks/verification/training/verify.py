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

from hushgrad.arguments import open_unit_interval, positive_number
from hushgrad.checks.verification.checks import statistics as st
from hushgrad.checks.verification.checks.clipping import NOT_THE_REFERENCE, read_rule, reads_as_reference
from hushgrad.checks.verification.checks.draws import DRAWS, read_draws
from hushgrad.checks.verification.checks.noise import NoiseReading, read_noise
from hushgrad.checks.verification.checks.sampling import SamplingReading, draws_needed, read_sampling
from hushgrad.checks.verification.mistakes.clipping import Belief
from hushgrad.checks.verification.training.copies import (
    Indices,
    OptimizerFactory,
    Rig,
    SessionLoop,
    Trace,
    TrainingLoop,
    ordinary_loop,
)
from hushgrad.checks.verification.update.batches import GroupReading, find_causes, measure, rows_of
from hushgrad.checks.verification.update.paired_update import arrays, kept_randomness, norm
from hushgrad.checks.verification.update.verify_update import DEFAULT_FALSE_ALARM, DEFAULT_RESOLUTION, steps_needed
from hushgrad.checks.verification.verdict import Cause, Check, Measured, Verdict
from hushgrad.engine import PrivacyEngine
from hushgrad.errors import InvalidArgumentError
from hushgrad.gradients.oracle import clipped_sum_of
from hushgrad.guards.probing.state import State
from hushgrad.mechanism import Mechanism
from hushgrad.randomness import KeyStream
from hushgrad.sampling.loader import PrivateLoader
from hushgrad.sampling.records import PhysicalBatch
from hushgrad.sampling.scheme import SamplingScheme
from hushgrad.torch_internals import tree_leaves, tree_map

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
        mechanism: the claim: a `PrivacyEngine` after `make_private`, a `DPSGD` or another `Mechanism`. Of a schedule
            the first step counts.
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
    if not isinstance(claimed, Mechanism):
        raise InvalidArgumentError(
            f"mechanism must be a PrivacyEngine, a DPSGD or another Mechanism, got {type(mechanism).__name__}"
        )
    if claimed.noise_multiplier == 0:
        raise InvalidArgumentError("a noise multiplier of 0 is not private, so there is nothing to verify")
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


def _verdict(
    rig: Rig, loop: TrainingLoop, claimed: Mechanism, resolution: float, alpha: float, started: float
) -> Verdict:
    belief = Belief(
        rig.mechanism.noise.std(1.0),
        rig.mechanism.clipping.sensitivity,
        rig.mechanism.expected_batch_size,
        rig.mechanism.divisor,
    )
    noise = _noise(rig, belief, resolution, alpha / 4)
    rows = min(_ROWS, rig.reading.count)
    batch = rig.item(range(rows))
    _require_pair(batch, rows)
    session_loop = SessionLoop(rig)
    contributions = measure(session_loop, batch, list(range(rows)), belief, noise, alpha / 8)
    rule = read_rule(rig.mechanism.clipping, rig.names)
    as_reference = _as_reference(rig, session_loop, contributions, noise)
    sampling, sampling_checks = _sampling(rig, resolution, alpha / 4)
    run = rig.train(loop, seed=None, updates=_UPDATES)
    measured_multiplier = noise.std / max(contributions.sensitivity, contributions.unit)
    replay = _replay(rig, loop, contributions.unit)
    checks = (
        *contributions.checks,
        *rule.checks,
        as_reference,
        *noise.checks.values(),
        *sampling_checks,
        *_ledger(rig, run, measured_multiplier, noise, sampling, alpha / 8),
        *replay,
    )
    checks = tuple(check for check in checks if check.sample_size)
    causes: list[Cause] = []
    if not all(check.passed for check in checks):
        if not all(check.passed for check in (*contributions.checks, *noise.checks.values())):
            causes += find_causes(contributions, belief, rig.mechanism.event().noise_multiplier, noise)
        causes += rule.causes
        if not causes and not as_reference.passed:
            causes.append(NOT_THE_REFERENCE)
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
            claimed.sampling.poisson_rate,
        ),
        Measured(
            contributions.sensitivity * belief.divisor,
            noise.std * belief.divisor,
            measured_multiplier,
            sampling.rate if sampling is not None else None,
            run.updates,
        ),
        notes=(*contributions.notes, *_not_tested(claimed.sampling)),
        seconds=time.perf_counter() - started,
    )


def _as_reference(rig: Rig, loop: SessionLoop, contributions: GroupReading, noise: NoiseReading) -> Check:
    """Compare what each example adds alone with the clip rule's reference of its gradient, by ordinary autograd."""
    clipping, divisor = rig.mechanism.clipping, rig.mechanism.divisor
    expected = {
        row: {name: value / divisor for name, value in clipped_sum_of(rig.gradients_of(row), clipping).items()}
        for row in contributions.alone
    }
    size = sum(value.numel() for value in contributions.alone[0].values())
    unit = contributions.unit
    room = 3 * loop.error_of_difference(noise.std) * math.sqrt(size) + (5e-2 if loop.word_bits == 16 else 1e-4) * unit
    return reads_as_reference(contributions.alone, expected, unit, room)


def _require_pair(batch: Any, rows: int) -> None:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise InvalidArgumentError("items of the loader must be (inputs, target)")
    if rows < 4 or rows_of(batch) != rows:
        raise InvalidArgumentError(f"the data set must give at least 4 records, collated one to a row, got {rows}")


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
    count, scheme = rig.reading.count, rig.mechanism.sampling
    if scheme.counts_in == "passes":
        observer = _observed(rig, scheme, rig.reading.steps, passes=3)
        return None, (_each_once(observer.passes, count),)
    rate = scheme.poisson_rate
    inclusion = scheme.inclusion_probability(count)
    needed = DRAWS if rate is None else draws_needed(count, rate, resolution, alpha)
    observer = _observed(rig, scheme, max(40, min(needed, math.ceil(_MOST_INDICES / max(1.0, count * inclusion)))))
    draws = [batch.indices for batch in observer.batches]
    if rate is not None:
        most = scheme.largest_batch
        reading = read_sampling(draws, population=count, rate=rate, false_alarm=alpha, max_batch_size=most)
    else:
        reading = read_draws(
            draws,
            population=count,
            inclusion=inclusion,
            expected_size=scheme.expected_batch_size(count),
            largest_batch=scheme.largest_batch,
            draws_afresh=scheme.draws_afresh,
            false_alarm=alpha,
        )
    return reading, tuple(reading.checks.values())


def _not_tested(scheme: SamplingScheme) -> tuple[str, ...]:
    if scheme.counts_in == "passes" or scheme.draws_afresh:
        return ()
    return (
        "Steps are not drawn afresh, so how often records take part could not be tested: only each draw by itself.",
    )


def _observed(rig: Rig, scheme: SamplingScheme, steps: int, passes: int = 1) -> _Draws:
    """Draw as training would, over indices in place of records."""
    observer = _Draws()
    loader = PrivateLoader(
        Indices(rig.reading.count),
        scheme,
        steps_per_pass=steps,
        stream=KeyStream.from_operating_system(),
        batch_size=rig.mechanism.expected_batch_size,
        batches=rig.reading.batches if scheme.takes_batches else None,
        observer=observer,
    )
    for _ in range(passes):
        for _item in loader:
            pass
    return observer


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

    def begin(self, batch: PhysicalBatch, item: object) -> None:
        """Note an item."""
        self.batches.append(batch)

    def lost(self, batch: PhysicalBatch) -> None:
        """Nothing is noted: its records were not handed out."""


def _each_once(passes: Sequence[Sequence[int]], count: int) -> Check:
    twice = sum(len(set(records)) < len(records) for records in passes)
    return Check(
        "sampling",
        "every record takes part at most once in a pass over the data",
        f"{twice} of {len(passes)} passes hold a record twice",
        twice == 0,
        sum(map(len, passes)),
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
    if sampling is not None and rig.mechanism.sampling.poisson_rate is None:
        allowed = rig.mechanism.sampling.inclusion_probability(rig.reading.count)
        said = f"{min(rates, default=1.0):.6g} charged, at most {allowed:.6g} claimed and measured"
        rate_right = min(rates, default=1.0) >= allowed * (1 - 1e-9)
    elif sampling is not None:
        said = f"{min(rates, default=0.0):.6g} charged, {sampling.rate:.6g} measured"
        trials = sampling.checks["rate"].sample_size
        q = max(rates, default=0.0)
        room = float(-st.ndtri(alpha / 2)) * math.sqrt(max(q * (1 - q), 1e-300) / trials) + 1 / trials
        rate_right = bool(rates) and max(abs(rate - sampling.rate) for rate in rates) <= room
    contract, mechanism = view.contract, rig.mechanism
    same = (
        contract.max_grad_norm == mechanism.clipping.sensitivity
        and contract.clipping == mechanism.clipping.describe()
        and contract.expected_batch_size == mechanism.expected_batch_size
        and contract.loss_reduction == mechanism.loss_reduction
        and contract.noise_is_secret
    )
    return (
        Check(
            "ledger",
            "the charged noise multiplier is the noise over the sensitivity that were measured",
            f"{charged:.5g} charged, {multiplier:.5g} measured",
            bool(abs(multiplier / charged - 1) <= 2e-3 + reach),
            noise.count,
            multiplier / charged,
            None,
            alpha,
            f"{2e-3 + 2 * reach:.2%} difference",
        ),
        Check("ledger", "the charged sampling rate is the measured one", said, rate_right, max(1, run.updates),
              None, None, alpha if sampling is not None else 0.0, "what the check of the rate shows"),
        Check("ledger", "every update is charged, and before it is written",
              f"{view.steps} charged, {run.updates} updates" + ("" if run.charged_before else ", some uncharged"),
              view.steps == run.updates and run.charged_before, max(1, run.updates), power="every case"),
        Check("ledger", "the ledger states the clip rule, the divisor and the source of noise that ran",
              f"{contract.clipping}, C = {contract.max_grad_norm:g}, B = {contract.expected_batch_size:g}, noise: "
              f"{contract.noise_source}",
              same, 5, power="every difference"),
    )  # fmt: skip


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
            "replay",
            "under the same keys, another record changes values only, not which steps run, their charges or rates",
            f"{calls} calls of step, " + ("all alike" if same else "which differ in what they did"),
            same and plain.updates > 0,
            max(1, len(plain.flow)),
            power="every difference within twelve updates",
        ),
        Check(
            "replay",
            "under the same keys, replacing a record changes the first update by at most 2C",
            f"by {change / unit:.4g} C",
            bool(change <= room),
            1,
            change / unit,
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
        leaves = [leaf for leaf in tree_leaves(record) if isinstance(leaf, Tensor)]
        if not any(leaf.is_floating_point() for leaf in leaves):
            return self._dataset[(index + 1) % len(self._dataset)]
        return tree_map(
            lambda leaf: self._factor * leaf if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, record
        )


def _run_causes(checks: Sequence[Check]) -> list[Cause]:
    causes = []
    for check in checks:
        if check.passed:
            continue
        if check.claim.startswith("every update is charged"):
            causes.append(
                Cause(
                    "updates-not-charged",
                    "updates ran that the ledger does not hold.",
                    "update through the session's optimizer step only.",
                )
            )
        if check.part == "replay" and "values only" in check.claim:
            causes.append(
                Cause(
                    "control-flow-depends-on-data",
                    "which steps run, or their learning rates, depends on a record (early stopping, skipped batches or "
                    "schedules that look at the loss).",
                    "let nothing but public numbers decide what runs.",
                )
            )
    return causes
