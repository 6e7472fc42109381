"""Which known mistake explains a measured noise level or structure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hushgrad.checks.verification.checks.noise import NoiseReading
from hushgrad.checks.verification.mistakes.clipping import Belief
from hushgrad.checks.verification.verdict import Cause, failed_codes

_ONCE = "add noise of standard deviation σ·C to the sum, once, before the division by B."


@dataclass(frozen=True, slots=True)
class NoiseScaleMistake:
    """A formula for the standard deviation of the noise on the sum; `count` is the number of examples."""

    std: Callable[[Belief, int], float]
    cause: Cause


def _cause(code: str, mistake: str, cure: str = _ONCE) -> Cause:
    return Cause(code, mistake, cure)


_TWICE = _cause("noise-divided-twice", "noise of standard deviation σ·C/B is added to the sum, which is divided again.")

NOISE_SCALE_MISTAKES: tuple[NoiseScaleMistake, ...] = (
    NoiseScaleMistake(
        lambda b, n: b.noise_multiplier * b.max_grad_norm * b.expected_batch_size,
        _cause("noise-after-division", "noise of standard deviation σ·C is added after the division by B."),
    ),
    NoiseScaleMistake(lambda b, n: b.noise_multiplier * b.max_grad_norm / b.expected_batch_size, _TWICE),
    NoiseScaleMistake(lambda b, n: 0.0, _cause("no-noise", "no noise is added.")),
    NoiseScaleMistake(
        lambda b, n: b.noise_multiplier * b.max_grad_norm / max(1, n),
        _cause("noise-by-actual-size", "the noise on the sum is divided by the number of examples drawn."),
    ),
    NoiseScaleMistake(
        lambda b, n: b.noise_multiplier * b.max_grad_norm * b.expected_batch_size / max(1, n),
        _cause(
            "noise-by-actual-size",
            "the noise depends on the number of examples drawn, which is secret: it is divided by that number.",
        ),
    ),
    NoiseScaleMistake(
        lambda b, n: b.noise_multiplier * b.max_grad_norm * n,
        _cause("noise-by-actual-size", "the noise is multiplied by the number of examples drawn."),
    ),
    NoiseScaleMistake(
        lambda b, n: b.noise_multiplier * b.max_grad_norm * math.sqrt(max(1, n)),
        _cause("noise-per-example", "noise is added to every example's gradient, in place of once to the sum."),
    ),
    NoiseScaleMistake(
        lambda b, n: b.noise_multiplier * b.max_grad_norm / math.sqrt(b.expected_batch_size),
        _cause("noise-by-root-of-batch", "the noise on the sum is divided by √B."),
    ),
    NoiseScaleMistake(
        lambda b, n: b.noise_multiplier * b.max_grad_norm * math.sqrt(b.expected_batch_size),
        _cause("noise-by-root-of-batch", "the noise on the sum is multiplied by √B."),
    ),
    NoiseScaleMistake(
        lambda b, n: b.noise_multiplier,
        _cause("noise-without-clip-norm", "the noise has standard deviation σ, without the factor C."),
    ),
    NoiseScaleMistake(
        lambda b, n: b.noise_multiplier / b.expected_batch_size,
        _cause("noise-without-clip-norm", "the noise on the sum has standard deviation σ/B, without the factor C."),
    ),
    NoiseScaleMistake(
        lambda b, n: b.noise_multiplier * b.expected_batch_size,
        _cause("noise-without-clip-norm", "noise of standard deviation σ is added after the division, without C."),
    ),
    NoiseScaleMistake(
        lambda b, n: b.noise_multiplier * b.max_grad_norm**2,
        _cause("noise-clip-norm-squared", "the noise has the factor C twice."),
    ),
    NoiseScaleMistake(
        lambda b, n: (b.noise_multiplier * b.max_grad_norm) ** 2,
        _cause("variance-for-std", "the variance (σ·C)² is used as a standard deviation."),
    ),
    NoiseScaleMistake(
        lambda b, n: math.sqrt(b.noise_multiplier * b.max_grad_norm),
        _cause("std-for-variance", "the standard deviation σ·C is used as a variance."),
    ),
    NoiseScaleMistake(
        lambda b, n: b.noise_multiplier * b.max_grad_norm / math.sqrt(2),
        _cause("half-the-variance", "half the variance: noise shared out (over ranks, say) and not fully added up."),
    ),
    NoiseScaleMistake(
        lambda b, n: b.noise_multiplier * b.max_grad_norm / 2,
        _cause("half-the-noise", "the noise has half of its standard deviation (a mean over two shards, say)."),
    ),
)

_CLOSE = 0.02


def level_causes(belief: Belief, found: dict[int, float], exact: float | None = None) -> Cause | None:
    """Return the mistake whose formula predicts every measured noise level.

    Args:
        belief: σ, C and B.
        found: by number of examples, the standard deviation of the noise on the sum.
        exact: that standard deviation over the claimed one, where it is known better and differs for certain.
    """
    if _fits(lambda b, n: b.noise_multiplier * b.max_grad_norm, belief, found) and exact is None:
        return None
    for level in NOISE_SCALE_MISTAKES:
        if _fits(level.std, belief, found):
            return level.cause
    right = belief.noise_multiplier * belief.max_grad_norm
    ratios = [std / right for std in found.values()]
    if max(ratios) - min(ratios) <= 3 * _CLOSE * max(ratios):
        ratio = sum(ratios) / len(ratios) if exact is None else exact
        return _cause("noise-level", f"the noise has {ratio:.4g} times the standard deviation that is believed.")
    return _cause("noise-depends-on-data", "the level of the noise depends on the batch.")


def _fits(std: Callable[[Belief, int], float], belief: Belief, found: dict[int, float]) -> bool:
    return all(abs(std(belief, count) - value) <= _CLOSE * max(value, 1e-300) for count, value in found.items())


_CENTRED = _cause("noise-not-centred", "the mean of the noise is not 0.", "draw from N(0, (σ·C)²).")

_SHARED = _cause(
    "noise-shared-by-coordinates",
    "coordinates share their noise (a draw that was expanded, tiled or mirrored).",
    "draw one value for every coordinate.",
)

_REPEATED = _cause(
    "noise-repeated",
    "the noise of different steps is the same or related (a fixed seed, noise drawn once, or differences of "
    "neighbouring draws), so it cancels.",
    "draw the noise of every step afresh, from a generator that is never reset.",
)

_SHARED_BY_PARAMETERS = _cause(
    "noise-shared-by-parameters", "parameters share their noise.", "draw for every parameter separately."
)

_LOW_PRECISION = _cause(
    "noise-in-low-precision",
    "the noise is rounded to 16 bits or fewer.",
    "draw and add noise in float32 or more.",
)

_NOT_GAUSSIAN = _cause(
    "noise-not-gaussian",
    "the noise is not Gaussian (another distribution, cut-off tails, or different levels mixed).",
    "draw from N(0, (σ·C)²), without clamping, and charge what is drawn.",
)

_UNEVEN = _cause("noise-uneven", "the noise differs between parameters, parts of them or steps.", _ONCE)


def structure_causes(reading: NoiseReading) -> list[Cause]:
    """Return what the structure of the noise says: missing, repeated, dependent or of another shape."""
    failed = failed_codes(reading.checks.values())
    if reading.ratio < 1e-6:  # no noise has no structure
        return []
    found = _missing(reading)
    if "noise-mean" in failed and abs(reading.mean) > 0.01 and "noise-repeats" not in failed:
        return [*found, _CENTRED]
    if reading.repeats_inside > 2:
        return [*found, _SHARED]
    if "noise-across-steps" in failed:
        found.append(_REPEATED)
    if "noise-across-parameters" in failed:
        found.append(_SHARED_BY_PARAMETERS)
    if found:
        return found
    if {"noise-repeats", "noise-across-coordinates"} & failed:
        return [_SHARED]
    for code, cause in (
        ("noise-low-bits", _LOW_PRECISION),
        ("noise-mean", _CENTRED),
        ("noise-shape", _NOT_GAUSSIAN),
    ):
        if code in failed:
            return [cause]
    is_uneven = "noise-std" not in failed and bool({"noise-blocks", "noise-steps"} & failed)
    return [_UNEVEN] if is_uneven else []


def _missing(reading: NoiseReading) -> list[Cause]:
    """Return whether some parameters, or some steps, have no noise."""
    missing = [name for name, ratio in reading.ratios.items() if ratio < 1e-3 * max(reading.ratios.values())]
    if missing and len(missing) < len(reading.ratios):
        return [
            _cause(
                "noise-missing-for-parameters",
                f"no noise for some parameters: {', '.join(missing)}.",
                "add noise to every trainable parameter, used or not.",
            )
        ]
    silent = sum(ratio < 1e-3 * max(reading.step_ratios) for ratio in reading.step_ratios)
    if silent and silent < len(reading.step_ratios):
        return [
            _cause(
                "noise-missing-in-steps",
                f"{silent} of {len(reading.step_ratios)} steps have no noise.",
                "add noise in every step.",
            )
        ]
    return []
