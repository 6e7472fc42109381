"""The draws of the loader that training would use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from replicas import replica
from verified_training import B, N, claim, parts_of, verified

from hushgrad.checks.verification.training.draws import draws_of_training, not_tested
from hushgrad.checks.verification.verdict import by_code, failed_codes
from hushgrad.sampling.balls_in_bins import BallsInBinsSampler, BallsInBinsSampling
from hushgrad.sampling.disjoint import CheckedBatches, DisjointBatches
from hushgrad.sampling.fixed_size import FixedSizeSampling
from hushgrad.sampling.poisson import PoissonSampler, PoissonSampling
from hushgrad.sampling.records import Cutting
from hushgrad.sampling.truncated_poisson import TruncatedPoissonSampling


@pytest.mark.statistical
def test_a_loader_that_shuffles_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def passes(self: PoissonSampler, steps: int, first_step: int) -> Iterator[tuple[int, ...]]:
        for start in range(0, steps, N // B):
            order = torch.randperm(self.count).tolist()
            for place in range(min(N // B, steps - start)):
                yield tuple(order[place * B : (place + 1) * B])

    monkeypatch.setattr(PoissonSampler, "one_pass", passes)
    verdict = verified()
    assert "sampling" in parts_of(verdict)
    assert verdict.causes[0].code == "sampling-shuffled"


@pytest.mark.statistical
def test_a_draw_that_is_not_cut_as_charged_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The truncated sampler leaves larger draws as they are, and the loader that would refuse them does not look."""
    claimed = replace(claim(), sampling=TruncatedPoissonSampling(B / N, N, 42))
    monkeypatch.setattr(PoissonSampler, "_cut_size", lambda self, size: size)
    monkeypatch.setattr("hushgrad.sampling.loader._Planner._chargeable", lambda _, drawn: tuple(drawn))
    monkeypatch.setattr("hushgrad.sampling.loader.Cutting", lambda *_: Cutting(64, True))
    verdict = verified(mechanism=claimed, max_physical_batch_size=64, constant_shapes=True)
    assert not verdict.passed
    assert {check.part for check in verdict.checks if not check.passed} <= {"sampling", "ledger"}


@pytest.mark.statistical
def test_the_librarys_own_draws_pass_whatever_their_scheme() -> None:
    """Secret keys; false alarm 1e-6 each."""
    for sampling in (
        PoissonSampling(0.2),
        TruncatedPoissonSampling(0.2, 60, 20),
        BallsInBinsSampling(5),
        FixedSizeSampling(12, 60),
    ):
        reading, checks = draws_of_training(replica(sampling=sampling), 0.05, 1e-6)
        assert reading is not None
        assert reading.checks == by_code(checks)
        assert not failed_codes(checks)


def test_of_disjoint_batches_it_is_looked_at_that_no_record_comes_twice_in_a_pass() -> None:
    reading, (check,) = draws_of_training(replica(sampling=DisjointBatches()), 0.05, 1e-6)
    assert reading is None
    assert (check.code, check.passed, check.sample_size) == ("sampling-each-once", True, 3 * 60)


def test_a_pass_that_holds_a_record_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    source = replica(sampling=DisjointBatches())
    batches = [tuple(range(12))] * 5
    monkeypatch.setattr(CheckedBatches, "one_pass", lambda self, *_: iter(batches))
    monkeypatch.setattr("hushgrad.sampling.loader._require_new", lambda *_: None)  # which would refuse them
    _, (check,) = draws_of_training(source, 0.05, 1e-6)
    assert not check.passed
    assert "3 of 3 passes" in check.measured


def test_what_draws_could_not_show_is_said_where_steps_are_not_drawn_afresh() -> None:
    assert not_tested(PoissonSampling(0.2)) == not_tested(DisjointBatches()) == ()

    class Depends(PoissonSampling):
        draws_afresh = False

    assert "could not be tested" in not_tested(Depends(0.2))[0]


@pytest.mark.statistical
def test_an_order_that_is_cut_in_the_place_of_random_batches_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(self: BallsInBinsSampler, steps: int, first_step: int) -> Iterator[tuple[int, ...]]:
        for part in torch.randperm(self.count).chunk(steps):
            yield tuple(part.tolist())

    monkeypatch.setattr(BallsInBinsSampler, "one_pass", cut)
    reading, checks = draws_of_training(replica(sampling=BallsInBinsSampling(5)), 0.05, 1e-6)
    assert reading is not None
    assert "sampling-sizes" in failed_codes(checks)
    assert [cause.code for cause in reading.causes] == ["sampling-not-random"]
