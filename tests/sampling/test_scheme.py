"""Sampling schemes as values that say what they are."""

import dataclasses

import pytest

from hushgrad.errors import InvalidArgumentError
from hushgrad.randomness import KeyStream
from hushgrad.sampling import DisjointBatches, PhysicalBatch, PoissonSampling, TruncatedPoissonSampling
from hushgrad.sampling.scheme import require_scheme


@pytest.mark.parametrize("rate", [0, -0.1, 1.0001, float("nan"), float("inf"), True, "0.1", None])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(InvalidArgumentError):
        PoissonSampling(rate)


def test_schemes_are_frozen_values():
    assert PoissonSampling(0.5) == PoissonSampling(0.5) != PoissonSampling(0.25)
    assert DisjointBatches() == DisjointBatches()
    with pytest.raises(dataclasses.FrozenInstanceError):
        PoissonSampling(0.5).rate = 1.0


SCHEMES = [PoissonSampling(0.01), TruncatedPoissonSampling(0.01, 5_000, 80), DisjointBatches()]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: type(scheme).__name__)
def test_a_scheme_says_of_itself_what_its_event_says(scheme):
    event = scheme.event(1.5, 3)
    assert event.noise_multiplier == 1.5
    assert scheme.adjacency == event.adjacency
    assert scheme.describe() == type(event).sentence([(scheme.event(1.0), 1)], alone=True)


def test_each_scheme_says_what_it_is():
    poisson, truncated, disjoint = SCHEMES
    assert "0.01" in poisson.describe()
    assert "at most 80 of 5000" in truncated.describe()
    assert "without amplification" in disjoint.describe()
    assert [scheme.adjacency for scheme in SCHEMES] == ["add/remove-one", "add/remove-one", "zero-out"]
    assert [scheme.counts_in for scheme in SCHEMES] == ["steps", "steps", "passes"]
    assert [scheme.expected_batch_size(5_000) for scheme in SCHEMES] == [50, 50, None]
    assert [scheme.largest_batch for scheme in SCHEMES] == [None, 80, None]
    assert [scheme.poisson_rate for scheme in SCHEMES] == [0.01, 0.01, None]
    assert [scheme.can_be_declared for scheme in SCHEMES] == [True, True, False]
    assert poisson.inclusion_probability(5_000) == 0.01
    assert 0.00999 < truncated.inclusion_probability(5_000) < 0.01
    assert disjoint.inclusion_probability(5_000) == 1


def test_what_is_no_scheme_is_refused_with_what_to_give():
    assert require_scheme(SCHEMES[0]) is SCHEMES[0]
    with pytest.raises(InvalidArgumentError, match=r"got float\. Give PoissonSampling"):
        require_scheme(0.1)


def test_disjoint_batches_without_batches_are_refused():
    with pytest.raises(InvalidArgumentError, match="needs batches"):
        DisjointBatches().sampler(10, KeyStream.fixed_for_tests(0))


def test_the_repr_of_a_batch_does_not_show_who_was_drawn():
    assert "4321" not in repr(PhysicalBatch((4321,), 1, 1.0, 0, 0, first=True, last=True))


def test_a_scheme_counted_in_something_else_is_refused():
    class InEpochs(PoissonSampling):
        counts_in = "epochs"

    with pytest.raises(InvalidArgumentError, match=r"counts_in: must be one of 'steps', 'passes'"):
        require_scheme(InEpochs(0.1))
