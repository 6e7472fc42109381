"""Audits of real sessions: claims stand where the noise is right, and fall where half of it is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hushgrad.checks.auditing.audit import audit, recomputed
from hushgrad.cli.main import main
from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import InvalidArgumentError
from hushgrad.mechanism import DPSGD, GaussianNoise
from hushgrad.sampling.balls_in_bins import BallsInBinsSampling
from hushgrad.sampling.cyclic import CyclicPoissonSampling
from hushgrad.sampling.disjoint import DisjointBatches
from hushgrad.sampling.fixed_size import FixedSizeSampling
from hushgrad.sampling.poisson import PoissonSampling
from hushgrad.sampling.truncated_poisson import TruncatedPoissonSampling
from hushgrad.strategies.optimal_banded import optimal_banded


def mechanism(sigma: float, rate: float = 1.0) -> DPSGD:
    return DPSGD(
        noise_multiplier=sigma,
        clipping=FlatClipping(0.5),
        sampling=PoissonSampling(rate),
        expected_batch_size=100,
    )


@pytest.mark.statistical
@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_a_right_claim_is_not_contradicted_and_nearly_reached(rate: float) -> None:
    """At confidence 0.9999 each: false-alarm probability 3e-4 in all.

    The bound is at 0.94 of the claim with a standard deviation of 0.014, so that one in 10¹⁰ runs is below 0.85.
    """
    report = audit(mechanism(1.0, rate), delta=1e-5, canaries=4000, confidence=0.9999)
    assert report.passed, str(report)
    by_method = {bound.method: bound for bound in report.bounds}
    assert by_method["per-step white-box"].epsilon > 0.85 * report.claimed["per-step white-box"]
    assert by_method["one run, f-DP"].epsilon > 0


@pytest.mark.statistical
def test_a_claim_falls_when_half_of_the_noise_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GaussianNoise, "std", lambda self, sensitivity: 0.5 * self.noise_multiplier * sensitivity)
    report = audit(mechanism(1.0), delta=1e-5, canaries=1000)
    assert not report.passed
    assert "REJECTED" in str(report)


@pytest.mark.statistical
def test_the_command_prints_bounds_beside_claims() -> None:
    """At confidence 0.9999: false-alarm probability 6e-4."""
    arguments = ["audit", "--noise-multiplier", "1", "--delta", "1e-5", "--canaries", "500", "--confidence", "0.9999"]
    text = CliRunner().invoke(main, arguments)
    assert text.exit_code == 0, text.output
    assert "not contradicted" in text.output
    value = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).output)
    assert value["passed"] is True
    assert len(value["bounds"]) == 3


def test_what_cannot_be_audited_is_a_typed_error() -> None:
    with pytest.raises(InvalidArgumentError):
        audit(mechanism(0.0), delta=1e-5)
    strategy = optimal_banded(steps=8, bands=2)
    banded = DPSGD(
        noise_multiplier=1.0,
        clipping=FlatClipping(1.0),
        sampling=CyclicPoissonSampling(0.1, 2),
        expected_batch_size=10,
        strategy=strategy,
    )
    with pytest.raises(InvalidArgumentError, match="anew in every step"):
        audit(banded, delta=1e-5)


SCHEMES = {
    "add/remove-one": (PoissonSampling(0.3), 1.0),
    "cut": (TruncatedPoissonSampling(0.3, 400, 125), 1.0),
    "balls in bins": (BallsInBinsSampling(3), 1.0),
    "fixed size": (FixedSizeSampling(100, 400), 100.0),
    "own batches": (DisjointBatches(), 100.0),
}


@pytest.mark.statistical
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "balls in bins" else ()) for name in SCHEMES]
)
def test_every_sampling_is_audited_by_its_own_loader_against_its_own_claim(name: str) -> None:
    """At confidence 0.9999: false-alarm probability 4e-4 each. Half of the noise missing is found at each."""
    sampling, size = SCHEMES[name]
    mechanism = DPSGD(noise_multiplier=0.7, clipping=FlatClipping(0.5), sampling=sampling, expected_batch_size=size)
    report = audit(mechanism, delta=1e-5, canaries=400, steps=6, confidence=0.9999)
    assert report.passed, str(report)
    step = next(bound for bound in report.bounds if bound.method == "per-step white-box")
    assert 0.5 * report.claimed[step.method] < step.epsilon
    again = recomputed(report.as_json())
    assert again.as_json() == report.as_json()


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["cut", "fixed size", "own batches"])
def test_missing_noise_is_found_with_every_sampling(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling, size = SCHEMES[name]
    mechanism = DPSGD(noise_multiplier=0.7, clipping=FlatClipping(0.5), sampling=sampling, expected_batch_size=size)
    monkeypatch.setattr(GaussianNoise, "std", lambda self, sensitivity: 0.5 * self.noise_multiplier * sensitivity)
    assert not audit(mechanism, delta=1e-5, canaries=400, steps=6).passed


def test_a_written_result_gives_its_bounds_again_and_shows_a_changed_one(tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    arguments = ["audit", "--noise-multiplier", "1", "--delta", "1e-5", "--canaries", "200", "--steps", "5"]
    CliRunner().invoke(main, [*arguments, "--sampling-rate", "0.5", "--out", str(path)])
    stored = json.loads(path.read_text())
    assert recomputed(stored).as_json() == stored
    stored["bounds"][0]["epsilon_at_least"] += 0.1
    assert recomputed(stored).as_json() != stored


@pytest.mark.parametrize("value", [{}, [], {"delta": 1e-5, "canaries": 9, "present": 2, "absent": 2, "releases": []}])
def test_anything_else_is_refused_as_a_result(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="not the result of an audit"):
        recomputed(value)
