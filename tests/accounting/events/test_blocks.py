"""Events whose cost follows from the length of an unbroken run of steps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushgrad.accounting import CyclicPoisson, Event, FixedOrder, FixedOrderBuffered, Gaussian, PoissonSampled
from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.composition import costs_no_more, next_block, next_pass, normal_form
from hushgrad.accounting.filter import PrivacyFilter
from hushgrad.accounting.guarantee import guarantee
from hushgrad.accounting.ledger.contract import OBSERVED, OPERATING_SYSTEM, Contract
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.accounting.neighbours import epsilon_under
from hushgrad.errors import AccountingError, InvalidArgumentError
from hushgrad.strategies.buffered import BufferedStrategy

BUFFERED = BufferedStrategy((0.98, 0.6), (0.2, 0.3))


def cyclic(block: int = 0) -> CyclicPoisson:
    return CyclicPoisson(0.16, 1.2, 16, block)


@pytest.mark.parametrize(("steps", "turns"), [(1, 1), (15, 1), (16, 1), (17, 2), (125, 8), (128, 8), (129, 9)])
def test_a_block_costs_the_turns_of_the_group_that_has_most(steps: int, turns: int) -> None:
    form = normal_form([(cyclic(), steps)])
    assert form == normal_form([(PoissonSampled(0.16, 1.2), turns)])
    assert epsilon([(cyclic(), steps)], 1e-5) == epsilon([(PoissonSampled(0.16, 1.2), turns)], 1e-5)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 20))
def test_no_record_takes_part_more_often_than_is_charged_whatever_its_groups(lengths: list[int], cycle: int) -> None:
    """Each block may draw its groups anew: the record that is unlucky in each is in group 0 of all of them."""
    events = [(CyclicPoisson(0.01, 1.0, cycle, block), length) for block, length in enumerate(lengths)]
    (charged,) = normal_form(events).sampled
    most = sum(len([step for step in range(length) if step % cycle == 0]) for length in lengths)
    assert (
        charged[2]
        == most
        == max(
            sum(sum(step % cycle == group for step in range(length)) for length in lengths) for group in range(cycle)
        )
    )


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_new_block_never_costs_less_than_going_on(first: int, second: int) -> None:
    for event in (cyclic, lambda block: FixedOrder(1.0, 9, block)):
        broken = normal_form([(event(0), first), (event(1), second)])
        whole = normal_form([(event(0), first + second)])
        assert costs_no_more([(event(0), first + second)], [(event(0), first), (event(1), second)])
        assert sum(part[2] for part in broken.sampled) >= sum(part[2] for part in whole.sampled)
        assert broken.gaussian_precision >= whole.gaussian_precision


@pytest.mark.parametrize(("steps", "times"), [(1, 1), (9, 1), (10, 2), (27, 3)])
def test_fixed_order_costs_one_release_for_each_pass_begun(steps: int, times: int) -> None:
    assert normal_form([(FixedOrder(2.0, 9, 0), steps)]) == normal_form(
        [(FixedOrder(2.0, 9, block), 1) for block in range(times)]
    )
    assert normal_form([(FixedOrder(2.0, 9, 0), steps)]).gaussian_precision == pytest.approx(times / 4)


@pytest.mark.parametrize("steps", [1, 50, 100, 101, 1000])
def test_a_buffered_block_costs_one_release_of_its_sensitivity(steps: int) -> None:
    event = FixedOrderBuffered.of(3.0, 100, BUFFERED, 0)
    expected = BUFFERED.sensitivity_squared(steps, 100) / 9
    assert normal_form([(event, steps)]).gaussian_precision == pytest.approx(expected, rel=1e-12)
    sigma = 3.0 / math.sqrt(BUFFERED.sensitivity_squared(steps, 100))
    assert epsilon([(event, steps)], 1e-6) == pytest.approx(epsilon([(Gaussian(sigma), 1)], 1e-6), rel=1e-9)


def test_the_cost_of_a_prefix_never_falls() -> None:
    for event in (cyclic(), FixedOrder(1.0, 7, 0), FixedOrderBuffered.of(3.0, 7, BUFFERED, 0)):
        found = [epsilon([(event, steps)], 1e-5) for steps in range(1, 30)]
        assert found == sorted(found)


def test_a_rate_of_one_is_charged_without_sampling() -> None:
    assert not normal_form([(CyclicPoisson(1.0, 2.0, 4, 0), 9)]).sampled
    assert normal_form([(CyclicPoisson(1.0, 2.0, 4, 0), 9)]).gaussian_precision == pytest.approx(3 / 4)
    assert normal_form([(CyclicPoisson(0.0, 2.0, 4, 0), 9)]).empty


@pytest.mark.parametrize("event", [cyclic(), FixedOrder(1.0, 7, 0), FixedOrderBuffered.of(3.0, 7, BUFFERED, 0)])
def test_a_filter_which_adds_up_step_by_step_refuses_them(event: Event) -> None:
    with pytest.raises(AccountingError):
        PrivacyFilter(3.0, 1e-5).rule(event)


def test_groups_of_records_are_refused_under_cyclic_sampling_and_squared_in_fixed_order() -> None:
    with pytest.raises(AccountingError, match="share rows"):
        epsilon_under([(cyclic(), 40)], 1e-5, "add/remove-one", group_size=2)
    one = epsilon_under([(FixedOrder(2.0, 9, 0), 9)], 1e-5, "zero-out", group_size=2)
    assert one.upper == pytest.approx(epsilon([(Gaussian(1.0), 1)], 1e-5), rel=1e-6)


def test_the_guarantee_says_how_records_were_drawn() -> None:
    said = guarantee([(cyclic(), 40), (cyclic(1), 3)], 1e-5).sampling
    assert "one of 16 groups" in said
    assert "2 blocks" in said
    assert "same order" in guarantee([(FixedOrder(2.0, 9, 0), 9)], 1e-5).sampling


def test_passes_and_blocks_are_numbered_on() -> None:
    assert next_block([]) == next_pass([]) == 0
    assert next_block([(cyclic(3), 2), (cyclic(1), 2)]) == 4


def test_a_lease_holds_steps_of_one_block() -> None:
    ledger = Ledger(contract=Contract(OBSERVED, OPERATING_SYSTEM))
    for _ in range(20):
        ledger.charge(cyclic(), lease=8)
    ledger.charge(cyclic(1))
    assert ledger.events() == [(cyclic(), 20), (cyclic(1), 1)]


def test_a_block_that_has_ended_is_never_continued(tmp_path: Path) -> None:
    """A partition that is drawn anew without being charged: the steps of a resumed run as those of the block before."""
    path, contract = tmp_path / "ledger.jsonl", Contract(OBSERVED, OPERATING_SYSTEM)
    with Ledger(path, contract=contract) as ledger:
        ledger.charge(cyclic())
        ledger.charge(cyclic(1))
        with pytest.raises(AccountingError, match="after that block has ended"):
            ledger.charge(cyclic())
        ledger.charge(cyclic(1))
    with Ledger(path, contract=contract) as ledger:
        with pytest.raises(AccountingError, match="after that block has ended"):
            ledger.charge(cyclic(1))
        ledger.charge(cyclic(2))
        assert ledger.events() == [(cyclic(), 1), (cyclic(1), 2), (cyclic(2), 1)]


@pytest.mark.parametrize("text", ["", "x", "nan, 0.5", 3, "0x1p-1"])
def test_decays_that_are_none_are_refused(text: object) -> None:
    with pytest.raises(InvalidArgumentError):
        FixedOrderBuffered(1.0, 9, text, "0x1p-2, 0x1p-2", 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("event", "plan", "fits"),
    [
        ([(cyclic(), 16), (cyclic(1), 16)], [(cyclic(), 32)], True),
        ([(cyclic(), 15), (cyclic(1), 17)], [(cyclic(), 32)], False),
        ([(FixedOrder(1.0, 9, 0), 3), (FixedOrder(1.0, 9, 1), 9)], [(FixedOrder(1.0, 9, 0), 18)], True),
        ([(FixedOrder(1.0, 9, 0), 3), (FixedOrder(1.0, 9, 1), 10)], [(FixedOrder(1.0, 9, 0), 18)], False),
        ([], [(cyclic(), 1)], True),
        ([(PoissonSampled(0.1, 0.0), 1)], [(PoissonSampled(0.1, 1.0), 1)], False),
        ([(PoissonSampled(0.1, 1.0), 1)], [(FixedOrder(1.0, 9, 0), 3)], False),
    ],
)
def test_what_costs_no_more_in_any_kind_is_within_a_plan(event: list, plan: list, fits: bool) -> None:  # type: ignore[type-arg]
    assert costs_no_more(event, plan) is fits
    if fits:
        assert epsilon(event, 1e-5) <= epsilon(plan, 1e-5) * (1 + 1e-9)
