"""The draws of the loader that training would use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from verified_training import B, N, claim, parts_of, verified

from hushgrad.sampling.poisson import PoissonSampler
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
    monkeypatch.setattr("hushgrad.sampling.loader._Planner._require_chargeable", lambda *_: None)
    monkeypatch.setattr("hushgrad.sampling.loader.Cutting", lambda *_: Cutting(64, True))
    verdict = verified(mechanism=claimed, max_physical_batch_size=64, constant_shapes=True)
    assert not verdict.passed
    assert {check.part for check in verdict.checks if not check.passed} <= {"sampling", "ledger"}
