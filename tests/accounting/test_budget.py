import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.accounting import Gaussian, PoissonSampled, epsilon
from hushgrad.accounting.budget import MOST, Budget
from hushgrad.accounting.neighbours import epsilon_of_group
from hushgrad.errors import InvalidArgumentError, UnreachableTargetError


@settings(max_examples=20, deadline=None)
@given(st.floats(-4, -0.5), st.floats(-0.2, 1), st.floats(-9, -4), st.floats(-1, 1))
def test_the_count_fits_and_one_more_does_not(rate: float, noise: float, delta: float, target: float) -> None:
    """Guarantee: the count fits and one more does not (or is beyond `limit`), and it depends on nothing but the budget,
    the plan and the limit."""
    budget, step = Budget(10**target, 10**delta), PoissonSampled(10**rate, 10**noise)
    try:
        most = budget.most(lambda count: [(step, count)])
    except UnreachableTargetError:
        assert epsilon([(step, 1)], budget.delta) > budget.epsilon
        return
    assert epsilon([(step, most)], budget.delta) <= budget.epsilon
    assert most == MOST or epsilon([(step, most + 1)], budget.delta) > budget.epsilon
    assert budget.most(lambda count: [(step, count)]) == most


def test_a_limit_is_an_answer() -> None:
    assert Budget(10.0, 1e-5).most(lambda count: [(Gaussian(50.0), count)], limit=3) == 3
    assert Budget(10.0, 1e-5).most(lambda count: [(Gaussian(50.0), count)], limit=1) == 1


def test_few_evaluations_are_needed() -> None:
    asked = []

    def plan(count: int) -> list:  # type: ignore[type-arg]
        asked.append(count)
        return [(PoissonSampled(0.003, 0.9), count)]

    most = Budget(2.345, 1e-6).most(plan)
    assert most > 1000
    # The first guess asks, too, and costs nothing.
    assert len(set(asked)) < 80


@pytest.mark.parametrize("accountant", ["saddle-point", "pld", "rdp"])
def test_every_accountant_can_count(accountant: str) -> None:
    step = PoissonSampled(0.01, 1.0)
    budget = Budget(1.0, 1e-5, accountant)
    most = budget.most(lambda count: [(step, count)])
    assert epsilon([(step, most)], 1e-5, accountant) <= 1.0 < epsilon([(step, most + 1)], 1e-5, accountant)


def test_the_answer_is_the_same_whatever_was_asked_before() -> None:
    """Guarantee: it depends on nothing but the budget, the plan and the limit."""
    chance = random.Random(1)
    step, budget = PoissonSampled(0.02, 1.1), Budget(1.5, 1e-6)
    first = budget.most(lambda count: [(step, count)])
    for _ in range(5):
        epsilon([(step, chance.randint(1, 2 * first))], 1e-6)
        assert budget.most(lambda count: [(step, count)]) == first


def test_a_budget_of_a_group_ends_where_the_group_does() -> None:
    size = 8
    budget, step = Budget(4.0, 1e-6, group_size=size), PoissonSampled(0.01, 2.0)
    most = budget.most(lambda count: [(step, count)])
    spent = [epsilon_of_group([(step, most + more)], 1e-6, size).upper for more in (0, 1)]
    assert spent[0] <= 4.0 < spent[1]
    assert budget.spent([(step, most)]) == spent[0]
    assert most < Budget(4.0 / size, 1e-6).most(lambda count: [(step, count)])  # so many times one is no bound
    with pytest.raises(InvalidArgumentError):
        Budget(4.0, 1e-6, group_size=0)
