"""Noise on a grid: what it is made for, what it is charged as, and what the ledger and the guarantee say of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from hushgrad import DPSGD, FlatClipping, GaussianNoise, GridNoise, Mechanism, PoissonSampling, PrivacyEngine, privatize
from hushgrad.accounting import Contract, PoissonSampled, guarantee, read_ledger
from hushgrad.accounting.ledger.contract import Rounding
from hushgrad.accounting.ledger.phases import Phase, joint_contract
from hushgrad.cli.ledger import ledger as ledger_command
from hushgrad.errors import (
    ContractChangedError,
    InvalidArgumentError,
    NoiseMismatchError,
    SensitivityMismatchError,
)
from hushgrad.mechanism.grid import MEASURED, SHARE
from hushgrad.noise.cells import MOST_CELLS, distance
from hushgrad.noise.grid import normal_cells
from hushgrad.parallel.world import ALONE, World
from hushgrad.privacy import Privacy
from hushgrad.randomness import Address, KeyStream
from hushgrad.session.set_up import _require_divisible

SAMPLING = PoissonSampling(0.25)


def plan(**changes: Any) -> DPSGD:
    values: dict[str, Any] = {
        "noise_multiplier": 1.1,
        "noise_kind": "grid",
        "clipping": FlatClipping(0.5),
        "sampling": SAMPLING,
        "expected_batch_size": 10,
    }
    return DPSGD(**{**values, **changes})


@pytest.mark.parametrize("sigma", [0.01, 0.7, 1.0, 17.0, 300.0])
@pytest.mark.parametrize("sensitivity", [1e-3, 0.5, 1.0, 40.0])
def test_the_noise_is_made_for_the_sensitivity_of_the_rounded_sum(sigma: float, sensitivity: float) -> None:
    """Guarantee: the noise is made for no less than the sensitivity of the rounded sum and of its error.

    C(1 + 1e-5) + 2η + g√d is at most the std over σ, for the most values d that are accepted, too.
    """
    noise = GridNoise(sigma)
    for coordinates in (1, 1000, 10**6):
        try:
            rounding = noise.rounding(sensitivity, coordinates)
        except InvalidArgumentError:
            assert sigma == 300.0
            assert coordinates == 10**6
            continue
        assert rounding is not None
        moved = sensitivity * (1 + MEASURED) + 2 * rounding.error + rounding.grid * math.sqrt(coordinates)
        assert moved <= noise.std(sensitivity) / sigma * (1 + 1e-15)
        assert rounding.error > 0
        assert math.frexp(rounding.grid)[0] == 0.5
        assert 1 <= noise.std(sensitivity) / rounding.grid <= MOST_CELLS
        assert rounding.distance == coordinates * distance(MOST_CELLS)


def test_it_is_charged_as_gaussian_noise() -> None:
    assert GridNoise(1.1).event(SAMPLING) == GaussianNoise(1.1).event(SAMPLING) == PoissonSampled(0.25, 1.1)
    assert plan(steps=50).epsilon(1e-5) == plan(steps=50, noise_kind="gaussian").epsilon(1e-5)
    assert GridNoise(1.1).std(2.0) == pytest.approx(2.2 * (1 + SHARE), rel=1e-15)


def test_it_is_asked_for_by_its_name() -> None:
    assert plan().noise == GridNoise(1.1)
    assert plan().with_noise_multiplier(2.0).noise == GridNoise(2.0)
    assert plan(noise_schedule=(1.0, 2.0)).at(1).noise == GridNoise(2.2)
    assert plan(steps=9).calibrate(epsilon=2.0, delta=1e-5).noise_kind == "grid"
    privacy = Privacy(max_grad_norm=1.0, target_delta=1e-5, noise_multiplier=1.0, noise="grid")
    assert privacy.mechanism(batch_size=10, population=100, steps=3).noise == GridNoise(1.0)
    with pytest.raises(InvalidArgumentError, match="noise"):
        plan(noise_kind="lattice")
    with pytest.raises(InvalidArgumentError, match="noise"):
        Privacy(max_grad_norm=1.0, target_delta=1e-5, noise_multiplier=1.0, noise="lattice")
    for sigma in (2.0**-30, -1.0, float("nan")):
        with pytest.raises(InvalidArgumentError):
            GridNoise(sigma)


def data(count: int = 40) -> torch.utils.data.TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return torch.utils.data.TensorDataset(torch.randn(count, 6, generator=generator), torch.arange(count) % 3)


def trained(noise: str = "grid", ledger: Path | None = None, dtype: torch.dtype = torch.float32) -> PrivacyEngine:
    torch.manual_seed(0)
    model = nn.Linear(6, 3).to(dtype)
    inputs, targets = data().tensors
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs.to(dtype), targets), batch_size=10)
    engine = PrivacyEngine(ledger=ledger)
    module, optimizer, batches = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=loader,
        noise_multiplier=1.1,
        max_grad_norm=0.5,
        noise=noise,
    )
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for x, y in batches:
        optimizer.zero_grad()
        criterion(module(x), y).backward()
        optimizer.step()
    return engine


def releases_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return where the updates that the optimizer is handed will be, each as one tensor."""
    seen: list[torch.Tensor] = []

    def look(*_: Any) -> None:
        gradients = [parameter.grad for parameter in model.parameters()]
        seen.append(torch.cat([gradient.flatten() for gradient in gradients if gradient is not None]).clone())

    optimizer.register_step_pre_hook(look)  # after the session's own
    return seen


def test_the_ledger_holds_grid_error_and_distance_and_is_continued_under_them_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    trained(ledger=path).session.close()
    rounding = read_ledger(path).contract.rounding
    assert rounding == GridNoise(1.1).rounding(0.5, 21)
    assert json.loads(path.read_text().splitlines()[0])["contract"]["rounding"]["grid"] == 2.0**-32
    with pytest.raises(ContractChangedError, match="rounding"):
        trained("gaussian", ledger=path)
    trained(ledger=path).session.close()
    other = tmp_path / "ordinary.jsonl"
    trained("gaussian", ledger=other).session.close()
    assert "rounding" not in other.read_text()
    with pytest.raises(ContractChangedError, match="rounding"):
        trained(ledger=other)


def test_the_guarantee_says_the_grid_and_what_delta_is_larger_by() -> None:
    engine = trained()
    said = engine.guarantee(1e-5)
    steps, rounding = said.steps, GridNoise(1.1).rounding(0.5, 21)
    assert rounding is not None
    assert said.delta_of_rounding == pytest.approx((1 + math.exp(said.epsilon)) * steps * rounding.distance)
    assert 0 < said.delta_of_rounding < 1e-20
    assert f"1e-05 + {said.delta_of_rounding:.0e}"[:8] in str(said)
    assert "grid of spacing 2.33e-10" in str(said)
    assert said.as_json()["delta_of_rounding"] == said.delta_of_rounding
    assert trained("gaussian").guarantee(1e-5).delta_of_rounding == 0.0


def test_phases_with_and_without_a_grid_are_told_apart() -> None:
    plain = Contract("observed", "operating system")
    fine, coarse = Rounding(1e-9, 1e-4, 1e-20), Rounding(1e-8, 1e-5, 1e-21)
    phases = [Phase(None, replace(plain, rounding=fine), 0), Phase("next", replace(plain, rounding=coarse), 3)]
    assert joint_contract(phases).rounding == Rounding(1e-8, 1e-4, 1e-20)
    mixed = joint_contract([*phases, Phase("last", plain, 5)])
    assert mixed.rounding == Rounding(1e-8, 1e-4, 1e-20, everywhere=False)
    said = str(guarantee([(PoissonSampled(0.1, 1.0), 9)], 1e-5, contract=mixed))
    assert "In some of these steps sums were rounded to a grid" in said


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_release_is_the_clipped_sum_on_the_grid_with_its_noise_divided_once(dtype: torch.dtype) -> None:
    """Exact against the sum one example at a time, up to the grid: by the cells of a fixed key."""
    torch.manual_seed(0)
    model = nn.Linear(6, 3).to(dtype)
    mechanism = plan(expected_batch_size=7)
    key = KeyStream.fixed_for_tests(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session = privatize(model, optimizer, mechanism, key=key)
    inputs, targets = (part[:9] for part in data().tensors)
    seen = releases_of(model, optimizer)
    session.backward(nn.functional.cross_entropy(model(inputs.to(dtype)), targets, reduction="none"))
    optimizer.step()
    [released] = seen
    session.close()
    noise = torch.from_numpy(normal_cells(21, mechanism.noise_std / 2.0**-32, key.fork("noise"), Address(0, 0)))
    total = torch.zeros(21, dtype=torch.float64)
    for x, y in zip(inputs.to(dtype), targets, strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(x.unsqueeze(0)), y.unsqueeze(0)).backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double()  # type: ignore[union-attr]
        total += gradient * min(1.0, 0.5 / float(gradient.norm()))
    cells = torch.round(total / 2.0**-32) + noise
    room = {torch.float32: 1e-6, torch.float64: 2.0**-32, torch.bfloat16: 2e-2}[dtype]
    wanted = cells * 2.0**-32 / 7
    assert float((released.double() - wanted).abs().max()) < room
    if dtype == torch.float64:  # every bit of it comes from one whole number
        number = torch.round(released * 7 / 2.0**-32)
        assert torch.equal(released, number * 2.0**-32 / 7)


def test_sums_that_rounding_may_have_moved_too_far_end_training_before_they_are_charged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = privatize(model, optimizer, plan())
    inputs, targets = (part[:9] for part in data().tensors)
    monkeypatch.setattr("hushgrad.gradients.accumulation._UNIT", 2.0**-17)
    with pytest.raises(SensitivityMismatchError, match="rounding in float64 may have moved the sum"):
        session.backward(nn.functional.cross_entropy(model(inputs), targets, reduction="none"))
    assert session.steps == 0


def test_too_many_values_for_the_grid_are_refused_at_set_up() -> None:
    with pytest.raises(InvalidArgumentError, match="may move the sum by more"):
        GridNoise(64.0).rounding(1.0, 10**9)
    model = nn.Linear(6, 3)
    mechanism = plan(noise_multiplier=1.0, noise_schedule=(1.0, 2.0**22, 1.0))
    with pytest.raises(InvalidArgumentError, match="may move the sum by more"):
        privatize(model, torch.optim.SGD(model.parameters(), lr=0.1), mechanism)


def test_without_noise_the_sum_is_handed_out_as_it_is() -> None:
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session = privatize(model, optimizer, plan(noise_multiplier=0.0, clipping=FlatClipping(1e-3)))
    inputs, targets = (part[:1] for part in data().tensors)
    seen = releases_of(model, optimizer)
    session.backward(nn.functional.cross_entropy(model(inputs), targets, reduction="none"))
    optimizer.step()
    norm = float((10 * seen[0].double()).norm())
    assert norm == pytest.approx(1e-3, rel=1e-5)
    assert norm <= 1e-3 * (1 + MEASURED)


def test_a_mechanism_takes_it_as_any_noise() -> None:
    mechanism = Mechanism(
        noise=GridNoise(1.0), clipping=FlatClipping(1.0), sampling=SAMPLING, expected_batch_size=4, steps=2
    )
    assert mechanism.noise_std == 1 + SHARE


def test_several_processes_are_refused_before_anything_is_trained() -> None:
    two = World(0, 2, None)
    with pytest.raises(InvalidArgumentError, match="GridNoise is for one process"):
        _require_divisible(plan(), two)
    _require_divisible(plan(noise_kind="gaussian"), two)
    _require_divisible(plan(), ALONE)


def test_the_command_line_prints_the_grid_of_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    trained(ledger=path).session.close()
    said = json.loads(CliRunner().invoke(ledger_command, ["show", str(path), "--json", "--delta", "1e-5"]).output)
    rounding = GridNoise(1.1).rounding(0.5, 21)
    assert rounding is not None
    assert (said["rounding_grid"], said["rounding_error"]) == (rounding.grid, rounding.error)
    assert "sums were rounded to a grid" in said["sentence"].lower()


def test_noise_that_is_missing_ends_training_on_a_grid_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise monitor watches it as it watches any noise."""

    def none(parts: Any, *, noise_std: float, spacing: float, divisor: float, stream: Any) -> list[torch.Tensor]:
        return [torch.round(part.total / spacing) * spacing / divisor for part in parts]

    monkeypatch.setattr("hushgrad.mechanism.grid.grid_updates", none)
    with pytest.raises(NoiseMismatchError, match="the noise of a step was"):
        trained()
    monkeypatch.undo()
    assert trained().session.noise_monitor.ratio == pytest.approx(1.0, abs=0.5)
