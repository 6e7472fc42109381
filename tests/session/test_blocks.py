"""A new block may be as long as plan and budget allow, beside the blocks that were charged before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushgrad import DPSGD, CyclicPoissonSampling, FixedOrderBatches, FlatClipping, SamplingScheme
from hushgrad.accounting import Budget, CyclicPoisson, PoissonSampled, epsilon
from hushgrad.errors import UnreachableTargetError
from hushgrad.session.blocks import steps_of_block

CYCLIC, ORDERED = CyclicPoissonSampling(0.02, 4), FixedOrderBatches(5)


def plan(sampling: SamplingScheme = CYCLIC, steps: int | None = None) -> DPSGD:
    return DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=sampling, expected_batch_size=4, steps=steps
    )


@given(st.integers(1, 60), st.lists(st.integers(1, 20), max_size=3), st.sampled_from([CYCLIC, ORDERED]))
def test_a_phase_costs_no_more_than_its_plan_and_one_step_more_would(
    steps: int, lengths: list[int], sampling: SamplingScheme
) -> None:
    """Guarantee: with such a block the phase costs no more than the steps that are planned without a break."""
    mechanism = plan(sampling, steps)
    within = [(mechanism.event(block), length) for block, length in enumerate(lengths)]
    most = steps_of_block(mechanism, len(lengths), [], within, None)
    apart = sampling.min_separation
    turns = -(-steps // apart) - sum(-(-length // apart) for length in lengths)
    assert most == max(0, min(apart * turns, steps - sum(lengths)))


def test_a_budget_holds_for_the_whole_account() -> None:
    before = [(PoissonSampled(0.02, 1.0), 50)]
    within = [(CyclicPoisson(0.08, 1.0, 4, 0), 9)]
    budget = Budget(3.0, 1e-5)
    most = steps_of_block(plan(), 1, before, within, budget)
    assert most is not None
    assert most % 4 == 0  # a turn is used up before the next one is paid
    paid = [*before, *within, (CyclicPoisson(0.08, 1.0, 4, 1), most)]
    assert epsilon(paid, 1e-5) <= 3.0
    assert epsilon([*paid[:-1], (CyclicPoisson(0.08, 1.0, 4, 1), most + 1)], 1e-5) > 3.0


def test_without_plan_and_budget_nothing_limits_a_block() -> None:
    assert steps_of_block(plan(), 0, [], [], None) is None


def test_a_budget_without_room_for_a_first_step_is_refused_and_for_a_later_block_it_is_the_end() -> None:
    tight = Budget(0.05, 1e-5)
    with pytest.raises(UnreachableTargetError):
        steps_of_block(plan(), 0, [], [], tight)
    assert steps_of_block(plan(), 1, [], [(CyclicPoisson(0.08, 1.0, 4, 0), 4)], tight) == 0
