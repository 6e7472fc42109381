"""`verify_update` on a batch: a loop with a model, a loss and an optimizer, of this library or of another one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from hushgrad.checks.verification.checks import statistics as st
from hushgrad.checks.verification.checks.noise import NoiseReading, read_noise
from hushgrad.checks.verification.mistakes.clipping import Belief
from hushgrad.checks.verification.mistakes.groups import find_causes
from hushgrad.checks.verification.update.groups import GroupReading, measure, rows_of, take
from hushgrad.checks.verification.update.paired_update import FunctionUpdate, arrays
from hushgrad.checks.verification.verdict import Check, Measured, Verdict
from hushgrad.errors import InvalidArgumentError

_MOST_ROWS = 8
_MOST_STEPS = 200


def verify_batch_update(
    update: Callable[[Any], Any],
    belief: Belief,
    charged: float,
    batch: Any,
    resolution: float,
    false_alarm: float,
    started: float,
) -> Verdict:
    """Measure an update that takes batches; see `verify_update`."""
    available = rows_of(batch)
    if available < 4:
        raise InvalidArgumentError(f"batch must have at least 4 examples, got {available}", cure="Pass a larger batch")
    rows = list(range(min(available, _MOST_ROWS)))
    loop = FunctionUpdate(update)
    loop.find_pairing(take(batch, rows))
    if not loop.is_paired:
        raise InvalidArgumentError(
            "the update does not repeat itself under the same seed of torch's generator, so one example's part cannot "
            "be told from noise",
            cure="Draw its noise from torch's global generator while it is verified, and keep nothing from call to "
            "call; verify a hushgrad loop with hushgrad.verify",
        )
    noise = _noise(loop, batch, rows, belief, resolution, false_alarm / 2)
    reading = measure(loop, batch, rows, belief, noise, false_alarm / 4)
    effective = noise.std / reading.sensitivity if reading.sensitivity > 0 else math.inf
    reach = float(-st.ndtri(false_alarm / 8)) / math.sqrt(2 * noise.count)
    checks = (
        *reading.checks,
        *noise.checks.values(),
        _charge(charged, effective, noise, reach, false_alarm / 4, reading),
    )
    passed = all(check.passed for check in checks)
    return Verdict(
        "the loop",
        tuple(check for check in checks if check.sample_size),
        () if passed else tuple(find_causes(reading, belief, charged, noise)),
        Measured(belief.max_grad_norm, belief.noise_multiplier * belief.max_grad_norm, charged),
        Measured(reading.sensitivity * belief.divisor, noise.std * belief.divisor, effective),
        notes=reading.notes,
        seconds=time.perf_counter() - started,
    )


def _noise(
    loop: FunctionUpdate, batch: Any, rows: list[int], belief: Belief, resolution: float, false_alarm: float
) -> NoiseReading:
    """Read the noise from differences of pairs of updates for the same rows."""
    part = take(batch, rows)
    size = sum(value.numel() for value in loop.call(part).values())
    needed = st.values_needed_for_std(resolution, false_alarm / 9)
    steps = min(_MOST_STEPS, max(6, math.ceil(needed / size)))
    draws = []
    for _ in range(steps):
        one, other = loop.call(part), loop.call(part)
        draws.append({n: (one[n] - other[n]) / math.sqrt(2) for n in one})
    claimed = belief.noise_multiplier * belief.max_grad_norm / belief.divisor
    return read_noise([arrays(draw) for draw in draws], claimed, false_alarm, loop.word_bits)


def _charge(
    charged: float, effective: float, noise: NoiseReading, reach: float, alpha: float, reading: GroupReading
) -> Check:
    """Noise over the largest contribution seen. Where all are far below C only C itself can be compared."""
    seen = max(reading.sensitivity, reading.unit)
    found = noise.std / seen
    return Check(
        code="ledger-multiplier",
        part="ledger",
        claim="what is charged is the noise over the sensitivity that were measured",
        measured=f"{found:.5g} measured, {charged:.5g} charged; the largest contribution seen is "
        f"{reading.sensitivity / reading.unit:.4g} C",
        passed=abs(found / charged - 1) <= 2e-3 + reach,
        sample_size=noise.count,
        statistic=effective / charged,
        false_alarm=alpha,
        power=f"{2e-3 + 2 * reach:.2%} difference",
    )
