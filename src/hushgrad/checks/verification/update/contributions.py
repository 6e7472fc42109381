"""What one example adds to an update: its clipped gradient, never more than C, whatever the others do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from hushgrad.checks.verification.checks import statistics as st
from hushgrad.checks.verification.checks.noise import NoiseReading
from hushgrad.checks.verification.mistakes.clipping import SIGNALS, Belief, Signal
from hushgrad.checks.verification.update.paired_update import FunctionUpdate, Output, norm
from hushgrad.checks.verification.update.stimuli import Stimuli, Stimulus
from hushgrad.checks.verification.verdict import Check, by_code

_STEPS_BESIDE = 24
_LEAST_VALUES = 20_000
_MOST_VALUES = 2_000_000


@dataclass(frozen=True, slots=True)
class Contributions:
    """What was measured about contributions, in units of the update (not of the sum).

    `sensitivity` is the largest change by one example; `fits` the signals that predict every measurement; `measured`
    the update without noise for each stimulus; `noise_by_count` the noise of the update by number of examples.
    """

    checks: dict[str, Check]
    sensitivity: float
    fits: tuple[Signal, ...]
    measured: tuple[tuple[Stimulus, Output], ...]
    noise_by_count: dict[int, float]
    tolerance: float
    notes: tuple[str, ...] = ()

    def noise_multiplier(self, noise_std: float) -> float:
        """Return noise over sensitivity; infinity where no example changes anything."""
        least = min([noise_std, *(std for std in self.noise_by_count.values() if std < 0.9 * noise_std)])
        return least / self.sensitivity if self.sensitivity > 0 else math.inf

    @property
    def noise_varies(self) -> bool:
        """Whether the noise depends on how many examples there are, so that no one noise multiplier describes it."""
        levels = list(self.noise_by_count.values())
        return max(levels) > 1.2 * min(levels)


def read_contributions(
    loop: FunctionUpdate, stimuli: Stimuli, belief: Belief, noise: NoiseReading, false_alarm: float
) -> Contributions:
    """Measure contributions with the noise cancelled or averaged out."""
    unit = belief.max_grad_norm / belief.divisor
    error = loop.error_of_difference(noise.std)
    size = sum(value.numel() for value in stimuli.zeros(1).gradients.values())
    formula, fits, measured = _formula(loop, stimuli, belief, error, size, unit)
    sensitivity, tolerance, check = _sensitivity(loop, stimuli, measured, unit, error, size, false_alarm / 3)
    beside, noise_by_count, notes = _noise_beside(loop, stimuli, belief, false_alarm / 3)
    checks = by_code(
        (
            _state(loop, stimuli, unit, error, size),
            check,
            formula,
            _non_finite(loop, stimuli, unit, error, size),
            *beside,
        )
    )
    return Contributions(checks, sensitivity, fits, measured, noise_by_count, tolerance, notes)


def distance(one: Output, other: Output) -> float:
    """Return the norm of the difference of two updates."""
    return norm({name: one[name].double() - other[name].double() for name in one})


def _room(error: float, size: int) -> float:
    """Return how long a vector of measurement errors may be: beyond it with a probability below 1e-9."""
    return error * math.sqrt(size + 9 * math.sqrt(2 * size) + 40)


def _formula(
    loop: FunctionUpdate, stimuli: Stimuli, belief: Belief, error: float, size: int, unit: float
) -> tuple[Check, tuple[Signal, ...], tuple[tuple[Stimulus, Output], ...]]:
    """Compare the update without noise with every known way to make it."""
    measured = tuple(
        (stimulus, loop.difference(stimulus, stimuli.zeros(stimulus.count))) for stimulus in stimuli.for_the_formula()
    )
    room = _room(error, size)

    def off_by(signal: Signal) -> float:
        worst = 0.0
        for stimulus, found in measured:
            expected = signal.make(stimulus.gradients, belief)
            allowed = room + 2e-3 * norm(expected) + 1e-5 * unit
            worst = max(worst, distance(found, expected) / allowed)
        return worst

    right = off_by(SIGNALS[0])
    fits = SIGNALS[:1] if right <= 1 else tuple(signal for signal in SIGNALS[1:] if off_by(signal) <= 1)
    return (
        Check(
            code="sensitivity-formula",
            part="sensitivity",
            claim="without noise the update is Σ g·min(1, C/‖g‖), divided as believed",
            measured="as computed" if right <= 1 else f"{right:.3g} times further from it than rounding allows",
            passed=right <= 1,
            sample_size=len(measured),
            statistic=right,
            false_alarm=1e-9,
            power=f"differences of {(room + 2e-3 * unit) / unit:.2g} times one clipped example",
        ),
        fits,
        measured,
    )


def _sensitivity(
    loop: FunctionUpdate,
    stimuli: Stimuli,
    measured: tuple[tuple[Stimulus, Output], ...],
    unit: float,
    error: float,
    size: int,
    alpha: float,
) -> tuple[float, float, Check]:
    """Take examples away one at a time; the update may change by C over the divisor."""
    changes: list[float] = []
    if loop.is_paired:
        for stimulus in stimuli.for_sensitivity():
            whole = loop.call(stimulus, 12345)
            for place in range(stimulus.count):
                part = loop.call(stimulus.without(place), 12345)
                changes.append(norm({n: whole[n].double() - part[n].double() for n in whole}))
        room = _room(error, size) + 1e-4 * unit
    else:
        # Noise is averaged out. Equal gradients of n examples add up, so that each is known n times better, and only
        # along their common direction.
        for stimulus, found in measured:
            direction = {n: v.sum(0) for n, v in stimulus.gradients.items()}
            length = norm(direction)
            along = sum(
                float((f * d.reshape(f.shape)).sum()) for f, d in zip(found.values(), direction.values(), strict=True)
            )
            if stimulus.what in ("equal huge gradients", "one huge example"):
                changes.append(along / length / stimulus.count)
        room = error * float(-st.ndtri(alpha)) + 1e-3 * unit
    largest = max(changes)
    measured_unit = largest if math.isfinite(largest) else math.inf
    return (
        measured_unit,
        room,
        Check(
            code="sensitivity-bound",
            part="sensitivity",
            claim="adding or removing one example changes the sum by at most C",
            measured=f"by up to {largest / unit:.5g} C, in {len(changes)} removals",
            passed=bool(measured_unit <= unit + room),
            sample_size=len(changes),
            statistic=largest / unit,
            false_alarm=0.0 if loop.is_paired else alpha,
            power=f"every excess above {room / unit:.2g} C on these gradients",
        ),
    )


def _state(loop: FunctionUpdate, stimuli: Stimuli, unit: float, error: float, size: int) -> Check:
    """An update after a batch of huge gradients must not remember them."""
    claim = "an update depends on its own batch only, not on those before"
    zero, aligned = stimuli.zeros(4), stimuli.for_the_formula()[5]
    if loop.is_paired:
        before = loop.call(zero, 12345)
        loop.call(aligned, 99)
        change = distance(loop.call(zero, 12345), before)
        room = _room(error, size) + 1e-4 * unit
    else:
        direction = {n: v.sum(0) for n, v in aligned.gradients.items()}
        length, found = norm(direction), []
        for _ in range(64):
            loop.call(aligned)
            after = loop.call(zero)
            found.append(
                sum(
                    float((f.double() * d.reshape(f.shape)).sum())
                    for f, d in zip(after.values(), direction.values(), strict=True)
                )
                / length
            )
        change, room = abs(float(np.mean(found))), 7 * error + 1e-3 * unit
    return Check(
        code="sensitivity-state",
        part="sensitivity",
        claim=claim,
        measured=f"a batch of huge gradients changes the next update by {change / unit:.3g} C",
        passed=bool(change <= room),
        sample_size=2 if loop.is_paired else 64,
        statistic=change / unit,
        false_alarm=0.0 if loop.is_paired else 1e-9,
        power="gradients that were not cleared",
    )


def _non_finite(loop: FunctionUpdate, stimuli: Stimuli, unit: float, error: float, size: int) -> Check:
    """One example with NaN or infinity must not decide whether the update is finite."""
    claim = "examples with gradients that are not finite contribute at most C each"
    bad, good = stimuli.with_bad_rows()
    try:
        change = norm(loop.difference(bad, good))
    except (ArithmeticError, RuntimeError, ValueError) as failure:
        return Check(
            code="sensitivity-non-finite",
            part="sensitivity",
            claim=claim,
            measured=f"the update was refused ({type(failure).__name__})",
            passed=False,
            sample_size=2,
        )
    return Check(
        code="sensitivity-non-finite",
        part="sensitivity",
        claim=claim,
        measured=f"two of them change the update by {change / unit:.3g} C",
        passed=bool(change <= 2 * unit + _room(error, size)),
        sample_size=2,
        statistic=change / unit,
        false_alarm=0.0 if loop.is_paired else 1e-9,
        power="every update that is not finite",
    )


def _noise_beside(
    loop: FunctionUpdate, stimuli: Stimuli, belief: Belief, alpha: float
) -> tuple[list[Check], dict[int, float], tuple[str, ...]]:
    """Measure the noise for other numbers of examples, beside huge gradients, and on an empty draw."""
    claimed = belief.noise_multiplier * belief.max_grad_norm / belief.divisor
    huge = stimuli.huge_on_top()
    found: dict[str, tuple[float, int]] = {}
    by_count: dict[int, float] = {}
    size = sum(value.numel() for value in huge.gradients.values()) // huge.count
    count = min(48, max(3, round(belief.expected_batch_size)), max(3, _MOST_VALUES // size))
    cases = [(f"{n} examples", stimuli.zeros(n), n) for n in dict.fromkeys((1, count, 2 * count))]
    steps = min(400, max(2 if size > _LEAST_VALUES else _STEPS_BESIDE, math.ceil(_LEAST_VALUES / size)))
    for what, stimulus, rows in cases:
        squares, values = _squares(loop.draw(stimulus, steps))
        found[what], by_count[rows] = (squares / claimed**2, values), math.sqrt(squares / values)
    pairs = [(loop.call(huge), loop.call(huge)) for _ in range(steps)]
    squares, values = _squares([{n: (a[n].double() - b[n].double()) / math.sqrt(2) for n in a} for a, b in pairs])
    found["very different norms"] = (squares / claimed**2, values)
    by_count_huge = math.sqrt(squares / values) if math.isfinite(squares) else math.inf
    notes: list[str] = []
    checks: list[Check] = []
    try:
        drawn = loop.draw(stimuli.zeros(0), steps)
    except (ArithmeticError, RuntimeError, ValueError, IndexError, TypeError, StopIteration) as failure:
        notes.append(f"An empty draw was not tested: the update raises {type(failure).__name__} for it")
    else:
        squares, values = _squares(drawn)
        checks.append(
            _level(
                "noise-empty-draw",
                "an empty draw gets noise like any other",
                {"no examples": (squares / claimed**2, values)},
                alpha / 2,
            )
        )
    checks.append(
        _level("noise-beside", "the noise is the same whatever the examples are, and how many", found, alpha / 2)
    )
    if by_count_huge < 0.9 * min(by_count.values()) or by_count_huge > 1.1 * max(by_count.values()):
        by_count[-1] = by_count_huge
    return checks, by_count, tuple(notes)


def _squares(draws: list[Output]) -> tuple[float, int]:
    joined = torch.cat([value.double().reshape(-1) for draw in draws for value in draw.values()])
    total = float((joined**2).sum())
    return (total if math.isfinite(total) else math.inf), joined.numel()


def _level(code: str, claim: str, found: dict[str, tuple[float, int]], alpha: float) -> Check:
    ps = {what: st.variance_p(squares, values) for what, (squares, values) in found.items()}
    worst = min(ps, key=lambda what: ps[what])
    p = min(1.0, ps[worst] * len(ps))
    squares, values = found[worst]
    return Check(
        code=code,
        part="noise",
        claim=claim,
        measured=f"the worst of {len(found)} cases, {worst}: {math.sqrt(squares / values):.4g} times the claimed std",
        passed=p >= alpha,
        sample_size=sum(part[1] for part in found.values()),
        statistic=squares,
        p_value=p,
        false_alarm=alpha,
        power=f"{st.smallest_std_error(values, alpha / len(found)):.1%} error with probability 0.999",
    )
