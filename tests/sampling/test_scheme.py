"""Sampling as values."""

import dataclasses

import pytest

from hushgrad.errors import InvalidArgumentError
from hushgrad.sampling import DisjointBatches, PhysicalBatch, PoissonSampling


@pytest.mark.parametrize("rate", [0, -0.1, 1.0001, float("nan"), float("inf"), True, "0.1", None])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(InvalidArgumentError):
        PoissonSampling(rate)


def test_specs_are_frozen_values():
    assert PoissonSampling(0.5) == PoissonSampling(0.5) != PoissonSampling(0.25)
    assert DisjointBatches() == DisjointBatches()
    with pytest.raises(dataclasses.FrozenInstanceError):
        PoissonSampling(0.5).rate = 1.0


def test_specs_say_what_they_are():
    assert "0.01" in PoissonSampling(0.01).describe()
    assert "without amplification" in DisjointBatches().describe()
    assert (PoissonSampling(0.01).adjacency, DisjointBatches().adjacency) == ("add/remove", "zero-out")


def test_the_repr_of_a_batch_does_not_show_who_was_drawn():
    assert "4321" not in repr(PhysicalBatch((4321,), 1, 1.0, 0, 0, first=True, last=True))
