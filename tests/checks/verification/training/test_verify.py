"""`hushgrad.verify`: correct training passes; training that was tampered with fails, with the part named."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from verified_training import SIGMA, B, C, N, claim, convolution, linear, mlp, parts_of, verified, words

import hushgrad
import hushgrad.mechanism.gaussian
from hushgrad.accounting.events.event import Event
from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import InvalidArgumentError
from hushgrad.mechanism import DPSGD, GaussianNoise, Mechanism
from hushgrad.sampling.disjoint import DisjointBatches
from hushgrad.sampling.poisson import PoissonSampler, PoissonSampling
from hushgrad.sampling.scheme import SamplingScheme
from hushgrad.sampling.truncated_poisson import TruncatedPoissonSampling

CORRECT = list(
    itertools.product((mlp, linear, convolution, words), (torch.float32, torch.float64), (True, False), ("mean", "sum"))
)
# An orthogonal array: among these 8, every two values of model, dtype, sampling and reduction occur together.
FEW = {
    case
    for case, (make, dtype, poisson, reduction) in enumerate(CORRECT)
    if (make in (linear, words)) == ((dtype == torch.float32) == poisson)
    and (make in (convolution, words)) == (poisson == (reduction == "mean"))
}


@pytest.mark.statistical
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case in FEW or case >= len(CORRECT) else pytest.mark.slow)
        for case in range(len(CORRECT) + 6)
    ],
)
def test_correct_training_passes(case: int) -> None:
    """38 of the 200 correct runs (the others: zoo/test_planted). Keys are secret; false alarms: 38 · 1e-6 in all."""
    more: dict[str, Any] = {}
    if case < len(CORRECT):
        make, dtype, poisson, reduction = CORRECT[case]
    else:
        make, dtype, poisson, reduction = mlp, torch.float32, True, "mean"
        more = [
            {"max_physical_batch_size": 7},
            {"max_physical_batch_size": 1},
            {"optimizer": torch.optim.Adam},
            {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)},
            {"optimizer": torch.optim.RMSprop},
            {"optimizer": torch.optim.Adagrad, "max_physical_batch_size": 16},
        ][case - len(CORRECT)]
    verdict = verified(make().to(dtype), claim(poisson=poisson, reduction=reduction), **more)
    assert verdict.passed, str(verdict)
    assert len({check.code for check in verdict.checks}) == len(verdict.checks)
    assert {check.part for check in verdict.checks} == {"sensitivity", "noise", "sampling", "ledger", "replay"}


@pytest.mark.statistical
def test_a_private_engine_and_its_loader_can_be_verified_while_they_train(tmp_path: Path) -> None:
    """Guarantee: what is charged is compared with what was measured, and any mismatch fails the verdict; correct
    training fails with a probability of at most `false_alarm`.
    """
    torch.manual_seed(5)
    model, criterion = mlp(), nn.CrossEntropyLoss()
    engine = hushgrad.PrivacyEngine(ledger=tmp_path / "ledger.jsonl")
    data = TensorDataset(torch.randn(N, 20), torch.randint(0, 4, (N,)))
    _, _, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=B),
        noise_multiplier=SIGMA,
        max_grad_norm=C,
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    verdict = hushgrad.verify(model, loader, criterion, engine, report=tmp_path / "verdict.json", resolution=0.05)
    assert verdict.passed, str(verdict)
    assert engine.session.steps == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert json.loads((tmp_path / "verdict.json").read_text())["passed"] is True
    assert verdict.false_alarm <= 1e-6


# Tampering --------------------------------------------------------------------------------------------------------


@pytest.mark.statistical
def test_noise_one_percent_low_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = hushgrad.mechanism.gaussian.noisy_updates
    monkeypatch.setattr(
        hushgrad.mechanism.gaussian,
        "noisy_updates",
        lambda totals, *, noise_std, divisor, stream: right(
            totals, noise_std=0.99 * noise_std, divisor=divisor, stream=stream
        ),
    )
    verdict = verified(resolution=0.01)
    assert not verdict.passed
    assert "noise" in parts_of(verdict)


@pytest.mark.statistical
def test_noise_that_calls_itself_two_percent_lower_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs is what the noise says of itself, and it is charged as more. The check shows 1.5%, as it says."""
    monkeypatch.setattr(GaussianNoise, "std", lambda self, sensitivity: 0.98 * self.noise_multiplier * sensitivity)
    verdict = verified(resolution=0.01)
    assert "ledger" in parts_of(verdict)


@pytest.mark.statistical
def test_a_clip_norm_that_is_not_that_of_the_noise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlatClipping, "factors", lambda self, norms: (2 * C / norms).clamp(max=1.0))
    verdict = verified(model=nn.Sequential(nn.Linear(20, 32), nn.Linear(32, 4)))
    assert {"sensitivity", "ledger"} <= parts_of(verdict)
    assert verdict.causes[0].code == "clip-norm-differs"


@pytest.mark.parametrize(
    "changes",
    [
        {"mechanism": 3},
        {"resolution": -1},
        {"false_alarm": 0},
        {
            "mechanism": DPSGD(
                noise_multiplier=0, clipping=FlatClipping(C), sampling=PoissonSampling(B / N), expected_batch_size=B
            )
        },
    ],
)
def test_bad_arguments_are_typed_errors(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        verified(**changes)


# Constant shapes -----------------------------------------------------------------------------------------------------


@pytest.mark.statistical
@pytest.mark.parametrize("most", [None, 64, 42])
def test_training_in_constant_shapes_does_what_it_claims(most: int | None) -> None:
    """Padded Poisson draws, truncated ones with room, and with little (a third of steps is cut); false alarm 3e-6."""
    claimed = claim()
    if most is not None:
        claimed = replace(claimed, sampling=TruncatedPoissonSampling(B / N, N, most))
    verdict = verified(mechanism=claimed, max_physical_batch_size=16, constant_shapes=True)
    assert verdict.passed, verdict.to_text()
    events = {"ledger": 0, "sampling": 0, "replay": 0}
    for check in verdict.checks:
        events[check.part] = events.get(check.part, 0) + 1
    assert events["ledger"] == 4
    assert events["sampling"] >= 6
    assert events["replay"] == 2


@dataclass(frozen=True)
class ProvenWithDisjoint(GaussianNoise):
    """Noise whose proof is for one class of sampling, which it asks for by name."""

    def event(self, sampling: SamplingScheme, pass_index: int = 0) -> Event:
        if type(sampling) is not DisjointBatches:
            raise self.unproven(sampling, cure="Take DisjointBatches()")
        return super().event(sampling, pass_index)


@pytest.mark.statistical
def test_noise_that_is_proven_for_one_class_of_sampling_is_verified_with_it() -> None:
    mechanism = Mechanism(
        noise=ProvenWithDisjoint(SIGMA), clipping=FlatClipping(C), sampling=DisjointBatches(), expected_batch_size=B
    )
    verdict = verified(mechanism=mechanism)
    assert verdict.passed, verdict.to_text()


def test_a_sampler_that_begins_anew_in_every_pass_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PoissonSampler.one_pass
    monkeypatch.setattr(PoissonSampler, "one_pass", lambda self, steps, first_step: right(self, steps, 0))
    verdict = verified()
    assert {check.part for check in verdict.checks if not check.passed} == {"sampling"}
