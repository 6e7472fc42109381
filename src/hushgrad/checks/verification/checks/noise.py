"""Is it Gaussian noise of the claimed standard deviation, independent across values, parameters and steps?

A draw is the noise of one step: for each parameter its values. Draws are compared with N(0, std²) per parameter. Shape,
tails and independence are judged relative to the measured std, so that one mistake does not hide another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hushgrad.checks.verification.checks import statistics as st
from hushgrad.checks.verification.checks.independence import (
    SHOWN_WITH,
    Array,
    Draw,
    across_coordinates,
    across_parameters,
    across_steps,
)
from hushgrad.checks.verification.checks.noise_bits import MOST_VALUES, low_bits, repeated, repeats, unrounded
from hushgrad.checks.verification.verdict import Check, by_code

CHECKS = 9
"""How many checks share the false-alarm probability."""

_CHUNKS = 16
_LEAST_CHUNK = 64


@dataclass(frozen=True, slots=True)
class NoiseReading:
    """What draws of noise were found to be.

    `std` is the overall standard deviation, `ratios` that of each parameter over the claimed one, `step_ratios` that of
    each step; `checks` are by code, for a diagnosis to read. `repeats_inside` counts runs of values that occur twice in
    one parameter of one step, and `mean` is the mean over the std.
    """

    std: float
    ratio: float
    ratios: dict[str, float]
    step_ratios: tuple[float, ...]
    count: int
    checks: dict[str, Check]
    repeats_inside: int
    mean: float


def read_noise(draws: Sequence[Draw], claimed_std: float, false_alarm: float, word_bits: int = 32) -> NoiseReading:
    """Test draws of noise; `claimed_std` > 0 is what each value should have.

    Args:
        draws: for each step the noise of each parameter, in the dtype in which it came.
        claimed_std: the standard deviation that each value is claimed to have.
        false_alarm: the probability that correct noise fails any of the checks.
        word_bits: 16 where values were rounded to 16 bits on purpose (the parameter's own dtype), else 32 or 64.
    """
    each = false_alarm / CHECKS
    names = list(draws[0])
    scaled = [{name: draw[name].astype(np.float64).ravel() / claimed_std for name in names} for draw in draws]
    flat = [np.concatenate([draw[name] for name in names]) for draw in scaled]
    everything = np.concatenate(flat)
    count = len(everything)
    ratio = math.sqrt(float(np.mean(everything**2))) if np.isfinite(everything).all() else math.inf
    ratios = {name: _rms(np.concatenate([draw[name] for draw in scaled])) for name in names}
    step_ratios = tuple(_rms(values) for values in flat)
    checks = by_code(
        (
            _std(everything, ratio, each),
            _parts_std(scaled, names, each),
            _steps_std(flat, ratio, each),
            _mean(scaled, names, ratio, each),
            _shape(everything if word_bits != 16 else _unrounded(draws, names) / claimed_std, ratio, each),
            across_steps(flat, each),
            across_parameters(scaled, names, each),
            across_coordinates(scaled, names, each),
            repeats(draws, names, word_bits),
            low_bits(draws, names, word_bits),
        )
    )
    inside = max(repeated(draws[0][name], word_bits) for name in names)
    mean = float(everything.mean()) / ratio if 0 < ratio < math.inf else 0.0
    return NoiseReading(ratio * claimed_std, ratio, ratios, step_ratios, count, checks, inside, mean)


def _unrounded(draws: Sequence[Draw], names: Sequence[str]) -> Array:
    return np.concatenate([unrounded(draw[name]) for draw in draws for name in names])


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2))) if len(values) else 1.0


def _std(values: Array, ratio: float, alpha: float) -> Check:
    total = float((values**2).sum())
    p = st.variance_p(total, len(values))
    return Check(
        code="noise-std",
        part="noise",
        claim="the standard deviation of the noise is the claimed one",
        measured=f"{ratio:.5g} times the claimed one",
        passed=p >= alpha,
        sample_size=len(values),
        statistic=total,
        p_value=p,
        false_alarm=alpha,
        power=_std_power(len(values), alpha),
    )


def _std_power(count: int, alpha: float) -> str:
    return f"{st.smallest_std_error(count, alpha):.2%} error with probability {SHOWN_WITH}"


def _parts_std(scaled: Sequence[Mapping[str, Array]], names: Sequence[str], alpha: float) -> Check:
    """Each parameter, and consecutive parts of each, over all steps."""
    found: list[tuple[float, str, float, int]] = []
    for name in names:
        rows = np.stack([draw[name] for draw in scaled])
        size = rows.shape[1]
        parts = min(_CHUNKS, max(1, size * len(rows) // _LEAST_CHUNK), max(1, size))
        pieces = [rows] if parts == 1 else [rows, *np.array_split(rows, parts, axis=1)]
        for piece in pieces:
            if piece.size:
                found.append(
                    (st.variance_p(float((piece**2).sum()), piece.size), name, _rms(piece.ravel()), piece.size)
                )
    worst = min(found)
    p = min(1.0, worst[0] * len(found))
    return Check(
        code="noise-blocks",
        part="noise",
        claim="every parameter, and every part of it, gets noise of the claimed standard deviation",
        measured=f"the worst of {len(found)} parts, in {worst[1]}: {worst[2]:.4g} times the claimed one",
        passed=p >= alpha,
        sample_size=sum(rows[3] for rows in found),
        statistic=worst[0],
        p_value=p,
        false_alarm=alpha,
        power=f"in the smallest part {_std_power(min(part[3] for part in found), alpha / len(found))}",
    )


def _steps_std(flat: Sequence[Array], ratio: float, alpha: float) -> Check:
    """Each step against the claimed std: noise that decays, or is left out in some steps."""
    ps = [st.variance_p(float((values**2).sum()), len(values)) for values in flat]
    place = int(np.argmin(ps))
    p = min(1.0, ps[place] * len(ps))
    return Check(
        code="noise-steps",
        part="noise",
        claim="every step gets noise of the claimed standard deviation",
        measured=f"the worst of {len(flat)} steps: {_rms(flat[place]):.4g} times the claimed one",
        passed=p >= alpha,
        sample_size=sum(map(len, flat)),
        statistic=ps[place],
        p_value=p,
        false_alarm=alpha,
        power=f"in one step {_std_power(len(flat[0]), alpha / len(flat))}",
    )


def _mean(scaled: Sequence[Mapping[str, Array]], names: Sequence[str], ratio: float, alpha: float) -> Check:
    scale = ratio if 0 < ratio < math.inf else 1.0
    found = []
    for name in names:
        values = np.concatenate([draw[name] for draw in scaled]) / scale
        found.append((st.mean_p(float(values.sum()), len(values)), name, float(values.mean()), len(values)))
    worst = min(found)
    p = min(1.0, worst[0] * len(found))
    reach = float(-st.ndtri(alpha / len(found) / 2) - st.ndtri(1 - SHOWN_WITH))
    return Check(
        code="noise-mean",
        part="noise",
        claim="the mean of the noise is 0 in every parameter",
        measured=f"the worst of {len(found)} parameters, {worst[1]}: {worst[2]:.2g} standard deviations",
        passed=p >= alpha,
        sample_size=sum(part[3] for part in found),
        statistic=worst[0],
        p_value=p,
        false_alarm=alpha,
        power=f"a mean of {reach / math.sqrt(min(part[3] for part in found)):.2g} std with probability {SHOWN_WITH}",
    )


def _shape(values: Array, ratio: float, alpha: float) -> Check:
    """Bins of equal probability, and the counts beyond 3 and 4 standard deviations."""
    if not 0 < ratio < math.inf:
        return Check(
            code="noise-shape",
            part="noise",
            claim="the noise has the shape of a Gaussian, tails included",
            measured="no noise",
            passed=False,
            sample_size=len(values),
            power="",
        )
    standard = values[:MOST_VALUES] / ratio
    bins = int(min(64, max(4, len(values) // 50)))
    statistic, p_bins = st.shape_p(standard, bins)
    ps, beyond = [p_bins], []
    for limit in (3.0, 4.0):
        found = int((np.abs(standard) > limit).sum())
        ps.append(st.count_p(found, len(standard), float(2 * stats.norm.sf(limit))))
        beyond.append(f"{found} beyond {limit:g} std ({2 * stats.norm.sf(limit) * len(standard):.0f} expected)")
    p = min(1.0, min(ps) * len(ps))
    return Check(
        code="noise-shape",
        part="noise",
        claim="the noise has the shape of a Gaussian, tails included",
        measured=f"χ² over {bins} bins {statistic:.1f}; {', '.join(beyond)}",
        passed=p >= alpha,
        sample_size=len(values),
        statistic=statistic,
        p_value=p,
        false_alarm=alpha,
        power="another distribution, rounding to few levels, tails cut off at 3 std, or at 4 std from 500,000 values "
        "on",
    )
