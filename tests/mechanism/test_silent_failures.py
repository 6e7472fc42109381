"""Silent failures that are known of mechanisms beyond flat clipping: each is planted, and refused or found.

A silent failure trains well, prints an ε, and is not private. `ELSEWHERE` names the tests that plant the others.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import (
    DPSGD,
    AutomaticClipping,
    BallsInBinsSampling,
    ClipRule,
    CyclicPoissonSampling,
    FixedOrderBatches,
    FlatClipping,
    GroupwiseClipping,
    PerSampleAdaptiveClipping,
    PoissonSampling,
    PrivacyEngine,
    Session,
    optimal_banded,
    privatize,
    releases,
)
from hushgrad.clipping.bound import BoundRule
from hushgrad.errors import InvalidArgumentError, ParameterMismatchError, SensitivityMismatchError
from hushgrad.randomness import KeyStream
from hushgrad.session.checkpoint import Checkpoint
from hushgrad.strategies.buffered import BufferedStrategy

TESTS = Path(__file__).parents[1]
DATA = TensorDataset(torch.randn(14, 3, generator=torch.Generator().manual_seed(1)), torch.arange(14))

FOUND = "test_each_planted_failure_is_found"

ELSEWHERE = {
    "automatic: γ scales with the physical batch": "checks/verification/training/test_clip_rules.py",
    "automatic: γ = 0 and a gradient of norm 0": (
        "clipping/test_automatic.py::test_a_gradient_of_norm_0_has_a_factor_within_the_limit_whatever_a_mean_was_divided_by"
    ),
    "groups: a parameter in two groups or in none": (
        "clipping/test_bound.py::test_groups_that_are_no_partition_are_refused_naming_all_that_is_wrong"
    ),
    "groups: noise of σ·C_l each, charged as σ": (
        "clipping/test_groupwise.py::test_too_little_noise_for_the_groups_is_seen_when_a_rule_is_bound"
    ),
    "groups: the norm of an unused group divides": (
        "clipping/test_groupwise.py::test_the_norm_of_a_group_that_was_not_used_divides_nothing"
    ),
    "quantile: divided by the batch that was drawn": (
        "clipping/test_quantile.py::test_the_norm_moves_as_in_the_paper_by_the_expected_batch_size"
    ),
    "quantile: no noise on the count": "session/test_adaptive_norm.py::test_a_count_without_noise_ends_training",
    "quantile: noise once, count of every physical batch": (
        "session/test_adaptive_norm.py::test_the_count_is_of_all_physical_batches_and_the_norm_moves_with_the_update"
    ),
    "quantile: an example that is not finite": (
        "session/test_adaptive_norm.py::"
        "test_an_example_that_is_not_finite_counts_as_one_above_the_norm_whoever_is_beside_it"
    ),
    "quantile: clip and noise of two norms": (
        "session/test_adaptive_norm.py::test_clip_noise_and_count_of_a_step_use_one_norm"
    ),
    "quantile: padding is counted": (
        "session/test_adaptive_norm.py::test_padding_and_the_example_of_an_empty_draw_are_not_counted"
    ),
    "quantile: a ledger without the constants": (
        "session/test_adaptive_norm.py::test_the_ledger_names_all_constants_and_is_charged_the_noise_multiplier"
    ),
    "cyclic: plain Poisson sampling under banded noise": (
        "sampling/test_cyclic.py::test_a_sampler_whose_records_come_back_sooner_is_refused_before_they_are_handed_out"
    ),
    "cyclic: a rate above 1": (
        "sampling/test_cyclic.py::test_a_group_that_would_be_drawn_more_than_certainly_is_refused"
    ),
    "cyclic: groups drawn anew after a resume": (
        "session/test_correlated_noise.py::test_groups_that_are_drawn_anew_and_not_charged_are_refused"
    ),
    "cyclic: steps that are no multiple of the bands": (
        "accounting/events/test_blocks.py::test_a_block_costs_the_turns_of_the_group_that_has_most"
    ),
    "banded: the norm of the last columns": (
        "strategies/test_banded.py::test_no_column_of_any_prefix_has_a_norm_above_1_the_last_ones_included"
    ),
    "banded: a schedule on top": "session/test_correlated_noise.py::test_schedules_on_top_are_refused",
    "fixed order: shuffled in each pass": (
        "sampling/test_fixed_order.py::test_a_shuffled_loader_is_refused_in_the_pass_that_moves_a_record_forward"
    ),
    "buffered: a prefix costs more than is charged": (
        "accounting/events/test_blocks.py::test_a_buffered_block_costs_one_release_of_its_sensitivity"
    ),
    "strategies: coefficients below 0": (
        "strategies/test_buffered.py::test_series_whose_sensitivity_is_not_known_are_refused"
    ),
    "balls in bins: groups kept over passes": (
        "checks/verification/checks/test_allocation.py::test_what_is_no_random_allocation_is_found"
    ),
    "crash: released noise is drawn again": (
        "crash/test_correlated.py::test_after_a_crash_no_two_releases_are_more_correlated_than_fresh_noise"
    ),
    "crash: noise goes on after an interrupted step": (
        "session/test_correlated_noise.py::test_noise_of_a_step_that_was_interrupted_is_in_no_later_step"
    ),
    "crash: another partition without its charge": (
        "session/test_correlated_noise.py::test_steps_are_charged_as_one_block_and_a_resume_as_another"
    ),
    "monitors: correlated noise is judged as independent": (
        "session/test_correlated_noise.py::test_noise_that_is_not_correlated_as_charged_ends_training"
    ),
    "chosen rows: noise on touched rows alone": "checks/verification/training/test_chosen_rows.py::" + FOUND,
    "chosen rows: counts without noise": "checks/verification/training/test_chosen_rows.py::" + FOUND,
    "chosen rows: counts that are not clipped": "checks/verification/training/test_chosen_rows.py::" + FOUND,
    "chosen rows: the charge of the gradients alone": "checks/verification/training/test_chosen_rows.py::" + FOUND,
    "chosen rows: padding is counted": "session/test_sparse_tables.py::test_what_pads_a_batch_touches_no_row",
    "releases: features scaled by the records": (
        "releases/test_sensitivity.py::test_what_does_not_follow_from_the_record_alone_is_refused"
    ),
}


@pytest.mark.parametrize("failure", ELSEWHERE)
def test_a_failure_that_is_planted_elsewhere_is_planted_there(failure: str) -> None:
    path, _, name = ELSEWHERE[failure].partition("::")
    name = name or "test_a_silent_failure_that_is_planted_is_found"
    assert re.search(rf"^def {name}\(", (TESTS / path).read_text(encoding="utf-8"), re.MULTILINE)


# Clip rules ------------------------------------------------------------------------------------------------------


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def started(model: nn.Module, noise_multiplier: float = 0.0, **planned: Any) -> tuple[Session, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    given: dict[str, Any] = {"sampling": PoissonSampling(1.0), "clipping": FlatClipping(0.5), **planned}
    mechanism = DPSGD(noise_multiplier=noise_multiplier, **{"expected_batch_size": 14, **given})
    return privatize(model, optimizer, mechanism, key=KeyStream.fixed_for_tests(2)), optimizer


def update_of(rule: ClipRule, loss_reduction: str, rows: int | None, size: float = 0.01) -> Tensor:
    """Return the sum that is released of all records, without noise."""
    model = net()
    session, optimizer = started(model, clipping=rule, loss_reduction=loss_reduction)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    for x, _ in session.batches(DATA, max_physical_batch_size=rows):
        session.backward(model(x).square().sum(1) * size)
        optimizer.step()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    session.close()
    return (before - after) / 0.1 * session.mechanism.divisor


ADAPTIVE = [AutomaticClipping(0.5), PerSampleAdaptiveClipping(0.5)]


@pytest.mark.parametrize("rule", ADAPTIVE)
def test_gamma_in_units_of_a_mean_or_of_a_physical_batch(rule: ClipRule, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = update_of(rule, "mean", None)
    for reduction, rows in (("sum", None), ("mean", 1), ("mean", 5)):
        assert torch.allclose(update_of(rule, reduction, rows), whole, rtol=0, atol=2e-5)
    factors = BoundRule.factors
    monkeypatch.setattr(BoundRule, "factors", lambda self, n: factors(self, n / n.shape[1]) / n.shape[1])
    with pytest.raises(SensitivityMismatchError, match="another factor beside others than alone"):
        update_of(rule, "mean", 5)


@pytest.mark.parametrize("rule", [AutomaticClipping(0.5, 1e-4), PerSampleAdaptiveClipping(0.5, 1e-6)])
def test_a_factor_that_was_rounded_to_16_bits(rule: ClipRule, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = type(rule).factors
    monkeypatch.setattr(type(rule), "factors", lambda self, n: exact(self, n).bfloat16().double())
    with pytest.raises(SensitivityMismatchError):
        update_of(rule, "mean", None, size=1.0)


def test_a_tied_parameter_in_two_groups() -> None:
    model = net()
    model.append(nn.Linear(4, 2))
    model[3].weight = model[2].weight
    groups = (("0.weight", "0.bias", "2.weight", "2.bias"), ("3.weight", "3.bias"))
    with pytest.raises(InvalidArgumentError, match=r"not a trainable parameter: 3\.weight"):
        started(model, clipping=GroupwiseClipping(0.5, by=groups))


# Samplings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop_last", [False, True])
def test_records_that_are_left_over_at_the_end_of_a_pass(drop_last: bool) -> None:
    model = net()
    engine = PrivacyEngine(test_key=4)
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(DATA, batch_size=4, drop_last=drop_last),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        sampling="balls-in-bins",
    )
    assert engine.session.mechanism.sampling == BallsInBinsSampling(3 if drop_last else 4)
    seen: list[int] = []
    for x, _ in loader:
        seen += engine.session.current_batch.indices  # type: ignore[union-attr]
        engine.session.backward(model(x).square().sum(1))
        optimizer.step()
    assert sorted(seen) == list(range(14))
    engine.session.close()


# Correlated noise ------------------------------------------------------------------------------------------------


def test_coefficients_that_were_rounded_to_float32() -> None:
    """What runs and what is charged are one strategy in float64, whatever it was given in."""
    strategy = BufferedStrategy(tuple(np.float32([0.9, 0.3])), tuple(np.float32([0.3, 0.4])))
    assert {type(value) for value in (*strategy.decays, *strategy.weights)} == {float}
    assert strategy.decays == (float(np.float32(0.9)), float(np.float32(0.3)))
    assert strategy.describe() != BufferedStrategy((0.9, 0.3), (0.3, 0.4)).describe()
    event = FixedOrderBatches(4).correlated_event(1.0, strategy)
    again = FixedOrderBatches(4).correlated_event(1.0, BufferedStrategy(strategy.decays, strategy.weights))
    assert event == again
    assert event != FixedOrderBatches(4).correlated_event(1.0, BufferedStrategy((0.9, 0.3), (0.3, 0.4)))


def test_past_noise_in_a_checkpoint(tmp_path: Path) -> None:
    model = nn.Linear(3, 2000)
    session, optimizer = started(
        model, 1.0, strategy=optimal_banded(8, 4), sampling=CyclicPoissonSampling(1 / 4, 4), expected_batch_size=14 / 4
    )
    for x, _ in session.batches(DATA):
        session.backward(model(x).square().sum(1))
        optimizer.step()
    session.save_checkpoint(tmp_path / "kept")
    session.close()
    kept = Checkpoint.read(tmp_path / "kept")
    assert kept.model.keys() == model.state_dict().keys()
    assert kept.optimizer["state"] == {}
    size = sum(4 * parameter.numel() for parameter in model.parameters())
    assert (tmp_path / "kept").stat().st_size < size + 6000  # no copy of what is trained fits beside it
    assert session.state_dict().keys() == {"format", "run", "steps", "anchor", "is_on_disk"}


# What is trained, and what is released ---------------------------------------------------------------------------


def test_biases_alone_with_the_weights_of_a_layer_norm_or_without_the_head() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))

    trained = model()
    for name, parameter in trained.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    session, optimizer = started(trained, 1.0)
    for x, _ in session.batches(DATA):
        session.backward(trained(x).square().sum(1))
        optimizer.step()
    assert session.written.noise_std.keys() == {"0.bias", "1.bias", "2.bias"}
    moved = {name for name, value in trained.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"0.bias", "1.bias", "2.bias"}
    session.close()
    forgotten = model()
    optimizer = torch.optim.SGD(forgotten[:2].parameters(), lr=0.1)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(1.0), expected_batch_size=14
    )
    with pytest.raises(ParameterMismatchError, match=r"2\.weight"):
        privatize(forgotten, optimizer, mechanism)


@pytest.mark.parametrize("query", [releases.Mean(3, 1.0), releases.LeastSquares(3, 1, feature_norm=1.0)])
def test_features_that_were_standardised_on_the_data(query: releases.Query, tmp_path: Path) -> None:
    """Nobody can tell such constants from public ones: the guarantee names them, whatever the query."""
    x = DATA.tensors[0]
    scaled = (x - x.mean(0)) / x.std(0)
    data: Any = scaled if isinstance(query, releases.Mean) else [(row, 1.0) for row in scaled]
    session, _ = started(net(), 1.0)
    session.batches(DATA)
    session.release(query, data, noise_multiplier=5.0)
    said = str(session.guarantee(1e-5))
    assert "no constant read off the data (a mean, a maximum, a list of values)" in said
    session.close()
