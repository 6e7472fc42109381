import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushgrad.accounting.composition import normal_form
from hushgrad.accounting.events.disjoint_pass import DisjointPass
from hushgrad.accounting.events.gaussian import Gaussian
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.errors import AccountingError, InvalidArgumentError

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
