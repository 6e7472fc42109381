"""A finding ends an account: whoever adds it up gets infinity, and it is no step."""

from __future__ import annotations

import math

import pytest

from hushgrad.accounting import ACCOUNTANTS, Budget, DisjointPass, FixedSizeSampled, PoissonSampled, epsilon, guarantee
from hushgrad.accounting.calibration import calibrate_noise_multiplier
from hushgrad.accounting.composition import Composition
from hushgrad.accounting.events.not_established import NotEstablished
from hushgrad.accounting.risk import membership_advantage
from hushgrad.accounting.selection import all_runs, selection_epsilon
from hushgrad.errors import InvalidArgumentError, UnreachableTargetError

FOUND = NotEstablished(code="DP301", place="layers.3", what="the output of one example depends on the others")
STEPS = [PoissonSampled(0.01, 1.1), DisjointPass(2.0, 0), FixedSizeSampled(64, 1000, 1.5)]


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.type)
def test_epsilon_is_infinite_under_every_relation_and_accountant_also_composed(
    step: PoissonSampled, accountant: str
) -> None:
    for account in ([(step, 10), (FOUND, 1)], [(FOUND, 1), (step, 10)], [(step, 4), (FOUND, 2), (step, 3)]):
        assert epsilon(account, 1e-5, accountant) == math.inf
        assert epsilon(all_runs(account, 3), 1e-5, accountant) == math.inf


def test_a_selection_an_attack_a_budget_and_a_calibration_take_it_for_infinity() -> None:
    account: Composition = [(PoissonSampled(0.01, 1.1), 10), (FOUND, 1)]
    assert selection_epsilon(account, 1e-5, 2.0) == math.inf
    assert membership_advantage(account) == 1.0
    with pytest.raises(UnreachableTargetError):
        Budget(3.0, 1e-5).most(lambda count: [*account, (PoissonSampled(0.01, 1.1), count)])
    with pytest.raises(UnreachableTargetError):
        calibrate_noise_multiplier(
            target_epsilon=3.0,
            target_delta=1e-5,
            composition=lambda noise: [*account, (PoissonSampled(0.01, noise), 5)],
        )


def test_a_guarantee_says_what_was_found_and_counts_the_steps_alone() -> None:
    held = guarantee([(PoissonSampled(0.01, 1.1), 10), (FOUND, 1)], 1e-5)
    assert not held.private
    assert held.epsilon == math.inf
    assert held.steps == 10
    said = str(held)
    assert said.startswith("NOT PRIVATE: epsilon is infinite.")
    assert "Nothing is established for any of these steps" in said
    assert "DP301 layers.3: the output of one example depends on the others" in said
    assert "noise multiplier is 0" not in said
    assert held.sampling == guarantee([(PoissonSampled(0.01, 1.1), 10)], 1e-5).sampling


def test_its_words_are_cut_and_printable_and_it_has_no_noise() -> None:
    long = NotEstablished(code="DP301", place="\x1b[31m", what="x" * 10_000)
    assert long.place == "[31m"
    assert len(long.what) == 600
    with pytest.raises(InvalidArgumentError):
        NotEstablished(code="DP301", place="", what="w", noise_multiplier=1.0)
    with pytest.raises(InvalidArgumentError):
        NotEstablished(code="DP301", place="", what=3)  # type: ignore[arg-type]
