import json
import math
from pathlib import Path

import numpy as np
import pytest

from hushgrad import DPSGD, FlatClipping, UserSampling
from hushgrad.accounting import (
    DisjointPass,
    FixedSizeSampled,
    Gaussian,
    PoissonSampled,
    RandomAllocation,
    TruncatedPoisson,
    calibrate_noise_multiplier,
    epsilon,
)
from hushgrad.accounting.neighbours import RELATIONS, epsilon_of_group, epsilon_under
from hushgrad.errors import AccountingError, InvalidArgumentError

PLAN = [(PoissonSampled(0.02, 1.2), 300)]
GAUSS = [(Gaussian(3.0), 5)]
BACKEND = [(DisjointPass(3.0, 0), 4), (DisjointPass(3.0, 1), 4)]


def test_zero_out_of_poisson_sampling_is_add_remove_one() -> None:
    assert epsilon_under(PLAN, 1e-6, "zero-out").upper == epsilon(PLAN, 1e-6)
    assert epsilon_under(PLAN, 1e-6, "add/remove-one").upper == epsilon(PLAN, 1e-6)


def test_replacing_in_full_batches_is_twice_the_sensitivity() -> None:
    assert epsilon_under(GAUSS, 1e-6, "replace-one").upper == epsilon([(Gaussian(1.5), 5)], 1e-6)
    assert epsilon_under(BACKEND, 1e-6, "replace-one").upper == epsilon([(Gaussian(1.5), 2)], 1e-6)


@pytest.mark.parametrize("delta", [1e-6, 1e-10])
def test_replacing_costs_more_than_adding_and_less_than_without_sampling(delta: float) -> None:
    replaced = epsilon_under(PLAN, delta, "replace-one")
    assert epsilon(PLAN, delta) < replaced.upper < epsilon([(Gaussian(0.6), 300)], delta)
    assert replaced.lower == 0


@pytest.mark.parametrize("rate", [0.05, 0.4])
def test_one_replaced_record_is_dominated_by_the_bound(rate: float) -> None:
    """Guarantee: the upper bound holds for that relation.

    The gradient +C of a Poisson-sampled record becomes −C (and 0, and +C/2): δ of two steps, integrated on a grid.
    """
    noise, x = 1.0, np.linspace(-9, 9, 721)
    cell = x[1] - x[0]

    def density(shift: float) -> np.ndarray:  # type: ignore[type-arg]
        return ((1 - rate) * np.exp(-(x**2) / 2) + rate * np.exp(-((x - shift) ** 2) / 2)) / math.sqrt(2 * math.pi)

    for at in (1e-4, 1e-2):
        bound = epsilon_under([(PoissonSampled(rate, noise), 2)], at, "replace-one").upper
        for other in (-1.0, 0.0, 0.5):
            p, q = np.outer(density(1.0), density(1.0)), np.outer(density(other), density(other))
            for a, b in ((p, q), (q, p)):
                assert float(np.maximum(a - math.exp(bound) * b, 0).sum()) * cell**2 <= at


def test_groups_cost_more_and_of_gaussians_k_times_the_sensitivity() -> None:
    values = [epsilon_under(PLAN, 1e-6, "add/remove-one", k).upper for k in (1, 2, 4)]
    assert values == sorted(values)
    assert epsilon_under(GAUSS, 1e-6, "zero-out", 3).upper == pytest.approx(epsilon([(Gaussian(1.0), 5)], 1e-6))
    assert epsilon_under(BACKEND, 1e-6, "zero-out", 3).upper == pytest.approx(epsilon([(Gaussian(1.0), 2)], 1e-6))


def test_what_is_not_known_is_refused_with_the_reason() -> None:
    with pytest.raises(AccountingError, match="later batch"):
        epsilon_under(BACKEND, 1e-6, "add/remove-one")
    with pytest.raises(AccountingError, match="a group under replace-one"):
        epsilon_under(PLAN, 1e-6, "replace-one", 2)
    with pytest.raises(AccountingError, match="fixed-size"):
        epsilon_under([(FixedSizeSampled(5, 100, 1.0), 10)], 1e-6, "add/remove-one")
    with pytest.raises(AccountingError, match="truncated"):
        epsilon_under([(TruncatedPoisson(0.1, 1.0, 100, 12), 10)], 1e-6, "zero-out", 2)
    with pytest.raises(InvalidArgumentError):
        epsilon_under(PLAN, 1e-6, "edit")
    with pytest.raises(InvalidArgumentError):
        epsilon_under(PLAN, 1e-6, "zero-out", 0)


@pytest.mark.parametrize("relation", RELATIONS)
def test_nothing_costs_nothing_and_no_noise_everything(relation: str) -> None:
    assert epsilon_under([], 1e-6, relation).upper == 0
    assert epsilon_under([(Gaussian(0.0), 1)], 1e-6, relation).upper == math.inf
    assert epsilon_under([(PoissonSampled(0.1, 0.0), 1)], 1e-6, relation).upper == math.inf


@pytest.mark.parametrize("relation", ["zero-out", "replace-one"])
def test_of_cut_steps_a_changed_record_costs_no_more_than_a_replaced_one_without_cuts(relation: str) -> None:
    cut = [(TruncatedPoisson(0.05, 1.0, 400, 25), 40)]
    found = epsilon_under(cut, 1e-6, relation)
    assert found.upper == epsilon_under([(PoissonSampled(0.05, 1.0), 40)], 1e-6, "replace-one").upper
    assert found.lower == 0


def test_zeroing_out_in_a_batch_of_fixed_size_is_a_replacement() -> None:
    fixed = [(FixedSizeSampled(20, 400, 1.5), 30)]
    assert epsilon_under(fixed, 1e-6, "zero-out").upper == epsilon(fixed, 1e-6)


@pytest.mark.parametrize("zeroed", [True, False])
@pytest.mark.parametrize("others", [0.0, 1.0, -1.0])
def test_one_changed_record_among_few_is_dominated_in_every_cut_draw(others: float, zeroed: bool) -> None:
    """By the law itself: 3 records, at most 1 kept, each drawn with q; the sum is that of a mixture of shifts."""
    q, noise, x = 0.6, 0.8, np.linspace(-12, 12, 4801)
    cell = x[1] - x[0]

    def density(first: float) -> np.ndarray:  # type: ignore[type-arg]
        kept = np.zeros_like(x)
        for drawn in np.ndindex(2, 2, 2):
            weight = float(np.prod([q if d else 1 - q for d in drawn]))
            values = [value for value, d in zip((first, others, others), drawn, strict=True) if d]
            for value in values or [0.0]:
                kept += weight / max(len(values), 1) * np.exp(-(((x - value) / noise) ** 2) / 2)
        return kept / (noise * math.sqrt(2 * math.pi))

    one, other = density(1.0), density(0.0 if zeroed else -1.0)
    relation = "zero-out" if zeroed else "replace-one"
    for at in (1e-4, 1e-2):
        bound = epsilon_under([(TruncatedPoisson(q, noise, 3, 1), 1)], at, relation).upper
        for p, r in ((one, other), (other, one)):
            assert float(np.maximum(p - math.exp(bound) * r, 0).sum()) * cell <= at


# Groups: people with several records -------------------------------------------------------------------------------

GROUPS = json.loads((Path(__file__).parent / "golden" / "user_level.json").read_text(encoding="utf-8"))


def of_records(sigma: float) -> list[tuple[PoissonSampled, int]]:
    return [(PoissonSampled(GROUPS["expected_batch_size"] / GROUPS["population"], sigma), GROUPS["steps"])]


@pytest.mark.parametrize("row", GROUPS["groups"], ids=lambda row: f"k={row['k']}, sigma={row['sigma']}")
def test_the_epsilon_of_a_group_is_that_of_the_table(row: dict[str, float]) -> None:
    """To 1e-4, at σ = 1, 2 and 4 and groups of 1 to 32."""
    found = epsilon_of_group(of_records(row["sigma"]), GROUPS["delta"], int(row["k"]))
    assert abs(found.upper - row["epsilon"]) <= 1e-4
    assert found.lower <= row["epsilon"] + row["error"]
    assert found.error <= 1e-4


def test_multiplying_the_epsilon_of_one_record_is_no_bound_in_either_direction() -> None:
    """The numbers of the pages: 11.5 where it is 16.6 (σ = 2, k = 16), and 68 where it is 153.9 (σ = 1, k = 32)."""
    for sigma, k, naive, true in ((2.0, 16, 11.53, 16.64), (1.0, 32, 67.98, 153.86)):
        assert k * epsilon(of_records(sigma), 1e-6) == pytest.approx(naive, abs=0.01)
        assert epsilon_of_group(of_records(sigma), 1e-6, k).upper == pytest.approx(true, abs=0.01)
    rare = [(PoissonSampled(1e-3, 0.3), 1)]  # two records are hardly ever drawn together
    assert epsilon_of_group(rare, 1e-5, 2).upper < 1.3 * epsilon(rare, 1e-5)


@pytest.mark.parametrize("row", GROUPS["noise_for_epsilon_4"], ids=lambda row: f"k={row['k']}")
def test_noise_is_chosen_for_a_group(row: dict[str, float]) -> None:
    """Guarantee: ε at the result is at most the target, and the result is within 2e-4 of the smallest."""
    found = calibrate_noise_multiplier(
        target_epsilon=4.0, target_delta=1e-6, composition=of_records, group_size=int(row["k"])
    )
    assert found == pytest.approx(row["sigma"], rel=3e-4)
    assert epsilon_of_group(of_records(found), 1e-6, int(row["k"])).upper <= 4.0


@pytest.mark.parametrize("row", GROUPS["noise_of_whole_users_for_epsilon_4"], ids=lambda row: f"rate={row['rate']}")
def test_whole_users_are_charged_as_records_at_their_own_rate(row: dict[str, float]) -> None:
    scheme = UserSampling(rate=row["rate"], users=None)
    plan = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=scheme, expected_batch_size=1000, steps=1000
    )
    assert plan.calibrate(epsilon=4.0, delta=1e-6).noise_multiplier == pytest.approx(row["sigma"], rel=3e-4)


def test_groups_are_refused_where_no_bound_is_known_and_by_other_accountants() -> None:
    with pytest.raises(AccountingError, match="'saddle-point' alone"):
        epsilon_of_group(PLAN, 1e-6, 2, "rdp")
    with pytest.raises(AccountingError, match="a group under replace-one"):
        epsilon_of_group([(FixedSizeSampled(5, 100, 1.0), 10)], 1e-6, 2)
    with pytest.raises(AccountingError, match="balls in bins"):
        epsilon_of_group([(RandomAllocation(10, 2.0, 0), 1)], 1e-6, 2)
    with pytest.raises(InvalidArgumentError):
        epsilon_of_group(PLAN, 1e-6, 0)
    assert epsilon_of_group(BACKEND, 1e-6, 3).upper == pytest.approx(epsilon([(Gaussian(1.0), 2)], 1e-6))
    assert epsilon_of_group(PLAN, 1e-6, accountant="rdp").upper == epsilon(PLAN, 1e-6, "rdp")
