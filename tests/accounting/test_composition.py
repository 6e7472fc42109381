import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushgrad.accounting.composition import normal_form, of_accounts
from hushgrad.accounting.events.balls_in_bins import BallsInBins
from hushgrad.accounting.events.costs import Costs
from hushgrad.accounting.events.cyclic_poisson import CyclicPoisson
from hushgrad.accounting.events.disjoint_pass import DisjointPass
from hushgrad.accounting.events.event import ADD_REMOVE_ONE, Event
from hushgrad.accounting.events.fixed_order import FixedOrder
from hushgrad.accounting.events.fixed_order_buffered import FixedOrderBuffered
from hushgrad.accounting.events.gaussian import Gaussian
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.accounting.events.random_allocation import RandomAllocation
from hushgrad.accounting.events.registry import _KINDS, is_own
from hushgrad.accounting.selection import all_runs
from hushgrad.errors import AccountingError, InvalidArgumentError
from hushgrad.strategies.optimal_buffered import optimal_buffered

pairs = st.lists(
    st.tuples(
        st.one_of(
            st.builds(Gaussian, st.sampled_from([0.5, 1.0, 3.0])),
            st.builds(PoissonSampled, st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from([0.5, 1.0])),
        ),
        st.integers(0, 5),
    ),
    max_size=8,
)


@given(pairs, st.randoms(use_true_random=False))
def test_order_and_grouping_make_no_difference(composition: list, random) -> None:  # type: ignore[no-untyped-def,type-arg]
    """Guarantee: the order of events, and how equal ones are grouped, make no difference."""
    single = [(event, 1) for event, count in composition for _ in range(count)]
    random.shuffle(single)
    assert normal_form(single) == normal_form(composition)


def test_a_pass_costs_one_gaussian_with_its_smallest_noise_multiplier() -> None:
    steps = [(DisjointPass(2.0, 0), 100), (DisjointPass(1.0, 0), 1), (DisjointPass(2.0, 1), 7)]
    form = normal_form(steps)
    assert form.gaussian_precision == pytest.approx(1 / 1.0 + 1 / 4.0)
    assert form.adjacency == "zero-out"
    assert form.sampled == ()


def test_mixed_neighbouring_relations_are_refused() -> None:
    with pytest.raises(AccountingError, match=r"add/remove-one and zero-out"):
        normal_form([(Gaussian(1.0), 1), (DisjointPass(1.0, 0), 1)])


def test_an_event_that_never_ran_does_not_decide_the_relation() -> None:
    assert normal_form([(Gaussian(1.0), 0), (DisjointPass(1.0, 0), 1)]).adjacency == "zero-out"


def test_a_sampling_rate_of_one_is_a_full_batch() -> None:
    assert normal_form([(PoissonSampled(1.0, 2.0), 3)]) == normal_form([(Gaussian(2.0), 3)])


def test_one_step_without_noise_is_remembered() -> None:
    assert normal_form([(PoissonSampled(0.1, 1.0), 9), (PoissonSampled(0.1, 0.0), 1)]).noiseless
    assert not normal_form([(PoissonSampled(0.0, 0.0), 5)]).noiseless


def test_a_noise_multiplier_that_underflows_is_an_infinite_precision() -> None:
    assert math.isinf(normal_form([(Gaussian(1e-200), 1)]).gaussian_precision)


@pytest.mark.parametrize("count", [-1, 1.0, True, "1", None])
def test_a_count_that_is_not_a_whole_number_is_refused(count: object) -> None:
    with pytest.raises(InvalidArgumentError, match="count"):
        normal_form([(Gaussian(1.0), count)])  # type: ignore[list-item]


PASSES = [
    [(DisjointPass(1.0, index), 5) for index in range(3)],
    [(BallsInBins(4, 1.0, index), 4) for index in range(3)],
    [(RandomAllocation(4, 1.0, index, 2), 4) for index in range(3)],
]
BLOCKS = [
    [(CyclicPoisson(0.2, 1.0, 4, 0), 5), (CyclicPoisson(0.2, 1.0, 4, 1), 1)],
    [(FixedOrder(1.0, 4, 0), 5), (FixedOrder(1.0, 4, 1), 1)],
    [(FixedOrderBuffered.of(1.0, 4, optimal_buffered(8, 4), 0), 5)],
]


@pytest.mark.parametrize("account", PASSES + BLOCKS, ids=lambda account: type(account[0][0]).__name__)
def test_passes_and_blocks_of_two_accounts_are_different_ones(account: list[tuple[Event, int]]) -> None:
    """Guarantee: a pass or a block of one account is never taken for one of another account with the same number."""
    both, alone = normal_form(of_accounts([account, account])), normal_form(account)
    assert both.unsampled_precision == pytest.approx(2 * alone.unsampled_precision, rel=1e-12)
    assert sum(count for *_, count in (*both.sampled, *both.allocated)) == 2 * sum(
        count for *_, count in (*alone.sampled, *alone.allocated)
    )
    assert of_accounts([account]) == account


def test_each_kind_that_is_numbered_is_among_those_of_this_test() -> None:
    tested = {type(account[0][0]) for account in PASSES + BLOCKS}
    own = [kind for kind in _KINDS.values() if is_own(kind)]
    numbered = {k for k in own if k.data_pass is not Event.data_pass or k.in_block is not Event.in_block}
    assert numbered == tested


def test_a_kind_that_does_not_say_how_it_is_numbered_is_not_added_to_another_account() -> None:
    class OfPass(Event):
        """Steps of passes, without `later`."""

        type, version, adjacency, noise_multiplier = "of_pass", 1, ADD_REMOVE_ONE, 1.0

        def add_to(self, costs: Costs, count: int) -> None:
            costs.add_release(1.0, 1)

        @classmethod
        def sentence(cls, ran: object, *, alone: bool) -> str:
            return ""

        @property
        def data_pass(self) -> int:
            return 0

    with pytest.raises(AccountingError, match="does not say how it is numbered"):
        of_accounts([[(OfPass(), 1)]])


def test_many_runs_of_steps_that_have_no_number_are_no_longer_than_one() -> None:
    """Only passes and blocks of different runs are different events."""
    assert all_runs([(PoissonSampled(0.01, 1.0), 1000)], 10_000) == [(PoissonSampled(0.01, 1.0), 10_000_000)]
    composition = [(PoissonSampled(0.01, 1.0), 1000), *((RandomAllocation(8, 2.0, index), 8) for index in (0, 1))]
    found = all_runs(composition, 3)
    assert found[0] == (PoissonSampled(0.01, 1.0), 3000)
    assert [event.data_pass for event, _ in found[1:]] == [0, 1, 2, 3, 4, 5]
    assert normal_form(found) == normal_form(of_accounts([composition] * 3))
