"""A vocabulary counted on private sentences with noise: which words are frequent enough to get a number.

Words are counted by a public hash of their letters, in 2**20 buckets that exist beforehand, and every bucket gets noise
whether or not a word fell into it. So a bucket's presence in the list tells nothing, and the list is an ordinary
Gaussian release under add/remove-one neighbours: no failure probability δ is spent on thresholds, as it is where the
words themselves are published (partition selection: Korolova et al. 2009; Wilson et al. 2020; Gopi et al. 2020).

- A sentence with n different buckets adds 1/√n to each of them, so one sentence more or less changes the counts by at
  most 1 in Euclidean norm, however long it is. Weights are rounded down to multiples of 2**-24, so that sums are
  exact.
- Noise of standard deviation σ is added to all counts, from the library's secret stream.
- The rest is computed from the noisy counts alone: those above a threshold stay, at most MOST_WORDS of them. The
  threshold is the multiple of σ that about EMPTY_KEPT buckets without any word exceed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hushgrad.arguments import non_negative_number
from hushgrad.noise.gaussian import noisy_update
from hushgrad.randomness import Address, KeyStream

COUNTED_BUCKETS = 1 << 20
MOST_WORDS = 1 << 13
EMPTY_KEPT = 10
# The standard normal exceeds this with probability EMPTY_KEPT / COUNTED_BUCKETS.
THRESHOLD = 4.2755
_GRID = 1 << 24
HASH = "blake2b, 8 bytes, person 'hushgrad count', big-endian, modulo buckets"

Counts = NDArray[np.float64]


def bucket_of(word: str) -> int:
    """Return the bucket of a word, 0 … COUNTED_BUCKETS − 1; it depends on its letters alone."""
    digest = hashlib.blake2b(word.encode(), digest_size=8, person=b"hushgrad count").digest()
    return int.from_bytes(digest, "big") % COUNTED_BUCKETS


def counts_of(sentences: Iterable[Sequence[str]]) -> Counts:
    """Return the counts of sentences, each a sequence of words, [COUNTED_BUCKETS]; without noise, so not for release.

    Guarantee: one sentence more or less changes the counts by at most 1 in Euclidean norm, whatever its words are.
    """
    counts = np.zeros(COUNTED_BUCKETS)
    known: dict[str, int] = {}
    for words in sentences:
        for word in words:
            if word not in known:
                known[word] = bucket_of(word)
        buckets = list({known[word] for word in words})
        if buckets:
            counts[buckets] += math.floor(_GRID / math.sqrt(len(buckets))) / _GRID
    return counts


def noisy_counts(counts: Counts, noise_multiplier: float, stream: KeyStream) -> Counts:
    """Return the counts with Gaussian noise of standard deviation `noise_multiplier` on every bucket.

    Args:
        counts: as `counts_of` returns them.
        noise_multiplier: σ; the sensitivity is 1, so it is the noise's standard deviation as well.
        stream: a source that nothing else is drawn from.

    Guarantee: every bucket gets independent noise of standard deviation σ, whether or not a word fell into it.
    """
    std = non_negative_number("noise_multiplier", noise_multiplier)
    noised = noisy_update(torch.from_numpy(counts), noise_std=std, divisor=1.0, stream=stream, address=Address(0))
    values: NDArray[Any] = noised.numpy()
    return values


def frequent(noised: Counts, noise_multiplier: float) -> tuple[int, ...]:
    """Return the buckets whose noisy count is above THRESHOLD · σ, the largest MOST_WORDS of them, in rising order.

    Without noise (σ = 0) these are the buckets that any word fell into.
    """
    above = np.flatnonzero(noised > THRESHOLD * noise_multiplier)
    largest = above[np.argsort(-noised[above], kind="stable")[:MOST_WORDS]]
    return tuple(sorted(largest.tolist()))
