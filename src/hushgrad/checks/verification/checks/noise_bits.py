"""What the bits of noise show: runs of values that come twice, and values of fewer bits than were drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hushgrad.checks.verification.checks import statistics as st
from hushgrad.checks.verification.checks.independence import Array, Draw
from hushgrad.checks.verification.verdict import Check

MOST_VALUES = 1 << 21


def unrounded(values: Array) -> Array:
    """Return values of 16 bits each at a place, drawn by a fixed seed, among those that are rounded to it.

    Their few levels would show in a test of their shape, which is not that of the noise before it was rounded.
    """
    flat = np.ascontiguousarray(values, dtype=np.float32).ravel()
    words = flat.view(np.uint32) & np.uint32(0x7FFFFFFF)
    half = np.uint32(1 << 15 if not (words & np.uint32(0xFFFF)).any() else 1 << 12)  # bfloat16, float16
    low = np.where(words >= half, words - half, 0).astype(np.uint32).view(np.float32).astype(np.float64)
    high = (words + half).view(np.float32).astype(np.float64)
    spread: Array = np.copysign(low + (high - low) * np.random.default_rng(1).random(len(flat)), flat)
    return spread


def repeats(draws: Sequence[Draw], names: Sequence[str], word_bits: int) -> Check:
    """Runs of values that occur twice, bit for bit. By chance: below 1e-12 for up to 10⁷ values."""
    words = np.concatenate([_words(draw[name], word_bits) for draw in draws for name in names])[:MOST_VALUES]
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


def repeated(values: Array, word_bits: int) -> int:
    """Return how many runs of values occur twice in `values`, bit for bit."""
    return st.repeated_windows(_words(values, word_bits), _window(word_bits))


def _words(values: Array, word_bits: int) -> Array:
    flat = np.ascontiguousarray(values).ravel()
    if word_bits == 64 and flat.dtype == np.float64:
        return flat.view(np.uint64)
    return flat.astype(np.float32).view(np.uint32).astype(np.uint64)


def low_bits(draws: Sequence[Draw], names: Sequence[str], word_bits: int) -> Check:
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
    values = values.astype(np.float32)[: MOST_VALUES // 2]
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
