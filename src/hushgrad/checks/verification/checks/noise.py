"""Is it Gaussian noise of the claimed standard deviation, independent across values, parameters and steps?

A draw is the noise of one step: for each parameter its values. Draws are compared with N(0, std²) per parameter. Shape,
tails and independence are judged relative to the measured std, so that one mistake does not hide another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hushgrad.checks.verification.checks import statistics as st
from hushgrad.checks.verification.verdict import Check, by_code

Array = NDArray[Any]
Draw = Mapping[str, Array]

CHECKS = 9
"""How many checks share the false-alarm probability."""

_CHUNKS = 16
_LEAST_CHUNK = 64
_MOST_CORRELATED = 64
_SHOWN_WITH = 0.999
_MOST_VALUES = 1 << 21
_MOST_SHIFTED = 1 << 17


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
            _shape(everything, ratio, each),
            _across_steps(flat, each),
            _across_parameters(scaled, names, each),
            _across_coordinates(scaled, names, each),
            _repeats(draws, names, word_bits),
            _low_bits(draws, names, word_bits),
        )
    )
    inside = max(_repeated(draws[0][name], word_bits) for name in names)
    mean = float(everything.mean()) / ratio if 0 < ratio < math.inf else 0.0
    return NoiseReading(ratio * claimed_std, ratio, ratios, step_ratios, count, checks, inside, mean)


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
    return f"{st.smallest_std_error(count, alpha):.2%} error with probability {_SHOWN_WITH}"


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
    reach = float(-st.ndtri(alpha / len(found) / 2) - st.ndtri(1 - _SHOWN_WITH))
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
        power=f"a mean of {reach / math.sqrt(min(part[3] for part in found)):.2g} std with probability {_SHOWN_WITH}",
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
    standard = values[:_MOST_VALUES] / ratio
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


def _across_steps(flat: Sequence[Array], alpha: float) -> Check:
    """Every pair of steps, up to 64 steps."""
    rows = np.stack([values[:_MOST_SHIFTED] for values in flat[:_MOST_CORRELATED]])
    return _pairs(
        rows, "noise-across-steps", "the noise of different steps is independent", f"pairs of {len(rows)} steps", alpha
    )


def _across_parameters(scaled: Sequence[Mapping[str, Array]], names: Sequence[str], alpha: float) -> Check:
    """Every pair of parameters, in the first values that both have, over all steps."""
    claim = "the noise of different parameters is independent"
    found: list[tuple[float, float, int]] = []
    chosen = sorted(names, key=lambda name: -len(scaled[0][name]))[:_MOST_CORRELATED]
    joined = {name: np.stack([draw[name][:_MOST_SHIFTED] for draw in scaled[:_MOST_CORRELATED]]) for name in chosen}
    for one, other in itertools.combinations(chosen, 2):
        width = min(joined[one].shape[1], joined[other].shape[1])
        x, y = joined[one][:, :width].ravel(), joined[other][:, :width].ravel()
        if len(x) >= 3:
            r = _correlation(x, y)
            found.append((st.correlation_p(r, len(x)), r, len(x)))
    return _worst_correlation(found, "noise-across-parameters", claim, f"{len(found)} pairs of parameters", alpha)


def _across_coordinates(scaled: Sequence[Mapping[str, Array]], names: Sequence[str], alpha: float) -> Check:
    """Within a parameter: neighbours, halves, and mirrored halves, over all steps."""
    found: list[tuple[float, float, int]] = []
    for name in names:
        rows = np.stack([draw[name][:_MOST_SHIFTED] for draw in scaled[:_MOST_CORRELATED]])
        size = rows.shape[1]
        half = size // 2
        for x, y in (
            *((rows[:, :-lag], rows[:, lag:]) for lag in (1, 2, 3, 4) if size > 2 * lag),
            (rows[:, :half], rows[:, half : 2 * half]),
            (rows[:, :half], rows[:, ::-1][:, :half]),
        ):
            if x.size >= 1000:
                r = _correlation(x.ravel(), y.ravel())
                found.append((st.correlation_p(r, x.size), r, x.size))
    return _worst_correlation(
        found,
        "noise-across-coordinates",
        "the noise of different coordinates is independent",
        f"{len(found)} shifts and halves",
        alpha,
    )


def _correlation(x: Array, y: Array) -> float:
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if 0 < scale < math.inf else 0.0


def _pairs(rows: Array, code: str, claim: str, what: str, alpha: float) -> Check:
    found: list[tuple[float, float, int]] = []
    norms = np.sqrt((rows**2).sum(1))
    gram = rows @ rows.T
    for one, other in itertools.combinations(range(len(rows)), 2):
        scale = norms[one] * norms[other]
        if 0 < scale < math.inf and rows.shape[1] >= 3:
            r = float(gram[one, other] / scale)
            found.append((st.correlation_p(r, rows.shape[1]), r, rows.shape[1]))
    return _worst_correlation(found, code, claim, what, alpha)


def _worst_correlation(
    found: Sequence[tuple[float, float, int]], code: str, claim: str, what: str, alpha: float
) -> Check:
    if not found:
        return Check(code=code, part="noise", claim=claim, measured="nothing to compare", passed=True, sample_size=0)
    worst = min(found)
    p = min(1.0, worst[0] * len(found))
    reach = float(-st.ndtri(alpha / len(found) / 2) - st.ndtri(1 - _SHOWN_WITH))
    return Check(
        code=code,
        part="noise",
        claim=claim,
        measured=f"the largest of {what}: correlation {worst[1]:.3g}",
        passed=p >= alpha,
        sample_size=sum(part[2] for part in found),
        statistic=worst[1],
        p_value=p,
        false_alarm=alpha,
        power=f"a correlation of {reach / math.sqrt(min(part[2] for part in found)):.2g} with probability "
        f"{_SHOWN_WITH}",
    )


def _repeats(draws: Sequence[Draw], names: Sequence[str], word_bits: int) -> Check:
    """Runs of values that occur twice, bit for bit. By chance: below 1e-12 for up to 10⁷ values."""
    words = np.concatenate([_words(draw[name], word_bits) for draw in draws for name in names])[:_MOST_VALUES]
    found = st.repeated_windows(words, _window(word_bits))
    return Check(
        code="noise-repeats",
        part="noise",
        claim="no noise is used twice",
        measured="no value runs occur twice" if found < 3 else f"{found} runs of values occur twice",
        passed=found < 3,
        sample_size=len(words),
        statistic=float(found),
        false_alarm=1e-12,
        power="every repetition of a run of values, bit for bit",
    )


def _window(word_bits: int) -> int:
    return 12 if word_bits == 16 else 4


def _repeated(values: Array, word_bits: int) -> int:
    return st.repeated_windows(_words(values, word_bits), _window(word_bits))


def _words(values: Array, word_bits: int) -> Array:
    flat = np.ascontiguousarray(values).ravel()
    if word_bits == 64 and flat.dtype == np.float64:
        return flat.view(np.uint64)
    return flat.astype(np.float32).view(np.uint32).astype(np.uint64)


def _low_bits(draws: Sequence[Draw], names: Sequence[str], word_bits: int) -> Check:
    """Values that a 16-bit float or a coarse grid would hold exactly.

    Of float32 values one in 4096 ends in twelve bits of 0; that one in 20 does has no chance worth a number.
    """
    claim = "the noise was drawn and added in at least 32 bits"
    if word_bits == 16:
        return Check(
            code="noise-low-bits",
            part="noise",
            claim=claim,
            measured="not visible in 16-bit values",
            passed=True,
            sample_size=0,
        )
    values = np.concatenate([np.ascontiguousarray(draw[name]).ravel() for draw in draws for name in names])
    values = values.astype(np.float32)[: _MOST_VALUES // 2]
    values = values[np.abs(values) > 1e-30]
    if not len(values):
        return Check(code="noise-low-bits", part="noise", claim=claim, measured="no noise", passed=False, sample_size=0)
    found = int((values.view(np.uint32) & 0xFFF == 0).sum())
    ordered = np.sort(values.view(np.uint32))
    distinct = 1 + int((ordered[1:] != ordered[:-1]).sum())
    passed = found < 0.05 * len(values) + 10 and distinct > 0.5 * len(values)
    return Check(
        code="noise-low-bits",
        part="noise",
        claim=claim,
        measured=f"{found / len(values):.2%} of the values end in twelve bits of 0; "
        f"{distinct / len(values):.1%} are distinct",
        passed=passed,
        sample_size=len(values),
        statistic=float(found),
        false_alarm=1e-12,
        power="noise rounded to 16 bits, and noise on a grid of fewer levels than half of the values",
    )
