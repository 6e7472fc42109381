"""The end of a logical batch: charge, then noise, then the update goes to the optimizer. In this order.

Terms of parameters alone come last. Their gradients are computed before the charge: one that fails costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from hushgrad.accounting.conditions import NEVER_EXAMINED, VALUES_READ, Condition
from hushgrad.errors import LedgerError, NoiseMismatchError, TakenOnTrustError
from hushgrad.parallel.agreement import conditions_of_all, require_equal_copies, together
from hushgrad.parallel.replicas import EVERY, SAMPLE, digest
from hushgrad.session.parts import Parts
from hushgrad.torch_sharding import is_distributed

NOISE, SENSITIVITY = "noise monitor", "sensitivity monitor"


def release(parts: Parts, loader_pass: int, trusted: Callable[[], Iterable[Condition]]) -> None:
    """Charge one step, then write the noised update to `.grad`.

    Guarantee: an update happens only after its charge is recorded.

    Args:
        parts: those of the session.
        loader_pass: the number of the pass over the loader.
        trusted: says what the run has taken on trust so far.
    """
    update, spending = parts.update, parts.spending
    try:
        with together(parts.world, "release", _state_of(parts)):
            spending.require_step()
            _require_established(parts)
            mechanism = spending.current()
            terms = parts.regularizers.gradients()
        if spending.steps % EVERY == 0:
            require_equal_copies(parts.world, parts.parameters.values())
        conditions = conditions_of_all(parts.world, spending.untold(trusted()))

        def notes() -> None:
            spending.note(NOISE, update.monitor.finding_due())
            spending.trust(conditions)

        spending.charge(loader_pass, notes)
        if not parts.world.is_first:
            spending.trust(conditions)
        spending.all_were_told()
    except BaseException:
        update.drop()
        raise
    parts.frozen.expect_moved_weights()
    try:
        update.write(mechanism)
    except NoiseMismatchError:
        with suppress(LedgerError):  # the alarm is what must be heard
            note_noise(parts)
        raise
    try:
        with together(parts.world, "look of the monitors", {}):
            parts.monitors.see(update.number - 1, mechanism, update.parameters)
            update.add_terms(terms)
    except BaseException:
        update.clear()
        with suppress(LedgerError):
            note_monitors(parts)
        raise


def _state_of(parts: Parts) -> dict[str, Any]:
    """Return what all processes must have in common at a step, as JSON; of a single process nothing."""
    world, steps = parts.world, parts.spending.steps
    if world.is_alone:
        return {}
    state: dict[str, Any] = {"number of steps": steps, "regularizers": parts.regularizers.weights}
    if steps % EVERY == 0:
        state["values of the weights"] = digest(parts.parameters.values())
    else:  # one of them in each step, so that most differences show soon
        name = list(parts.parameters)[steps % len(parts.parameters)]
        parameter = parts.parameters[name]
        if not is_distributed(parameter):
            state[f"values of {name}"] = digest([parameter.detach().reshape(-1)[:SAMPLE]])
    return state


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
