"""`verify`: does a private training run do what its ε claims? Sensitivity, noise, sampling, ledger and replay.

Everything is measured on copies, with the sessions and loaders that training itself uses. The user's model, optimizer
and ledger are not touched, and no budget is spent: nothing that is measured leaves this process but the verdict.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hushgrad.arguments import open_unit_interval
from hushgrad.checks.verification.checks.chosen_rows import row_causes
from hushgrad.checks.verification.checks.clipping import NOT_THE_REFERENCE, read_rule, reads_as_reference
from hushgrad.checks.verification.checks.noise import NoiseReading, read_noise
from hushgrad.checks.verification.checks.noise_grid import OFF_THE_GRID
from hushgrad.checks.verification.mistakes.clipping import Belief
from hushgrad.checks.verification.mistakes.groups import find_causes
from hushgrad.checks.verification.training.chosen_rows import row_checks, with_all_rows
from hushgrad.checks.verification.training.copies import (
    OptimizerFactory,
    RunTrace,
    SessionLoop,
    TrainingLoop,
    TrainingReplica,
    ordinary_loop,
    without_session,
)
from hushgrad.checks.verification.training.draws import draws_of_training, not_tested
from hushgrad.checks.verification.training.noise_units import expected_of
from hushgrad.checks.verification.training.on_grid import grid_checks
from hushgrad.checks.verification.training.run_checks import UPDATES, ledger_checks, replay_checks, run_causes
from hushgrad.checks.verification.training.session_update import (
    WITHOUT_RANDOMNESS,
    SessionUpdate,
    first_step,
    reads_as_drawn,
    rounding,
)
from hushgrad.checks.verification.update.groups import SEED, GroupReading, WholeUsers, measure, rows_of
from hushgrad.checks.verification.update.paired_update import Output, arrays, kept_randomness
from hushgrad.checks.verification.update.verify_update import DEFAULT_FALSE_ALARM, DEFAULT_RESOLUTION, steps_needed
from hushgrad.checks.verification.verdict import Cause, Check, Measured, Verdict
from hushgrad.engine import PrivacyEngine
from hushgrad.errors import InvalidArgumentError
from hushgrad.guards.probing.state import State
from hushgrad.mechanism import Mechanism
from hushgrad.result_file import claim_file, write_file

_ROWS = 8
_NOT_OBSERVED = (
    "NOT VOUCHED FOR: the ledger of this engine holds steps of another library, whose noise was not observed and "
    "cannot be measured here"
)
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
    session_loop: SessionLoop | None = None,
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
        session_loop: in its place, `(session, model, optimizer, loader, criterion)`: one pass of a loop that works with
            the session itself (an adapter for a framework); `criterion.losses(output, target)` gives `[B]`.
        optimizer: makes the optimizer of a copy from its parameters; by default SGD with a learning rate of 0.01.
        max_physical_batch_size, constant_shapes: as in `make_private`; by default those of a private loader.
        report: a path for the verdict as JSON, such as `verdict.json` beside the ledger; a missing folder is made.
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
            f"mechanism must be a PrivacyEngine, a DPSGD or another Mechanism, got {type(mechanism).__name__}",
            cure="Pass the engine after make_private, or the mechanism that is charged",
        )
    if claimed.noise_multiplier == 0:
        raise InvalidArgumentError(
            "a noise multiplier of 0 is not private, so there is nothing to verify",
            cure="Pass a mechanism with noise_multiplier > 0",
        )
    alpha = open_unit_interval("false_alarm", false_alarm)
    open_unit_interval("resolution", resolution, "Pass a relative error, such as 0.01")
    file = None if report is None else claim_file("report", report)
    replica = TrainingReplica.of(
        model, data_loader, criterion, claimed, optimizer, max_physical_batch_size, constant_shapes
    )
    kept = [State(part, parameters=False) for part in (model, criterion) if isinstance(part, nn.Module)]
    try:
        with kept_randomness():
            run = without_session(loop) if session_loop is None else session_loop
            verdict = _verdict(replica, run, claimed, resolution, alpha, started)
            if isinstance(mechanism, PrivacyEngine) and not mechanism.session.noise_is_observed:
                verdict = replace(verdict, notes=(*verdict.notes, _NOT_OBSERVED))
    finally:
        for state in kept:
            state.restore()  # what copies share: a class's own counts; the criterion itself
    if file is not None:
        write_file("report", file, verdict.to_text() + "\n")
    return verdict


def _verdict(
    claimed_replica: TrainingReplica,
    loop: SessionLoop,
    claimed: Mechanism,
    resolution: float,
    alpha: float,
    started: float,
) -> Verdict:
    replica = with_all_rows(claimed_replica)
    belief = Belief(
        replica.mechanism.noise.std(1.0),
        replica.mechanism.sensitivity,
        replica.mechanism.expected_batch_size,
        replica.mechanism.divisor,
        first_step(replica.mechanism),
    )
    noise = _noise(replica, belief, resolution, alpha / 4)
    rows = min(_ROWS, replica.examples)
    batch = replica.item(range(rows))
    _require_pair(batch, rows)
    update = SessionUpdate(replica)
    update.find_randomness()
    contributions = measure(update, batch, list(range(rows)), belief, noise, alpha / 8)
    rule = read_rule(replica.mechanism.clipping, replica.names)
    as_reference = _as_reference(replica, update, contributions, noise)
    as_drawn = (reads_as_drawn(update, batch, contributions, noise),) if update.is_quiet else ()
    of_grid = grid_checks(replica, batch)
    sampling, of_draws = draws_of_training(replica, resolution, alpha / 4)
    run = claimed_replica.train(loop, seed=None, updates=UPDATES)
    certain = contributions.sensitivity - rounding(update, contributions, noise)  # the rest may be rounding
    measured_multiplier = noise.std / max(certain, contributions.unit)
    of_replay = replay_checks(replica, loop, contributions.unit)
    of_rows = _rows(claimed_replica, update, batch, rows, noise, run, alpha / 4)
    checks = (
        *contributions.checks,
        *rule.checks,
        as_reference,
        *as_drawn,
        *noise.checks.values(),
        *of_grid,
        *of_draws,
        *ledger_checks(claimed_replica, run, measured_multiplier, noise, sampling, alpha / 8),
        *of_replay,
        *of_rows,
    )
    checks = tuple(check for check in checks if check.sample_size)
    causes: list[Cause] = []
    if not all(check.passed for check in checks):
        if not all(check.passed for check in (*contributions.checks, *noise.checks.values())):
            causes += find_causes(contributions, belief, replica.mechanism.event().noise_multiplier, noise)
        causes += rule.causes
        if not causes and not as_reference.passed:
            causes.append(NOT_THE_REFERENCE)
        if not all(check.passed for check in of_grid):
            causes.append(OFF_THE_GRID)
        causes += sampling.causes if sampling is not None else ()
        causes += row_causes(of_rows)
        causes += run_causes(checks)
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
        notes=(
            *contributions.notes,
            *((WITHOUT_RANDOMNESS,) if update.is_quiet else ()),
            *not_tested(claimed.sampling),
        ),
        seconds=time.perf_counter() - started,
    )


def _rows(
    replica: TrainingReplica,
    update: SessionUpdate,
    batch: Any,
    rows: int,
    noise: NoiseReading,
    run: RunTrace,
    alpha: float,
) -> tuple[Check, ...]:
    """Look at which rows training chooses, where it chooses any."""
    if replica.mechanism.sparse_rows is None:
        return ()
    charged = max((event.noise_multiplier for event, _ in run.ledger.events), default=math.inf)
    with update.randomness(SEED):
        gradients = {row: replica.gradients_of(row) for row in range(rows)}
        return row_checks(replica, batch, gradients, noise, update.written, charged, alpha)


def _as_reference(
    replica: TrainingReplica, update: SessionUpdate, contributions: GroupReading, noise: NoiseReading
) -> Check:
    """Compare what each example adds alone with the clip rule's reference of its gradient, by ordinary autograd."""
    expected = {}
    for row in contributions.alone:
        with update.randomness(SEED):
            gradients = replica.gradients_of(row)
        expected[row] = expected_of(gradients, replica.mechanism, update.written)
    unit = contributions.unit
    is_coarse = update.word_bits == 16 or update.is_narrow
    room = rounding(update, contributions, noise) + (5e-2 if is_coarse else 1e-4) * unit
    return reads_as_reference(contributions.alone, expected, unit, room)


def _require_pair(batch: Any, rows: int) -> None:
    if isinstance(batch, WholeUsers):
        if rows < 4:
            raise InvalidArgumentError(
                f"the data set must give at least 4 users, got {rows}", cure="Pass a loader over more users"
            )
        batch, rows = batch.item, sum(batch.sizes)
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


def _noise(replica: TrainingReplica, belief: Belief, resolution: float, alpha: float) -> NoiseReading:
    """Read the noise of empty draws of one session under a secret key: an update of noise alone, whitened."""
    running = replica.session(seed=None)
    try:
        first = running.update(None)
        size = sum(value.numel() for value in first.values())
        steps = min(_MOST_STEPS, steps_needed(size, resolution, alpha))
        draws = [first, *(running.update(None) for _ in range(steps - 1))]
    finally:
        running.session.close()
    claimed = belief.noise_multiplier * belief.max_grad_norm / belief.divisor
    bits = min(torch.finfo(value.dtype).bits for value in first.values())
    return read_noise([arrays(draw) for draw in _whitened(draws, replica.mechanism)], claimed, alpha, bits)


def _whitened(draws: list[Output], mechanism: Mechanism) -> list[Output]:
    """Return the noise of steps, in order, as it was before it was correlated between them, in its own dtype."""
    strategy = mechanism.noise.strategy
    if strategy.bands == 1:
        return draws
    memories = {name: strategy.memory() for name in draws[0]}
    return [
        {name: memories[name].whitened(value.double()).to(value.dtype) for name, value in draw.items()}
        for draw in draws
    ]
