import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from hushgrad.accounting.events.event import ADD_REMOVE_ONE
from hushgrad.randomness import KeyStream
from hushgrad.releases.reading import sum_over
from hushgrad.releases.released import Released
from hushgrad.releases.releasing import Asked
from hushgrad.releases.tally import Tally
from hushgrad.study.tasks import counted
from hushgrad.study.tasks.counted import (
    COUNTED_BUCKETS,
    EMPTY_KEPT,
    MOST_WORDS,
    THRESHOLD,
    bucket_of,
    counts_of,
    frequent,
)
from hushgrad.study.tasks.words import counted_vocabulary

WORDS = st.lists(st.text(min_size=1, max_size=3), max_size=60)


def asked(buckets, noise_multiplier):
    return Asked.of(Tally(buckets, 32), [0], ADD_REMOVE_ONE, noise_multiplier, None, None)


@given(st.lists(WORDS, max_size=5), WORDS)
def test_one_sentence_more_changes_the_counts_by_at_most_one(few, sentence):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(counted, "COUNTED_BUCKETS", 50)
        query = counts_of(lambda words: words, 32)
        rows = torch.stack([query.row(words) for words in [sentence, *few]])
        change = query.total(rows) - query.total(rows[1:])
    assert math.fsum(value**2 for value in change.tolist()) <= 1


def test_the_change_of_a_sentence_is_close_to_one_and_the_same_in_every_order():
    query = counts_of(lambda words: words, 32)
    sentence = [f"word {number}" for number in range(7)]
    assert float(sum_over(query, [sentence]).norm()) == pytest.approx(1, abs=1e-6)
    others = [["word 1", "x"], ["y", "word 1", "z"], ["word 1"]]
    assert torch.equal(sum_over(query, [sentence, *others]), sum_over(query, [*reversed(others), sentence]))
    assert torch.equal(sum_over(query, [sentence * 3]), sum_over(query, [sentence]))


def test_about_ten_buckets_without_any_word_are_kept():
    """With a fixed key; a false alarm has probability 1e-3."""
    assert COUNTED_BUCKETS * norm.sf(THRESHOLD) == pytest.approx(EMPTY_KEPT, rel=0.01)
    nothing = torch.zeros(COUNTED_BUCKETS, dtype=torch.float64)
    kept = frequent(asked(COUNTED_BUCKETS, 3.0).released(nothing, KeyStream.fixed_for_tests(2)))
    assert binomtest(len(kept), COUNTED_BUCKETS, EMPTY_KEPT / COUNTED_BUCKETS).pvalue > 1e-3


def test_a_bucket_is_kept_with_the_probability_that_its_count_and_the_noise_give():
    """Exact law on 8 buckets: each is kept with probability Φ(count / σ − THRESHOLD), 4,000 draws.

    With fixed keys; a false alarm has probability 1e-3 in all.
    """
    noise, draws = 0.5, 4000
    counts = torch.tensor([0.0, 0.7, 1.4, 2.1, 2.8, 3.5, 4.2, 100.0], dtype=torch.float64)
    kept, release = np.zeros(8, int), asked(8, noise)
    for key in range(draws):
        for bucket in frequent(release.released(counts, KeyStream.fixed_for_tests(key))):
            kept[bucket] += 1
    for found, count in zip(kept.tolist(), counts.tolist(), strict=True):
        assert binomtest(found, draws, float(norm.cdf(count / noise - THRESHOLD))).pvalue > 1e-3 / 8


def test_what_the_kept_buckets_tell_of_one_sentence_stays_below_what_is_charged():
    """Exact: the law of the kept set is a product over buckets, so its hockey-stick divergence is a finite sum.

    A sentence alone in its buckets, the worst case for a list of words, against its absence, both ways.
    """
    noise = 0.6
    for count in (1, 2, 3, 8):
        without = np.full(count, norm.sf(THRESHOLD))
        present = np.full(count, norm.sf(THRESHOLD - 1 / math.sqrt(count) / noise))
        sizes = np.arange(count + 1)
        ways = np.array([math.comb(count, size) for size in sizes])

        def law(chance, sizes=sizes, ways=ways, count=count):
            return ways * chance[0] ** sizes * (1 - chance[0]) ** (count - sizes)

        for first, second in ((law(present), law(without)), (law(without), law(present))):
            for bound in (0.1, 0.5, 1.0, 3.0):
                told = float(np.maximum(first - math.exp(bound) * second, 0).sum())
                mu = 1 / noise
                charged = norm.cdf(mu / 2 - bound / mu) - math.exp(bound) * norm.cdf(-mu / 2 - bound / mu)
                assert told <= charged


def test_the_most_frequent_are_kept_where_too_many_are_frequent():
    noised = torch.zeros(COUNTED_BUCKETS, dtype=torch.float64)
    noised[: MOST_WORDS + 5] = 100.0
    noised[:5] = 50.0
    assert frequent(Released(noised, noised, 1.0, asked(8, 1.0).event)) == tuple(range(5, MOST_WORDS + 5))


def test_words_of_kept_buckets_have_numbers_of_their_own_and_all_others_share_one():
    vocabulary = counted_vocabulary((bucket_of("film"), bucket_of("good")))
    assert vocabulary.size == 4
    assert not vocabulary.outside_the_guarantee
    assert vocabulary.encode(["Good x film y"])[0, :5].tolist() == [3, 1, 2, 1, 0]
