import math

import pytest

from hushgrad.accounting import Composition, Gaussian, PoissonSampled, epsilon
from hushgrad.accounting.risk import gaussian_mu, true_positive_rate
from hushgrad.accounting.search import TOLERANCE, elasticities, largest, smallest
from hushgrad.accounting.selection import GEOMETRIC, POISSON, all_runs, selection_epsilon
from hushgrad.errors import InvalidArgumentError, UnreachableTargetError


def _plan(sigma: float = 1.0, rate: float = 0.01, steps: float = 1000) -> Composition:
    return [(PoissonSampled(rate, sigma), int(steps))]


def test_noise_is_calibrated_to_the_private_side() -> None:
    """Guarantee: the cost at the result is at most the target, and a little less noise costs more."""

    def cost(sigma: float) -> float:
        return epsilon(_plan(sigma=sigma), 1e-5)

    sigma = smallest(cost, target=2.0, low=0.3, high=50)
    assert cost(sigma) <= 2.0 < cost(sigma * (1 - 1.01 * TOLERANCE))


def test_steps_are_calibrated_to_a_whole_number() -> None:
    """Guarantee: the cost at the result is at most the target, and one step more costs more."""

    def cost(steps: float) -> float:
        return epsilon(_plan(steps=steps), 1e-6)

    steps = largest(cost, target=3.0, low=1, high=10**6, whole=True)
    assert steps == int(steps)
    assert cost(steps) <= 3.0 < cost(steps + 1)


def test_a_rate_is_calibrated_to_an_attackers_power() -> None:
    def cost(rate: float) -> float:
        return true_positive_rate(_plan(rate=rate, steps=300), 1e-2)

    rate = largest(cost, target=0.1, low=2e-3, high=0.2)
    assert cost(rate) <= 0.1 < cost(rate * (1 + 1.01 * TOLERANCE))


def test_noise_is_calibrated_to_a_mu() -> None:
    sigma = smallest(lambda s: gaussian_mu(_plan(sigma=s), 1e-6), target=0.3, low=0.5, high=50)
    assert gaussian_mu(_plan(sigma=sigma), 1e-6) <= 0.3


def test_targets_at_the_ends_and_beyond() -> None:
    assert smallest(lambda x: 1 / x, target=10, low=1, high=5) == 1
    with pytest.raises(UnreachableTargetError, match=r"cost is 0\.2"):
        smallest(lambda x: 1 / x, target=0.1, low=1, high=5)
    with pytest.raises(InvalidArgumentError):
        largest(lambda x: x, target=1, low=2, high=1)


def test_elasticities_say_what_one_percent_buys() -> None:
    """Unsampled Gaussians: ε at small ε is nearly homogeneous of degree −1 in σ; here the exact powers of a product."""
    found = {e.quantity: e.percent for e in elasticities(lambda p: p["a"] ** 2 / p["b"], {"a": 3.0, "b": 2.0})}
    assert found == pytest.approx({"a": 2.0, "b": -1.0})
    plan = elasticities(lambda p: epsilon(_plan(p["sigma"], p["rate"]), 1e-5), {"sigma": 1.0, "rate": 0.01})
    assert plan[0].percent < -1
    assert plan[1].percent > 0.5


def test_a_random_number_of_runs_costs_no_less_than_its_published_formula() -> None:
    """Guarantee: an upper bound (theorems 2 and 6 of Papernot & Steinke, from Rényi divergences).

    Against theorem 2 written out for an unsampled Gaussian release at the same orders: D_α of one run is α/(2σ²).
    """
    noise, at, mean = 4.0, 1e-6, 20.0
    found = selection_epsilon([(Gaussian(noise), 1)], at, mean_runs=mean, shape=1.0)
    orders = [1 + i / 100 for i in range(2, 12_000)]

    def selected(order: float) -> float:
        eta = 1.0
        other = min(
            (1 + eta) * (1 - 1 / another) * another / (2 * noise**2) + (1 + eta) * math.log(mean) / another
            for another in (2.0, 5.0, 10.0, 15.0, 20.0, 30.0)
        )
        return order / (2 * noise**2) + other + math.log(mean) / (order - 1)

    def converted(order: float) -> float:
        return selected(order) + math.log1p(-1 / order) - math.log(at * order) / (order - 1)

    assert found >= epsilon([(Gaussian(noise), 1)], at)
    assert found <= min(converted(order) for order in orders) * 1.01


def test_a_search_costs_more_than_a_run_and_a_random_number_less_than_all_of_many() -> None:
    run = _plan(steps=300)
    one = epsilon(run, 1e-6)
    best_of_random = selection_epsilon(run, 1e-6, mean_runs=100)
    assert one < best_of_random < epsilon(all_runs(run, 100), 1e-6)
    assert one < selection_epsilon(run, 1e-6, mean_runs=10, shape=POISSON)
    assert epsilon(all_runs(run, 1), 1e-6) == one
    assert selection_epsilon([], 1e-6, 10) == 0
    for mean, shape in ((0.5, 1.0), (10, -1.0), (0, POISSON)):
        with pytest.raises(InvalidArgumentError):
            selection_epsilon(run, 1e-6, mean, shape)


@pytest.mark.parametrize("mean", [0.01, 0.999])
@pytest.mark.parametrize("shape", [POISSON, GEOMETRIC, 0.0])
def test_a_mean_of_less_than_one_run_is_refused_for_every_distribution(mean: float, shape: float) -> None:
    with pytest.raises(InvalidArgumentError, match="mean_runs: must be >= 1"):
        selection_epsilon(_plan(steps=300), 1e-6, mean, shape)
