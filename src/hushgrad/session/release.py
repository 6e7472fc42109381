"""The end of a logical batch: charge, then noise, then the update goes to the optimizer. In this order.

Terms of parameters alone come last. Their gradients are computed before the charge: one that fails costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from hushgrad.accounting.conditions import NEVER_EXAMINED, VALUES_READ, Condition
from hushgrad.accounting.ledger.monitors import NOISE, SENSITIVITY
from hushgrad.errors import LedgerError, NoiseMismatchError, TakenOnTrustError
from hushgrad.parallel.agreement import conditions_of_all, require_equal_copies, together
from hushgrad.parallel.messages import digest_of
from hushgrad.parallel.replicas import digest, due, is_whole, require_near
from hushgrad.session.loop import Turn
from hushgrad.session.parts import Parts


def release(
    parts: Parts,
    turn: Turn,
    trusted: Callable[[], Iterable[Condition]],
    more_of: Callable[[Exception], dict[str, Any]],
) -> None:
    """Charge one step, then write the noised update to `.grad`.

    Guarantee: an update happens only after its charge is recorded.

    Args:
        parts: those of the session.
        turn: which logical batch it is.
        trusted: says what the run has taken on trust so far.
        more_of: what other processes should know of an error of this one's, besides what it says.
    """
    update, spending = parts.update, parts.spending
    try:
        with together(parts.world, "release", _state_of(parts), more_of=more_of):
            spending.require_step(turn.step)
            _require_established(parts)
            mechanism = parts.current
            terms = parts.regularizers.gradients()
        conditions = _agreed(parts, spending.untold(trusted()))
        spending.trust(conditions)
        spending.all_were_told()
        spending.charge(turn, lambda: spending.note(NOISE, update.monitor.finding_due()))
    except BaseException:
        update.drop()
        raise
    parts.frozen.expect_moved_weights()
    try:
        update.write(mechanism, turn.step)
    except NoiseMismatchError:
        with suppress(LedgerError):  # the alarm is what must be heard
            note_noise(parts)
        raise
    try:
        with together(parts.world, "look of the monitors", {}, more_of=more_of):
            parts.monitors.see(update.number - 1, mechanism, update.parameters, update.written.noise_std)
            update.add_terms(terms)
    except BaseException:
        update.clear()
        with suppress(LedgerError):
            note_monitors(parts)
        raise


def _state_of(parts: Parts) -> dict[str, Any]:
    """Return what all processes must have in common at a step, as JSON; of a single process nothing."""
    if parts.world.is_alone:
        return {}
    return {
        "number of steps": parts.spending.steps,
        "regularizers": parts.regularizers.weights,
        "clip norm": parts.update.norm.current,
    }


def _agreed(parts: Parts, own: Sequence[Condition]) -> list[Condition]:
    """Return the conditions of all processes, whose replicas are the same or become the same.

    Raises `DesyncError` where a replica is another one.
    """
    world, steps = parts.world, parts.spending.steps
    if world.is_alone:
        return list(own)
    compared = due(parts.parameters, steps)
    conditions, is_same = conditions_of_all(world, own, digest_of(digest(compared.values())))
    if not is_same:
        require_near(world, steps, compared, takes_over=is_whole(steps))
    if is_whole(steps):
        require_equal_copies(world, parts.parameters.values())
    return conditions


def _require_established(parts: Parts) -> None:
    """Refuse, under strict, what the probe took on trust; what a later batch may still show is not settled yet.

    Raises:
        TakenOnTrustError: naming the first condition.
    """
    unsettled = (NEVER_EXAMINED, VALUES_READ)
    open_ones = [condition for condition in parts.probe.open_conditions if condition not in unsettled]
    if parts.is_strict and (trusted := [*parts.probe.conditions, *open_ones, *parts.decided_in_forward]):
        raise TakenOnTrustError(
            f"strict=True, and this would be taken on trust: {trusted[0].sentence}",
            where=trusted[0].name,
            cure="Call the model itself, and run backward on engine.per_example(criterion) or on "
            "engine.session.backward(losses) with one loss per example; or leave strict out, and read what is on "
            "trust in engine.guarantee(delta)",
        )


def note_monitors(parts: Parts) -> None:
    """Leave in the ledger what the monitors that were handed in report."""
    for about, report in parts.monitors.reports():
        parts.spending.note(about, report)


def note_noise(parts: Parts) -> None:
    """Leave in the ledger what was measured of the noise so far."""
    parts.spending.note(NOISE, parts.update.monitor.finding())


def note_sensitivity(parts: Parts) -> None:
    """Leave in the ledger what was seen of single examples so far."""
    parts.spending.note(SENSITIVITY, parts.update.sensitivity_monitor.finding(parts.update.number))
