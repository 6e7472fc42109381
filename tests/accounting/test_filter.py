"""A filter admits what fits into a budget that was fixed first; this is the account's ε, whatever was spent."""

from __future__ import annotations

import math
import random

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.accounting import (
    ACCOUNTANTS,
    DisjointPass,
    FixedSizeSampled,
    Gaussian,
    PoissonSampled,
    TruncatedPoisson,
    epsilon,
    epsilon_bounds,
    guarantee,
)
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.events.renyi_filter import RenyiFilter
from hushgrad.accounting.filter import Filtering, PrivacyFilter
from hushgrad.accounting.neighbours import epsilon_under
from hushgrad.accounting.renyi import ORDERS, epsilon_from_renyi, renyi_budget, renyi_cost
from hushgrad.accounting.risk import membership_advantage
from hushgrad.accounting.selection import all_runs, selection_epsilon
from hushgrad.errors import AccountingError, BudgetExhaustedError, InvalidArgumentError, UnreachableTargetError

STEP = PoissonSampled(0.01, 1.1)
FILTER = PrivacyFilter(3.0, 1e-5)


def chosen(chance: random.Random) -> Event:
    if chance.random() < 0.2:
        return Gaussian(10 ** chance.uniform(1, 2))
    return PoissonSampled(10 ** chance.uniform(-3, -1), 10 ** chance.uniform(-0.1, 0.8))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(-0.5, 1), st.floats(-9, -4))
def test_what_is_admitted_never_passes_the_budget_whatever_is_chosen(seed: int, budget: float, delta: float) -> None:
    """Guarantee: the Rényi divergences of what was admitted never add up to more than the filter's budget, and which
    step is refused follows from the steps and the budget alone."""
    chance = random.Random(seed)
    rule = PrivacyFilter(10**budget, 10**delta).rule(PoissonSampled(0.01, 3.0)).filter_rule
    filtering, taken = Filtering(rule, []), []
    for _ in range(60):
        event, count = chosen(chance), chance.randint(1, 300)
        fits = Filtering(rule, taken).most(event)
        assert filtering.most(event) == fits  # also after it is opened again
        try:
            filtering.admit(event, count, count)
        except BudgetExhaustedError:
            assert count > fits
            continue
        assert count <= fits
        taken.append((event, count))
    spent = math.fsum(count * renyi_cost(event, rule.order) for event, count in taken)
    assert spent <= renyi_budget(rule.order, rule.epsilon, rule.delta)
    assert epsilon_from_renyi(rule.order, spent, rule.delta) <= rule.epsilon
    # The sharp accountants know what these steps would cost if they had been fixed beforehand: not more.
    if taken:
        assert epsilon_bounds(taken, rule.delta).lower <= rule.epsilon


@pytest.mark.parametrize("event", [STEP, Gaussian(2.0), PoissonSampled(0.3, 0.7)], ids=repr)
@pytest.mark.parametrize("order", [2, 8, 64])
def test_divergences_and_the_conversion_are_those_of_dp_accounting(event: Event, order: int) -> None:
    accountant = RdpAccountant(orders=[order])
    inner = GaussianDpEvent(event.noise_multiplier)
    accountant.compose(inner if event.poisson_rate is None else PoissonSampledDpEvent(event.poisson_rate, inner), 10)
    ours = epsilon_from_renyi(order, 10 * renyi_cost(event, order), 1e-5)
    assert ours == pytest.approx(max(0.0, float(accountant.get_epsilon(1e-5))), rel=1e-7)


@pytest.mark.parametrize("order", ORDERS[::12])
def test_the_budget_of_an_order_is_the_inverse_of_its_conversion(order: int) -> None:
    budget = renyi_budget(order, 3.0, 1e-5)
    assert budget == 0 or epsilon_from_renyi(order, budget, 1e-5) == pytest.approx(3.0, rel=1e-7)
    assert epsilon_from_renyi(order, budget, 1e-5) <= 3.0 or budget == 0


def test_epsilon_is_the_whole_budget_from_the_first_step_on_by_every_accountant() -> None:
    rule = FILTER.rule(STEP)
    for accountant in ACCOUNTANTS:
        assert epsilon([(rule, 1)], 1e-5, accountant) == 0
        assert epsilon([(rule, 1), (STEP, 1)], 1e-5, accountant) == pytest.approx(3.0, rel=1e-7)
    assert epsilon([(rule, 1), (STEP, 1)], 1e-5) == epsilon([(rule, 1), (STEP, 50)], 1e-5)
    assert epsilon([(rule, 1), (STEP, 1)], 1e-7) > 3.0
    assert epsilon([(rule, 1), (STEP, 1)], 1e-3) <= 3.0
    held = guarantee([(rule, 1), (STEP, 5)], 1e-5)
    assert held.steps == 5
    assert held.accountant == "Rényi filter"
    assert held.numerical_error is None
    assert "Fully adaptive composition" in str(held)
    assert "contour" not in str(held)


def test_no_figure_but_epsilon_is_read_from_an_account_under_a_filter() -> None:
    account = [(FILTER.rule(STEP), 1), (STEP, 5)]
    for figure in (
        lambda: membership_advantage(account),
        lambda: selection_epsilon(account, 1e-5, 2.0),
        lambda: epsilon_under(account, 1e-5, "replace-one"),
    ):
        with pytest.raises(AccountingError, match="under a filter"):
            figure()
    with pytest.raises(AccountingError, match="two filters"):
        epsilon(all_runs(account, 2), 1e-5)
    with pytest.raises(AccountingError, match="more than its filter admits"):
        epsilon([(FILTER.rule(STEP), 1), (STEP, 10**6)], 1e-5)
    assert epsilon([(FILTER.rule(STEP), 1), (Gaussian(0.0), 1)], 1e-5) == math.inf


@pytest.mark.parametrize(
    "event", [DisjointPass(1.0, 0), TruncatedPoisson(0.01, 1.0, 1000, 40), FixedSizeSampled(1, 9, 1.0)]
)
def test_steps_whose_cost_is_no_sum_of_divergences_are_refused_with_a_cure(event: Event) -> None:
    with pytest.raises(AccountingError) as raised:
        Filtering(FILTER.rule(STEP).filter_rule, []).admit(event, 1, 1)
    assert "Poisson" in raised.value.cure


def test_a_filter_without_room_and_one_out_of_range_are_refused() -> None:
    with pytest.raises(UnreachableTargetError, match="no room"):
        PrivacyFilter(0.01, 1e-9).rule(PoissonSampled(0.5, 0.5))
    for wrong in ((0.0, 1e-5), (1.0, 0.0), (1.0, 1.0), (math.nan, 1e-5)):
        with pytest.raises(InvalidArgumentError):
            PrivacyFilter(*wrong)
    with pytest.raises(InvalidArgumentError):
        RenyiFilter(1.0, 1e-5, 1)
    with pytest.raises(InvalidArgumentError):
        RenyiFilter(1.0, 1e-5, 2, noise_multiplier=1.0)


def test_a_step_without_noise_never_fits_and_one_without_records_always_does() -> None:
    rule = FILTER.rule(STEP).filter_rule
    assert Filtering(rule, []).most(Gaussian(0.0)) == 0
    assert Filtering(rule, []).most(PoissonSampled(0.0, 1.0)) == 10**9
