"""The façade: an ordinary loop, with the noise and the charge that the mathematics asks for."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import DPSGD, DisjointBatches, FlatClipping, PoissonSampling, PrivacyEngine, privatize
from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.events.disjoint_pass import DisjointPass
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.errors import BudgetExhaustedError, ProtocolError
from hushgrad.randomness import KeyStream

HUGE = 1e6
"""A clip norm that clips nothing."""


def regression(count: int = 20, dtype: torch.dtype = torch.float64) -> TensorDataset:
    return TensorDataset(torch.randn(count, 6, dtype=dtype), torch.randn(count, 4, dtype=dtype))


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    # Without biases: Muon takes matrices only.
    return nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 4, bias=False)).to(dtype)


OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "SGD, one by one": lambda p: torch.optim.SGD(p, lr=0.1, foreach=False),
    "SGD, fused": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "Adam, fused": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
    "Muon": lambda p: torch.optim.Muon(p, lr=0.1),
}


def train_ordinarily(model: nn.Module, optimizer: Any, data: TensorDataset, reduction: str, passes: int = 2) -> None:
    for _ in range(passes):
        for x, y in DataLoader(data, batch_size=8):
            optimizer.zero_grad()
            per_example = (model(x) - y).square().mean(1)
            # B is the declared batch size, also for the short last batch.
            (per_example.sum() / 8 if reduction == "mean" else per_example.sum()).backward()
            optimizer.step()


def train_without_noise(
    model: nn.Module, optimizer: Any, data: TensorDataset, reduction: str, physical: int | None, passes: int = 2
) -> None:
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=8),
        noise_multiplier=0,
        max_grad_norm=HUGE,
        loss_reduction=reduction,
        poisson_sampling=False,
        max_physical_batch_size=physical,
    )
    criterion = engine.per_example(lambda output, target: (output - target).square().mean(1))
    for _ in range(passes):
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
    engine.session.close()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_noise_and_a_huge_clip_norm_is_exactly_the_ordinary_optimizer(name: str, reduction: str) -> None:
    data, model = regression(), network()
    plain = copy.deepcopy(model)
    train_ordinarily(plain, OPTIMIZERS[name](plain.parameters()), data, reduction)
    train_without_noise(model, OPTIMIZERS[name](model.parameters()), data, reduction, physical=3)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("physical", [1, 5, 8, None])
def test_the_size_of_physical_batches_does_not_change_the_update(physical: int | None) -> None:
    data, model = regression(), network()
    plain = copy.deepcopy(model)
    train_ordinarily(plain, torch.optim.SGD(plain.parameters(), lr=0.1), data, "mean")
    train_without_noise(model, torch.optim.SGD(model.parameters(), lr=0.1), data, "mean", physical)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_a_plain_scalar_loss_trains_as_the_checked_criterion_does() -> None:
    """Guarantee: the scalar it returns is the mean (or the sum) of B losses of which each belongs to one example."""
    data, model = regression(), network()

    def trained(reduction: str, checked: bool) -> list[Tensor]:
        own = copy.deepcopy(model)
        engine = PrivacyEngine(test_key=1)
        own, optimizer, loader = engine.make_private(
            module=own,
            optimizer=torch.optim.SGD(own.parameters(), lr=0.1),
            data_loader=DataLoader(data, batch_size=8),
            noise_multiplier=0.5,
            max_grad_norm=0.3,
            loss_reduction=reduction,
            max_physical_batch_size=3,
        )
        plain = nn.MSELoss(reduction=reduction)
        criterion = engine.per_example(plain) if checked else plain
        for x, y in loader:
            criterion(own(x), y).backward()
            optimizer.step()
        return [parameter.detach() for parameter in own.parameters()]

    for reduction in ("mean", "sum"):
        for ours, theirs in zip(trained(reduction, True), trained(reduction, False), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


# Noise -------------------------------------------------------------------------------------------------------------


class Wide(nn.Module):
    """A million values that are used and half a million that are not."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.used = nn.Linear(1000, 1000, bias=False, dtype=dtype)
        self.unused = nn.Parameter(torch.zeros(500_000, dtype=dtype))
        nn.init.zeros_(self.used.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def one_step(
    noise_multiplier: float,
    *,
    reduction: str = "mean",
    physical: int | None = None,
    rate: float = 0.2,
    key: int | None = 9,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """The update of one step, C = 0.7 and B = 40 · rate, read off SGD with a learning rate of 1."""
    model = Wide(dtype)
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(40, 1000, generator=generator).to(dtype))
    engine = PrivacyEngine(test_key=key)
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=DataLoader(data, batch_size=int(40 * rate)),
        noise_multiplier=noise_multiplier,
        max_grad_norm=0.7,
        loss_reduction=reduction,
        max_physical_batch_size=physical,
    )
    for (x,) in loader:
        losses = model(x).sum(1)
        (losses.mean() if reduction == "mean" else losses.sum()).backward()
        optimizer.step()
        if engine.last_step_updated:
            break
    return {name: -parameter.detach().double() for name, parameter in model.named_parameters()}


def noise_of(sigma: float, **options: Any) -> dict[str, Tensor]:
    """The update of a step less that of the same step without noise: the same key draws the same examples."""
    with_noise, without = one_step(sigma, **options), one_step(0.0, **options)
    return {name: with_noise[name] - without[name] for name in with_noise}


@pytest.mark.statistical
@pytest.mark.parametrize("physical", [1, 5, None])
@pytest.mark.parametrize(("reduction", "divisor"), [("mean", 8), ("sum", 1)])
def test_the_noise_has_std_sigma_c_over_expected_b_for_mean_and_sigma_c_for_sum(
    reduction: str, divisor: int, physical: int | None
) -> None:
    """Guarantee: the noise of the result has standard deviation noise_std / divisor.

    1.5e6 values: 0.5% is 8.7 standard errors of a standard deviation, so a false alarm has probability 1e-17. The draw
    has another size than 8 (checked below), and noise added once per physical batch would be 2.8 times too strong.
    """
    noise = torch.cat([part.reshape(-1) for part in noise_of(1.3, reduction=reduction, physical=physical).values()])
    assert noise.numel() >= 10**6
    assert noise.std().item() == pytest.approx(1.3 * 0.7 / divisor, rel=5e-3)
    assert abs(noise.mean().item()) < 6 * 1.3 * 0.7 / divisor / noise.numel() ** 0.5


def test_the_draw_of_the_noise_tests_is_not_of_the_expected_size() -> None:
    engine = PrivacyEngine(test_key=9)
    model = Wide()
    _, _, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=DataLoader(TensorDataset(torch.zeros(40, 1000)), batch_size=8),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    (x,) = next(iter(loader))
    assert x.shape[0] == 5
    assert loader.batch_size == 8


@pytest.mark.statistical
def test_unused_parameters_get_the_same_noise_as_used_ones() -> None:
    """Guarantee: every trainable parameter gets noise in every update, used or not.

    500,000 values: 0.5% is 5 standard errors, false alarm 6e-7.
    """
    unused = noise_of(2.0)["unused"]
    assert unused.std().item() == pytest.approx(2.0 * 0.7 / 8, rel=5e-3)


@pytest.mark.statistical
def test_a_parameter_in_sixteen_bits_gets_noise_drawn_in_float32_and_rounded_once() -> None:
    """bfloat16 has 8 significant bits: rounding once leaves the standard deviation as it is to 1e-5 (false alarm of
    the 0.5%: 6e-7), and noise drawn in float32 takes more values near 0 than a bfloat16 uniform could give."""
    unused = noise_of(1.0, dtype=torch.bfloat16, reduction="sum")["unused"]
    assert unused.std().item() == pytest.approx(0.7, rel=5e-3)
    assert unused.abs().max().item() > 4.5 * 0.7  # 3 values in 500,000 are expected beyond 4.5, none with 2e-2
    assert unused.unique().numel() > 2000


@pytest.mark.statistical
def test_a_parameter_in_float64_gets_noise_of_64_bits() -> None:
    unused = noise_of(1.0, dtype=torch.float64)["unused"]
    assert (unused.float().double() != unused).float().mean() > 0.99
    assert unused.std().item() == pytest.approx(0.7 / 8, rel=5e-3)


@pytest.mark.statistical
def test_runs_with_the_same_seeds_of_torch_numpy_and_python_have_unrelated_noise() -> None:
    """Guarantee: the draws depend on the stream alone, never on the seeds of torch, NumPy or Python.

    The correlation of n = 500,000 independent pairs is N(0, 1/n): beyond 6/sqrt(n) with probability 2e-9. The keys are
    the operating system's, as they are what is tested.
    """
    noises = []
    for _ in range(2):
        torch.manual_seed(42)
        np.random.seed(42)
        random.seed(42)
        noises.append(one_step(1.0, key=None)["unused"])
    first, second = noises
    correlation = (first * second).mean() / (first.std() * second.std())
    assert abs(correlation.item()) < 6 / first.numel() ** 0.5
    assert not torch.equal(first, second)


def test_noise_takes_nothing_from_the_global_generators() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    torch_state = before[0].clone()
    noise_only = PrivacyEngine()
    model = nn.Linear(3, 2)
    torch.set_rng_state(torch_state)
    model, optimizer, loader = noise_only.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=DataLoader(TensorDataset(torch.zeros(10, 3)), batch_size=5),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    item = next(iter(loader))
    state = torch.get_rng_state()  # torch's own DataLoader draws a seed for its workers when it is iterated
    model(item[0]).sum(1).mean().backward()
    optimizer.step()
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


@pytest.mark.statistical
def test_successive_updates_and_different_parameters_have_unrelated_noise() -> None:
    """Guarantee: no noise is drawn twice, and an update is written whole or not at all.

    Correlations of n = 200,000 pairs beyond 6/sqrt(n): 2e-9 each, 1e-7 for all 28 pairs.
    """
    model = nn.ParameterDict({"a": nn.Parameter(torch.zeros(200_000)), "b": nn.Parameter(torch.zeros(200_000))})
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.5), expected_batch_size=1
    )
    session = privatize(model, optimizer, mechanism, key=KeyStream.fixed_for_tests(3))
    draws = []
    for _ in range(4):
        before = [parameter.detach().clone() for parameter in model.values()]
        session.backward(torch.zeros(0))
        optimizer.step()
        draws += [old - parameter.detach() for old, parameter in zip(before, model.values(), strict=True)]
    correlations = torch.corrcoef(torch.stack(draws).double())
    off_diagonal = correlations - torch.eye(len(draws))
    assert off_diagonal.abs().max().item() < 6 / 200_000**0.5


# What comes back, and what it costs --------------------------------------------------------------------------------


def private_digits(
    engine: PrivacyEngine, *, count: int = 40, batch_size: int = 10, **options: Any
) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    model = network(torch.float32)
    settings: dict[str, Any] = {"max_grad_norm": 1.0, **options}
    if "target_epsilon" in settings:
        make = engine.make_private_with_epsilon
    else:
        make = engine.make_private
        settings = {"noise_multiplier": 1.0, **settings}
    return make(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(regression(count, torch.float32), batch_size=batch_size),
        **settings,
    )


def train_one_pass(engine: PrivacyEngine, model: nn.Module, optimizer: Any, loader: Any) -> int:
    updates = 0
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        updates += engine.last_step_updated
    return updates


@pytest.mark.parametrize("poisson", [True, False])
def test_make_private_returns_the_same_objects_and_always_three_values(poisson: bool) -> None:
    """Guarantee: `make_private` returns the same model and optimizer objects, and always three values."""
    for options in ({"noise_multiplier": 1.0}, {"target_epsilon": 3.0, "target_delta": 1e-5, "epochs": 2}):
        engine, model = PrivacyEngine(), network(torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        make = engine.make_private if "noise_multiplier" in options else engine.make_private_with_epsilon
        returned = make(
            module=model,
            optimizer=optimizer,
            data_loader=DataLoader(regression(20, torch.float32), batch_size=5),
            max_grad_norm=1.0,
            poisson_sampling=poisson,
            **options,
        )
        assert len(returned) == 3
        assert returned[0] is model
        assert returned[1] is optimizer
        assert len(returned[2]) == 4
        assert type(model) is nn.Sequential
        assert type(optimizer) is torch.optim.SGD


def test_the_mechanism_says_what_make_private_was_told() -> None:
    engine = PrivacyEngine()
    private_digits(engine, noise_multiplier=1.5, max_grad_norm=0.3, loss_reduction="sum")
    mechanism = engine.mechanism
    assert (mechanism.noise_multiplier, mechanism.noise_std) == (1.5, 1.5 * 0.3)
    assert mechanism.sampling == PoissonSampling(10 / 40)
    assert mechanism.expected_batch_size == 10
    assert mechanism.divisor == 1
    assert mechanism.steps is None


def test_epsilon_is_0_before_the_first_step_and_grows_with_every_step() -> None:
    engine = PrivacyEngine()
    assert engine.get_epsilon(1e-5) == 0
    model, optimizer, loader = private_digits(engine)
    assert engine.get_epsilon(1e-5) == 0
    spent = [0.0]
    for x, y in loader:
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        spent.append(engine.get_epsilon(1e-5))
    assert spent == sorted(spent)
    assert len(set(spent)) == len(loader) + 1
    assert spent[-1] == epsilon([(PoissonSampled(10 / 40, 1.0), 4)], 1e-5)


def test_without_noise_epsilon_is_infinite_and_the_sentence_says_not_private() -> None:
    engine = PrivacyEngine()
    model, optimizer, loader = private_digits(engine, noise_multiplier=0)
    train_one_pass(engine, model, optimizer, loader)
    assert engine.get_epsilon(1e-5) == float("inf")
    assert "NOT PRIVATE" in str(engine.guarantee(1e-5))
    assert not engine.guarantee(1e-5).private


def test_a_fixed_key_is_marked_not_private() -> None:
    engine = PrivacyEngine(test_key=1)
    model, optimizer, loader = private_digits(engine)
    train_one_pass(engine, model, optimizer, loader)
    assert "NOT PRIVATE" in str(engine.guarantee(1e-5))


def test_the_sentence_beside_epsilon_names_adjacency_sampling_and_declared_constants() -> None:
    engine = PrivacyEngine()
    model, optimizer, loader = private_digits(engine)
    train_one_pass(engine, model, optimizer, loader)
    sentence = str(engine.guarantee(1e-5))
    for condition in ("add/remove-one", "Poisson", "observed", "N = 40", "batch size 10", "1e-05"):
        assert condition in sentence
    assert "NOT PRIVATE" not in sentence


def test_the_callers_own_batches_are_charged_without_amplification_under_zero_out() -> None:
    engine = PrivacyEngine()
    model, optimizer, loader = private_digits(engine, poisson_sampling=False)
    for _ in range(3):
        train_one_pass(engine, model, optimizer, loader)
    assert engine.mechanism.sampling == DisjointBatches()
    assert engine.guarantee(1e-5).adjacency == "zero-out"
    assert engine.get_epsilon(1e-5) == pytest.approx(epsilon([(DisjointPass(1.0, i), 1) for i in range(3)], 1e-5))
    amplified = PrivacyEngine()
    model, optimizer, loader = private_digits(amplified)
    for _ in range(3):
        train_one_pass(amplified, model, optimizer, loader)
    assert amplified.get_epsilon(1e-5) < engine.get_epsilon(1e-5)


# The budget --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("physical", [None, 3])
def test_calibrated_training_stops_after_exactly_epochs_times_len_loader_steps(physical: int | None) -> None:
    engine = PrivacyEngine()
    model, optimizer, loader = private_digits(
        engine, target_epsilon=2.0, target_delta=1e-5, epochs=2, max_physical_batch_size=physical
    )
    updates = sum(train_one_pass(engine, model, optimizer, loader) for _ in range(2))
    assert updates == 2 * len(loader) == engine.session.steps
    assert engine.get_epsilon(1e-5) <= 2.0
    assert engine.get_epsilon(1e-5) == pytest.approx(2.0, rel=1e-3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BudgetExhaustedError):
        train_one_pass(engine, model, optimizer, loader)
    assert engine.session.steps == updates
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not engine.last_step_updated


def test_the_budget_counts_steps_of_earlier_sessions_with_the_same_ledger(tmp_path: Path) -> None:
    """Guarantee: a mechanism with a limit of steps or passes spends no more than it plans, also over several sessions
    with one ledger."""
    plan: dict[str, Any] = {"target_epsilon": 2.0, "target_delta": 1e-5, "epochs": 2}
    updates = 0
    for _ in range(3):
        engine = PrivacyEngine(ledger=tmp_path / "ledger.jsonl")
        model, optimizer, loader = private_digits(engine, **plan)
        for x, y in loader:
            nn.functional.mse_loss(model(x), y).backward()
            if engine.session.steps == 8:
                before = copy.deepcopy(model.state_dict())
                with pytest.raises(BudgetExhaustedError):
                    optimizer.step()
                assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
                break
            optimizer.step()
            updates += 1
            if updates == 3:
                break
        engine.session.close()
    assert updates == 3 + 4 + 1
    assert engine.get_epsilon(1e-5) <= 2.0


def test_planned_passes_over_disjoint_batches_are_a_limit_also_after_break_and_resume(tmp_path: Path) -> None:
    plan: dict[str, Any] = {"target_epsilon": 8.0, "target_delta": 1e-5, "epochs": 3, "poisson_sampling": False}
    engine = PrivacyEngine(ledger=tmp_path / "ledger.jsonl")
    model, optimizer, loader = private_digits(engine, **plan)
    train_one_pass(engine, model, optimizer, loader)
    for x, y in loader:  # the second pass is left after one step
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        break
    engine.session.close()
    resumed = PrivacyEngine(ledger=tmp_path / "ledger.jsonl")
    model, optimizer, loader = private_digits(resumed, **plan)
    assert train_one_pass(resumed, model, optimizer, loader) == 4
    with pytest.raises(BudgetExhaustedError):
        train_one_pass(resumed, model, optimizer, loader)
    passes = [
        event.pass_index for event, _ in resumed.session._parts.spending.events() if isinstance(event, DisjointPass)
    ]
    assert passes == [0, 1, 2]
    assert resumed.get_epsilon(1e-5) <= 8.0


def test_a_ledger_that_is_to_be_resumed_counts_before_the_first_step(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    engine = PrivacyEngine(ledger=path)
    model, optimizer, loader = private_digits(engine)
    train_one_pass(engine, model, optimizer, loader)
    engine.session.close()
    spent = engine.get_epsilon(1e-5)
    assert spent > 0
    assert PrivacyEngine(ledger=path).get_epsilon(1e-5) == spent


# Set-up ------------------------------------------------------------------------------------------------------------


def test_before_make_private_there_is_no_session_and_no_criterion() -> None:
    engine = PrivacyEngine()
    for ask in (
        lambda: engine.session,
        lambda: engine.mechanism,
        lambda: engine.per_example(nn.MSELoss()),
        lambda: engine.guarantee(1e-5),
    ):
        with pytest.raises(ProtocolError, match="make_private"):
            ask()


def test_an_engine_serves_one_model() -> None:
    engine = PrivacyEngine()
    private_digits(engine)
    with pytest.raises(ProtocolError, match="in use"):
        private_digits(engine)


def test_a_failed_make_private_leaves_an_ordinary_model_and_can_be_repeated() -> None:
    engine, model = PrivacyEngine(), network(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(regression(20, torch.float32), batch_size=5)

    def make(physical: int) -> Any:
        return engine.make_private(
            module=model,
            optimizer=optimizer,
            data_loader=loader,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            max_physical_batch_size=physical,
        )

    with pytest.raises(ValueError, match="max_physical_batch_size"):
        make(0)
    nn.functional.mse_loss(model(torch.randn(3, 6)), torch.randn(3, 4)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    optimizer.zero_grad()
    assert len(make(2)[2]) == 4
