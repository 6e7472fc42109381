"""A clip rule of somebody else's in one file: a limit for each layer. Trained, charged, verified, and named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad
from hushgrad import DPSGD, ClipRule, FlatClipping, PoissonSampling, PrivacyEngine, Session, privatize
from hushgrad.accounting import read_ledger
from hushgrad.checks.verification.verdict import Verdict
from hushgrad.cli.main import main
from hushgrad.errors import ContractChangedError, InvalidArgumentError, ProtocolError, SensitivityMismatchError
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time

N, B, SIGMA = 200, 20, 1.1


@dataclass(frozen=True)
class PerLayer(ClipRule):
    """Clip each layer's gradient to a limit of its own."""

    limits_of: tuple[tuple[str, float], ...]

    @property
    def sensitivity(self) -> float:
        return sum(limit**2 for _, limit in self.limits_of) ** 0.5

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        return [[name for name in names if name.startswith(f"{layer}.")] for layer, _ in self.limits_of]

    def limits(self, count: int) -> list[float]:
        return [limit for _, limit in self.limits_of]

    def factors(self, norms_GB: Tensor) -> Tensor:
        limits_G1 = torch.tensor(self.limits(len(norms_GB))).unsqueeze(1).to(norms_GB)
        return (limits_G1 / norms_GB).clamp(max=1)

    def scaled(self, factor: float) -> PerLayer:
        return replace(self, limits_of=tuple((layer, factor * limit) for layer, limit in self.limits_of))

    def reference(self, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
        total = {name: torch.zeros_like(gradients[0]) for name, gradients in per_example.items()}
        for (_, limit), group in zip(self.limits_of, self.groups(list(per_example)), strict=True):
            for one in range(len(per_example[group[0]])):
                norm = float(torch.cat([per_example[name][one].flatten() for name in group]).norm())
                for name in group:
                    total[name] += per_example[name][one] * min(1.0, limit / max(norm, 1e-300))
        return total


LIMITS = (("0", 0.3), ("2", 0.1), ("5", 0.2))
RULE = PerLayer(LIMITS)
C = RULE.sensitivity
TEXT = "PerLayer(limits_of=(('0', 0.3), ('2', 0.1), ('5', 0.2)))"


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 12), nn.Unflatten(1, (2, 6)), nn.GELU(), nn.Conv1d(2, 3, 6),
        nn.Flatten(),
    )  # fmt: skip


def data() -> TensorDataset:
    torch.manual_seed(6)
    return TensorDataset(3 * torch.randn(N, 8), torch.randint(0, 3, (N,)))


def mechanism(clipping: ClipRule = RULE, **changes: Any) -> DPSGD:
    settings = {"noise_multiplier": SIGMA, "sampling": PoissonSampling(B / N), "expected_batch_size": B, **changes}
    return DPSGD(clipping=clipping, **settings)


def losses(out: Tensor) -> Tensor:
    return (2 * out).cos().sum(1)


def one_step(session: Session, optimizer: torch.optim.Optimizer, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return what one step subtracts from the parameters, times B."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for part in x.split(4):
        session.backward(losses(model(part)))
    optimizer.step()
    return {name: (before[name] - parameter.detach()) * B for name, parameter in model.named_parameters()}


# Trained -------------------------------------------------------------------------------------------------------------


def assert_exact(model: nn.Module, found: Mapping[str, Tensor], x: Tensor, rule: ClipRule) -> None:
    runs = [lambda i=i: losses(model(x[i : i + 1])).sum() for i in range(len(x))]
    wanted = clipped_sum_of(one_at_a_time(model, runs), rule)
    for name, total in wanted.items():
        torch.testing.assert_close(found[name], total, rtol=1e-4, atol=1e-6)


def test_training_does_what_the_reference_says_one_example_at_a_time() -> None:
    model, x = network(), 3 * torch.randn(10, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    session = privatize(model, optimizer, mechanism(noise_multiplier=0))
    for _ in range(3):
        alone = copy.deepcopy(model)
        assert_exact(alone, one_step(session, optimizer, model, x), x, RULE)
    session.close()


def test_a_clip_schedule_scales_every_limit_and_the_noise() -> None:
    model, x = network(), 3 * torch.randn(10, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    planned = mechanism(noise_multiplier=0, clip_schedule=(1.0, 0.25))
    session = privatize(model, optimizer, planned)
    for factor in (1.0, 0.25):
        alone = copy.deepcopy(model)
        assert_exact(alone, one_step(session, optimizer, model, x), x, RULE.scaled(factor))
    session.close()
    assert replace(planned, noise_multiplier=2.0).at(1).noise_std == pytest.approx(0.5 * C, rel=1e-12)


def engine_of(ledger: Path, clipping: Any = RULE, **settings: Any) -> PrivacyEngine:
    """Train for one pass through the façade."""
    model = network()
    engine = PrivacyEngine(ledger=ledger)
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data(), batch_size=B),
        noise_multiplier=SIGMA,
        clipping=clipping,
        max_physical_batch_size=8,
        **settings,
    )
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for inputs, target in loader:
        optimizer.zero_grad()
        criterion(model(inputs), target).backward()
        optimizer.step()
    engine.session.close()
    return engine


def test_the_noise_is_made_from_the_sensitivity_of_the_rule(tmp_path: Path) -> None:
    engine = engine_of(tmp_path / "ledger")
    assert engine.mechanism.noise_std == SIGMA * C
    assert engine.session.noise_monitor.standard_errors < 9
    assert engine.session.noise_monitor.values > 0


def test_make_private_takes_a_rule_and_no_other_clip_norm(tmp_path: Path) -> None:
    engine_of(tmp_path / "same", max_grad_norm=C)
    with pytest.raises(InvalidArgumentError, match=r"max_grad_norm is 1, and the clip rule PerLayer.*Leave max_grad"):
        engine_of(tmp_path / "other", max_grad_norm=1.0)
    with pytest.raises(InvalidArgumentError, match="max_grad_norm: must be a real number, got NoneType"):
        engine_of(tmp_path / "none", clipping="flat")
    with pytest.raises(InvalidArgumentError, match=r"clipping: must be one of 'flat', 'auto.*got 'ghost'"):
        engine_of(tmp_path / "text", clipping="ghost", max_grad_norm=1.0)
    with pytest.raises(InvalidArgumentError, match="must be a clip rule"):
        engine_of(tmp_path / "number", clipping=1.0, max_grad_norm=1.0)


# Charged and named ---------------------------------------------------------------------------------------------------


def test_the_ledger_names_the_rule_and_goes_on_under_no_other(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    engine_of(path)
    view = read_ledger(path)
    assert (view.steps, view.contract.clipping, view.contract.unit) == (10, TEXT, "one record")
    assert view.contract.max_grad_norm == C
    engine_of(path)
    other = replace(RULE, limits_of=(("0", 0.1), ("2", 0.3), ("5", 0.2)))
    assert other.sensitivity == pytest.approx(C)
    for clipping, limit in ((other, None), ("flat", C)):
        with pytest.raises(ContractChangedError, match=r"clipping \(was .PerLayer.*, now"):
            engine_of(path, clipping, max_grad_norm=limit)
    assert read_ledger(path).steps == 20


def test_commands_show_the_rule(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    engine_of(path)
    for command in ("show", "verify"):
        result = CliRunner().invoke(main, ["ledger", command, str(path), "--json"])
        assert json.loads(result.stdout)["clip_rule"] == TEXT
        assert "PerLayer" in CliRunner().invoke(main, ["ledger", command, str(path)]).stdout


def test_the_guarantee_names_a_third_partys_rule(tmp_path: Path) -> None:
    engine = engine_of(tmp_path / "ledger")
    for conditions in (engine.guarantee(1e-5).conditions, read_ledger(tmp_path / "ledger").conditions):
        (told,) = [condition for condition in conditions if condition.name == "third-party clip rule"]
        assert "the clip rule was tests.extension.test_clip_rule.PerLayer, which is not hushgrad's" in told.sentence
    flat = engine_of(tmp_path / "flat", "flat", max_grad_norm=1.0)
    assert "third-party" not in str(flat.guarantee(1e-5))


# Planted bugs are found while it trains ------------------------------------------------------------------------------


@dataclass(frozen=True)
class TwiceTheLimit(PerLayer):
    """Factors let through twice the limit of large gradients."""

    def factors(self, norms_GB: Tensor) -> Tensor:
        return (2 * torch.tensor(self.limits(3)).unsqueeze(1) / norms_GB).clamp(max=1)


@dataclass(frozen=True)
class FlatSensitivity(PerLayer):
    """It says the largest of its limits in place of the root of their squares."""

    @property
    def sensitivity(self) -> float:
        return max(limit for _, limit in self.limits_of)


@dataclass(frozen=True)
class SharedFactor(PerLayer):
    """One factor for the batch, from its largest norm."""

    def factors(self, norms_GB: Tensor) -> Tensor:
        return super().factors(norms_GB).amin(1, keepdim=True).expand_as(norms_GB)


@dataclass(frozen=True)
class Unmatched(PerLayer):
    """A layer that the rule does not know is clipped by nobody."""

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        return super().groups([name for name in names if name != "2.bias"])


@pytest.mark.parametrize(
    ("rule", "error", "match"),
    [
        (TwiceTheLimit(LIMITS), SensitivityMismatchError, "TwiceTheLimit: an example would add more"),
        (FlatSensitivity(LIMITS), SensitivityMismatchError, "more than the sensitivity 0.3"),
        (SharedFactor(LIMITS), SensitivityMismatchError, "another factor beside others than alone"),
        (Unmatched(LIMITS), InvalidArgumentError, "in no group: 2.bias"),
        (PerLayer((*LIMITS, ("7", 0.1))), InvalidArgumentError, "empty: group 3"),
    ],
)
def test_a_bug_in_a_rule_ends_training_before_anything_is_released(
    rule: ClipRule, error: type[Exception], match: str
) -> None:
    model, x = network(), 3 * torch.randn(10, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = copy.deepcopy(model.state_dict())
    sessions: list[Session] = []

    def train() -> None:
        sessions.append(privatize(model, optimizer, mechanism(rule)))
        one_step(sessions[0], optimizer, model, x)

    with pytest.raises(error, match=match):
        train()
    for session in sessions:
        assert session.charged == []
        with pytest.raises(ProtocolError):
            optimizer.step()
        session.close()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Verified ------------------------------------------------------------------------------------------------------------


def verified(clipping: ClipRule, resolution: float) -> Verdict:
    loader = DataLoader(data(), batch_size=B, shuffle=True)
    return hushgrad.verify(network(), loader, nn.CrossEntropyLoss(), mechanism(clipping), resolution=resolution)


@pytest.mark.statistical
def test_a_rule_that_is_right_is_verified() -> None:
    """False-alarm probability 1e-6."""
    verdict = verified(RULE, 0.05)
    assert verdict.passed, str(verdict)
    assert verdict.claimed.sensitivity == C
    assert sum("clip rule" in check.claim for check in verdict.checks) == 6


@dataclass(frozen=True)
class UnclippedReference(PerLayer):
    """The reference is the plain sum."""

    def reference(self, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: gradients.sum(0) for name, gradients in per_example.items()}


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (TwiceTheLimit, "factor-above-limit"),
        pytest.param(SharedFactor, "factors-depend-on-others", marks=pytest.mark.slow),
        (UnclippedReference, "reference-above-sensitivity"),
    ],
)
def test_a_bug_that_is_planted_in_a_rule_is_found_by_verify(kind: Callable[[Any], ClipRule], code: str) -> None:
    verdict = verified(kind(LIMITS), 0.5)
    assert not verdict.passed
    assert code in {cause.code for cause in verdict.causes}
    assert all(check.part in ("sensitivity", "ledger", "noise", "replay") for check in verdict.failed)


def test_flat_clipping_as_a_rule_is_what_flat_says(tmp_path: Path) -> None:
    engine_of(tmp_path / "ledger", FlatClipping(0.5))
    engine_of(tmp_path / "ledger", "flat", max_grad_norm=0.5)
    assert read_ledger(tmp_path / "ledger").steps == 20
