"""Rows chosen by noised counts: what they cost together with the gradients, what a record adds, what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hushgrad import (
    DPSGD,
    AutomaticClipping,
    CorrelatedNoise,
    FlatClipping,
    GaussianNoise,
    GridNoise,
    GroupwiseClipping,
    Mechanism,
    PoissonSampling,
    QuantileClipping,
    SparseRows,
    optimal_banded,
)
from hushgrad.accounting import PoissonSampled
from hushgrad.accounting.events.event import Event
from hushgrad.clipping.bound import BoundRule
from hushgrad.clipping.rule import ClipRule
from hushgrad.errors import InvalidArgumentError, UnprovenMechanismError
from hushgrad.mechanism.noise import NoiseMechanism
from hushgrad.noise.gaussian import Noised
from hushgrad.randomness import KeyStream
from hushgrad.sampling.cyclic import CyclicPoissonSampling
from hushgrad.sampling.scheme import SamplingScheme

TABLES = ("users.weight",)


def rule(**changes: Any) -> SparseRows:
    return SparseRows(**{"tables": TABLES, "threshold": 10.0, **changes})


@given(st.floats(0.1, 50), st.floats(1e-4, 1 - 1e-4), st.integers(1, 1000))
def test_counts_and_gradients_together_cost_a_step_what_the_noise_multiplier_says(
    sigma: float, share: float, rows: int
) -> None:
    """Counts and gradients together cost a step what the noise multiplier says."""
    found = rule(count_share=share, rows_per_record=rows)
    both = found.count_noise_multiplier(sigma) ** -2 + found.gradient_noise_multiplier(sigma) ** -2
    assert math.isclose(both, sigma**-2, rel_tol=1e-9)
    assert math.isclose(found.count_std(sigma) / found.count_limit, found.count_noise_multiplier(sigma), rel_tol=1e-12)


@pytest.mark.parametrize(
    "clipping",
    [FlatClipping(0.7), AutomaticClipping(0.7), GroupwiseClipping(0.7, "parameter", noise="least"),
     QuantileClipping(0.7, count_noise_multiplier=3.0)],
)  # fmt: skip
def test_the_noise_of_gradients_and_of_all_counts_together_is_one_gaussian_of_sigma(clipping: ClipRule) -> None:
    sigma, chosen = 1.3, rule(count_share=0.2)
    mechanism = DPSGD(
        noise_multiplier=sigma, clipping=clipping, sampling=PoissonSampling(0.01), expected_batch_size=8,
        sparse_rows=chosen,
    )  # fmt: skip
    assert mechanism.event() == PoissonSampled(0.01, sigma)
    names = ["users.weight", "head.weight"]
    bound = BoundRule(clipping, names, sizes={"users.weight": 90, "head.weight": 4}, noise_multiplier=sigma, beside=0.2)
    gradients = sum(
        (limit / (mechanism.noise_std * bound.relative[group[0]])) ** 2
        for group, limit in zip(bound.groups, bound.limits, strict=True)
    )
    of_rows = chosen.count_noise_multiplier(sigma) ** -2
    of_norms = 0.0 if bound.count_relative is None else (0.5 / (mechanism.noise_std * bound.count_relative)) ** 2
    assert math.isclose(gradients + of_rows + of_norms, sigma**-2, rel_tol=1e-9)


def test_calibration_schedules_and_plans_keep_the_rule() -> None:
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.01), expected_batch_size=8,
        sparse_rows=rule(), steps=50,
    )  # fmt: skip
    plain = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.01), expected_batch_size=8,
        steps=50,
    )  # fmt: skip
    calibrated = mechanism.calibrate(epsilon=2.0, delta=1e-5)
    assert calibrated.sparse_rows == rule()
    assert calibrated.noise_multiplier == plain.calibrate(epsilon=2.0, delta=1e-5).noise_multiplier
    assert mechanism.epsilon(1e-5) == plain.epsilon(1e-5)


def test_more_rows_than_expected_add_less_each_so_that_the_norm_stays() -> None:
    weights = rule(rows_per_record=4).weights(torch.tensor([0, 1, 4, 9, 400]))
    torch.testing.assert_close(weights, torch.tensor([1, 1, 1, 2 / 3, 0.1], dtype=torch.float64))


def test_an_untouched_row_passes_as_often_as_the_tail_of_the_noise_says() -> None:
    found = rule(threshold=6.0, count_share=0.25, rows_per_record=4)  # noise of 1 / 0.5 · 2 = 4 records
    assert math.isclose(found.untouched_probability(1.0), 0.0668072, rel_tol=1e-6)
    assert found.untouched_probability(0.0) == 0
    assert found.untouched_probability(1e-3) == 0  # below the smallest float
    assert rule(threshold=-math.inf).untouched_probability(1.0) == 1


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"tables": ()}, "tables"),
        ({"tables": "users.weight"}, "tables"),
        ({"tables": ("a", "a")}, "tables"),
        ({"tables": (3,)}, "tables"),
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": -1.0}, "threshold"),
        ({"threshold": math.nan}, "threshold"),
        ({"threshold": math.inf}, "threshold"),
        ({"rows_per_record": 0}, "rows_per_record"),
        ({"count_share": 0.0}, "count_share"),
        ({"count_share": 1.0}, "count_share"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidArgumentError, match=where):
        rule(**changes)


def test_a_class_that_is_derived_from_it_is_refused() -> None:
    """A class that is derived from it is refused, so that what goes by this name is this rule."""
    with pytest.raises(InvalidArgumentError, match="whatever it computes"):
        type("Mine", (SparseRows,), {})


def test_anything_else_in_its_place_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="must be a SparseRows"):
        DPSGD(
            noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.01), expected_batch_size=8,
            sparse_rows=TABLES,  # type: ignore[arg-type]
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["grid", "banded"])
def test_rows_are_chosen_by_counts_beside_noise_only_with_which_both_are_known_to_cost_what_one_step_does(
    kind: str,
) -> None:
    """Rows are chosen by counts beside noise only with which both are known to cost what one step does."""
    given: dict[str, Any] = {"clipping": FlatClipping(1.0), "expected_batch_size": 8, "sparse_rows": rule()}
    Mechanism(noise=GaussianNoise(1.0), sampling=PoissonSampling(0.01), **given)
    noise = GridNoise(1.0) if kind == "grid" else CorrelatedNoise(1.0, optimal_banded(8, 2))
    sampling = PoissonSampling(0.01) if kind == "grid" else CyclicPoissonSampling(0.01, 2)
    with pytest.raises(UnprovenMechanismError, match="SparseRows"):
        Mechanism(noise=noise, sampling=sampling, **given)


@dataclass(frozen=True)
class Strange(NoiseMechanism):
    """Noise of somebody else's that follows a clip rule, and is charged as Gaussian noise of another multiplier."""

    noise_multiplier: float
    charged: float = 2.0
    deviation: float = 1.0
    follows_rule: ClassVar[bool] = True

    def std(self, sensitivity: float) -> float:
        return self.deviation * self.noise_multiplier * sensitivity

    def start(self, stream: KeyStream) -> Any:
        return stream

    def updates(
        self, state: Any, totals: Sequence[Noised], *, sensitivity: float, divisor: float
    ) -> list[torch.Tensor]:
        raise NotImplementedError

    def event(self, sampling: SamplingScheme, index: int = 0) -> Event:
        return sampling.event(self.charged * self.noise_multiplier, index)

    def with_noise_multiplier(self, noise_multiplier: float) -> Strange:
        return replace(self, noise_multiplier=noise_multiplier)


def test_counts_have_gaussian_noise_so_that_noise_which_is_charged_as_another_is_refused() -> None:
    given: dict[str, Any] = {
        "clipping": FlatClipping(1.0), "expected_batch_size": 8, "sampling": PoissonSampling(0.01),
    }  # fmt: skip
    Mechanism(noise=Strange(1.0), **given)
    Mechanism(noise=Strange(1.0, charged=1.0), sparse_rows=rule(), **given)
    for noise in (Strange(1.0), Strange(1.0, charged=0.5), Strange(1.0, charged=1.0, deviation=0.5)):
        with pytest.raises(UnprovenMechanismError, match="SparseRows"):
            Mechanism(noise=noise, sparse_rows=rule(), **given)


def test_counts_that_take_all_of_a_steps_cost_are_refused() -> None:
    clipping = QuantileClipping(1.0, count_noise_multiplier=0.6)
    with pytest.raises(InvalidArgumentError, match="leave nothing"):
        BoundRule(clipping, ["w"], noise_multiplier=1.0, beside=0.4)
