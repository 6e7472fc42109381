"""A vocabulary counted on private sentences with noise: which words are frequent enough to get a number.

Words are counted by a public hash of their letters, in 2**20 buckets that exist beforehand, and every bucket gets noise
whether or not a word fell into it. So a bucket's presence in the list tells nothing, and the list is an ordinary
release (`releases.Tally`): no failure probability δ is spent on thresholds, as it is where the words themselves are
published (partition selection: Korolova et al. 2009; Wilson et al. 2020; Gopi et al. 2020).

What is kept is computed from the noisy counts alone: those above a threshold, at most MOST_WORDS of them. The threshold
is the multiple of the noise's standard deviation that about EMPTY_KEPT buckets without any word exceed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hushgrad.releases.released import Released
from hushgrad.releases.tally import Tally

COUNTED_BUCKETS = 1 << 20
MOST_WORDS = 1 << 13
EMPTY_KEPT = 10
# The standard normal exceeds this with probability EMPTY_KEPT / COUNTED_BUCKETS.
THRESHOLD = 4.2755
HASH = "blake2b, 8 bytes, person 'hushgrad count', big-endian, modulo buckets"


def bucket_of(word: str) -> int:
    """Return the bucket of a word, 0 … COUNTED_BUCKETS − 1; it depends on its letters alone."""
    digest = hashlib.blake2b(word.encode(), digest_size=8, person=b"hushgrad count").digest()
    return int.from_bytes(digest, "big") % COUNTED_BUCKETS


def counts_of(words_of: Callable[[Any], Sequence[str]], at_most: int) -> Tally:
    """Return the question how often each bucket occurs in sentences, of which `words_of` gives the words."""
    return Tally(COUNTED_BUCKETS, at_most, of=lambda sentence: [bucket_of(word) for word in words_of(sentence)])


def frequent(found: Released) -> tuple[int, ...]:
    """Return the buckets whose noisy count is above THRESHOLD · σ, the largest MOST_WORDS of them, in rising order."""
    noised = found.noised.numpy()
    above = np.flatnonzero(noised > THRESHOLD * found.noise_std)
    largest = above[np.argsort(-noised[above], kind="stable")[:MOST_WORDS]]
    return tuple(sorted(largest.tolist()))
