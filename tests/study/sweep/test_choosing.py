"""What runs cost together, and what is said where nothing is known."""

import math

import pytest

from hushgrad.accounting import epsilon
from hushgrad.accounting.events.disjoint_pass import DisjointPass
from hushgrad.accounting.events.fixed_size import FixedSizeSampled
from hushgrad.accounting.events.gaussian import Gaussian
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.accounting.events.random_allocation import RandomAllocation
from hushgrad.accounting.selection import selection_epsilon
from hushgrad.study.sweep.choosing import all_together, drawn_number

OWN_BATCHES = [(DisjointPass(2.0, index), 5) for index in range(2)]
BALLS = [(RandomAllocation(5, 2.0, index), 5) for index in range(2)]


@pytest.mark.parametrize("account", [OWN_BATCHES, BALLS])
def test_three_runs_cost_more_than_two_however_their_passes_are_numbered(account):
    """Passes that have the same number in two ledgers were taken for one before."""
    one, two, three = (all_together([account] * runs, 1e-5) for runs in (1, 2, 3))
    assert one == epsilon(account, 1e-5)
    assert one * 1.2 < two < three * 0.9


def test_own_batches_of_two_runs_cost_what_four_passes_do():
    assert all_together([OWN_BATCHES] * 2, 1e-5) == pytest.approx(epsilon([(Gaussian(2.0), 4)], 1e-5), rel=1e-9)


def test_runs_under_different_relations_have_no_epsilon_together():
    assert all_together([[(PoissonSampled(0.1, 1.0), 5)], [(FixedSizeSampled(10, 100, 1.0), 5)]], 1e-5) == math.inf


def test_an_honest_choice_among_runs_costs_what_is_known_or_infinity():
    poisson = [(PoissonSampled(0.1, 1.0), 50)]
    assert drawn_number(poisson, 1e-5, 3) == selection_epsilon(poisson, 1e-5, 3)
    assert drawn_number(BALLS, 1e-5, 3) == drawn_number([(Gaussian(2.0), 2)], 1e-5, 3) < math.inf
    assert drawn_number([(FixedSizeSampled(10, 100, 1.0), 5)], 1e-5, 3) == math.inf
