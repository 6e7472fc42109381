"""A session without the façade: custom loops, the ledger, pausing and closing."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from private_loops import NO_NOISE, NOISY, attach, losses, network, same, values
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import DPSGD, DisjointBatches, FlatClipping, PrivacyEngine, privatize
from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.errors import (
    AccountingError,
    ClosedSessionError,
    ContractChangedError,
    CrossSampleLeakError,
    InvalidArgumentError,
    LedgerError,
    LossShapeError,
    NotEstablishedError,
    ProtocolError,
)
from hushgrad.randomness import KeyStream

# Custom loops ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(()), torch.zeros(3, 1), torch.zeros(2, 3), 1.0, None, [torch.zeros(())]],
    ids=["a scalar", "[b, 1]", "[b, t]", "a float", "None", "a list"],
)
def test_losses_that_are_not_one_number_per_example_are_refused(wrong: Any) -> None:
    _, _, session = attach()
    with pytest.raises(LossShapeError, match=r"\[b\]"):
        session.backward(wrong)
    assert session.steps == 0


# A session's own loader --------------------------------------------------------------------------------------------


def test_a_batch_size_that_is_not_rate_times_records_is_refused() -> None:
    _, _, session = attach()
    with pytest.raises(InvalidArgumentError, match=r"takes 7\.5 of 15 records"):
        session.batches(TensorDataset(torch.zeros(15, 3)))


def test_a_data_loader_that_is_not_the_mechanisms_is_refused() -> None:
    _, _, session = attach()
    with pytest.raises(InvalidArgumentError, match="expected batch size is 4"):
        session.batches_of(DataLoader(TensorDataset(torch.zeros(16, 3)), batch_size=4))


def test_a_session_has_one_loader_made_before_its_first_backward() -> None:
    data = TensorDataset(torch.randn(16, 3).double())
    _, _, session = attach()
    session.batches(data)
    with pytest.raises(ProtocolError, match="one loader"):
        session.batches(data)
    model, _, session = attach()
    session.backward(losses(model, torch.randn(4, 3).double()))
    with pytest.raises(ProtocolError, match="before its first backward"):
        session.batches(data)


def test_a_loader_of_disjoint_batches_is_as_long_as_they_are() -> None:
    _, _, session = attach(replace(NOISY, sampling=DisjointBatches()))
    loader = session.batches(TensorDataset(torch.zeros(16, 3)), batches=[range(5), [5], range(6, 16)])
    assert len(loader) == 3


# The ledger --------------------------------------------------------------------------------------------------------


def test_what_is_charged_is_the_mechanisms_event_once_per_step(tmp_path: Path) -> None:
    model, optimizer, session = attach(NOISY, ledger=tmp_path / "ledger")
    for _ in range(3):
        session.backward(losses(model, torch.randn(4, 3).double()))
        session.backward(losses(model, torch.randn(5, 3).double()))
        optimizer.step()
    assert read_ledger(tmp_path / "ledger").events == [(NOISY.event(), 3)]
    assert NOISY.event() == PoissonSampled(0.5, 1.0)
    assert session.epsilon(1e-5) == epsilon([(PoissonSampled(0.5, 1.0), 3)], 1e-5)


def test_a_second_session_with_the_same_ledger_is_refused_while_the_first_is_open(tmp_path: Path) -> None:
    _, optimizer, first = attach(NOISY, ledger=tmp_path / "ledger")
    first.backward(torch.zeros(0))
    _, _, second = attach(NOISY, ledger=tmp_path / "ledger")
    with pytest.raises(LedgerError):
        second.backward(torch.zeros(0))
    optimizer.step()
    first.close()
    second.backward(torch.zeros(0))


def test_a_resumed_ledger_counts_from_the_first_moment(tmp_path: Path) -> None:
    _, optimizer, session = attach(NOISY, ledger=tmp_path / "ledger")
    for _ in range(2):
        session.backward(torch.zeros(0))
        optimizer.step()
    before = session.guarantee(1e-5)
    session.close()
    _, _, resumed = attach(NOISY, ledger=tmp_path / "ledger")
    assert resumed.steps == 2
    assert resumed.epsilon(1e-5) == session.epsilon(1e-5) > 0
    assert resumed.guarantee(1e-5) == before
    assert "after 2 steps" in str(resumed.guarantee(1e-5))


@pytest.mark.parametrize(
    "changed",
    [
        replace(NOISY, clipping=FlatClipping(2.0)),
        replace(NOISY, expected_batch_size=9),
        replace(NOISY, loss_reduction="sum"),
    ],
    ids=["clip norm", "batch size", "reduction"],
)
def test_a_ledger_is_continued_under_its_own_contract_only(tmp_path: Path, changed: DPSGD) -> None:
    _, optimizer, session = attach(NOISY, ledger=tmp_path / "ledger")
    session.backward(torch.zeros(0))
    optimizer.step()
    session.close()
    _, _, other = attach(changed, ledger=tmp_path / "ledger")
    with pytest.raises(ContractChangedError):
        other.backward(torch.zeros(0))


def test_a_plan_is_not_continued_on_a_ledger_with_other_steps(tmp_path: Path) -> None:
    """Guarantee: a mechanism with a limit of steps or passes spends no more than it plans, also over several sessions
    with one ledger."""
    _, optimizer, session = attach(replace(NOISY, noise_multiplier=0.5), ledger=tmp_path / "ledger")
    session.backward(torch.zeros(0))
    optimizer.step()
    session.close()
    _, _, planned = attach(replace(NOISY, steps=10), ledger=tmp_path / "ledger")
    with pytest.raises(ContractChangedError, match="together they would spend more"):
        planned.backward(torch.zeros(0))
    _, optimizer, open_ended = attach(NOISY, ledger=tmp_path / "ledger")
    open_ended.backward(torch.zeros(0))
    optimizer.step()
    assert open_ended.epsilon(1e-5) == epsilon([(PoissonSampled(0.5, 0.5), 1), (PoissonSampled(0.5, 1.0), 1)], 1e-5)


def test_a_ledger_is_continued_under_its_own_neighbouring_relation_only(tmp_path: Path) -> None:
    model, optimizer, session = attach(NOISY, ledger=tmp_path / "ledger")
    loader = session.batches(TensorDataset(torch.randn(16, 3).double()))
    session.backward(losses(model, next(iter(loader))[0]))
    optimizer.step()
    session.close()
    _, _, other = attach(replace(NOISY, sampling=DisjointBatches()), ledger=tmp_path / "ledger")
    with pytest.raises(AccountingError):
        other.batches(TensorDataset(torch.randn(16, 3).double()), batches=[range(8)])


def test_epsilon_is_0_at_first_and_infinite_without_noise() -> None:
    _, optimizer, session = attach(NO_NOISE)
    assert session.epsilon(1e-5) == 0
    session.backward(torch.zeros(0))
    optimizer.step()
    assert session.epsilon(1e-5) == float("inf")
    assert "NOT PRIVATE" in str(session.guarantee(1e-5))


def test_a_fixed_key_marks_the_ledger_and_the_guarantee(tmp_path: Path) -> None:
    _, optimizer, session = attach(NOISY, ledger=tmp_path / "ledger", key=KeyStream.fixed_for_tests(1))
    session.backward(torch.zeros(0))
    optimizer.step()
    assert "NOT PRIVATE" in str(session.guarantee(1e-5))
    assert "NOT PRIVATE" in (tmp_path / "ledger").read_text()


def test_a_secret_key_of_the_callers_is_refused() -> None:
    """Two sessions with one key would draw the same noise."""
    for key in (KeyStream.from_operating_system(), 7):
        with pytest.raises(InvalidArgumentError, match="cancels"):
            attach(NOISY, key=key)


# Pausing and closing -----------------------------------------------------------------------------------------------


def test_close_gives_back_an_ordinary_model_and_optimizer() -> None:
    model, optimizer, session = attach(NOISY)
    plain = copy.deepcopy(model)
    session.backward(losses(model, torch.randn(4, 3).double()))
    session.close()
    session.close()
    x = torch.randn(4, 3).double()
    for one, stepper in ((model, optimizer), (plain, torch.optim.SGD(plain.parameters(), lr=0.1))):
        losses(one, x).sum().backward()
        stepper.step()
    assert same(values(model), values(plain))
    assert session.steps == 0
    with pytest.raises(ClosedSessionError):
        session.batches(TensorDataset(torch.zeros(16, 3)))


def test_a_deepcopy_and_a_saved_copy_of_a_private_model_are_ordinary_models() -> None:
    model, _, _ = attach(NOISY)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    x = torch.randn(4, 3).double()
    for other in (copy.deepcopy(model), torch.load(saved, weights_only=False)):
        losses(other, x).sum().backward()
        assert all(parameter.grad is not None for parameter in other.parameters())
        assert not any(name.startswith("_hush") for name in vars(other))


def test_no_attribute_is_put_on_the_model_its_parameters_or_the_optimizer() -> None:
    model, plain = network(), network()
    optimizer, other = torch.optim.SGD(model.parameters()), torch.optim.SGD(plain.parameters())
    session = privatize(model, optimizer, NO_NOISE)
    session.backward(losses(model, torch.randn(4, 3).double()))
    optimizer.step()
    losses(plain, torch.randn(4, 3).double()).sum().backward()
    other.step()
    pairs: Iterator[tuple[Any, Any]] = zip(
        [model, optimizer, *model.modules(), *model.parameters()],
        [plain, other, *plain.modules(), *plain.parameters()],
        strict=True,
    )
    for ours, theirs in pairs:
        assert vars(ours).keys() == vars(theirs).keys()
        assert type(ours) is type(theirs)


def test_the_mechanism_of_a_session_cannot_be_exchanged() -> None:
    _, _, session = attach()
    with pytest.raises(AttributeError):
        session.mechanism = NOISY  # type: ignore[misc]


def test_another_mechanism_than_dpsgd_is_refused() -> None:
    model = network()
    with pytest.raises(InvalidArgumentError, match="DPSGD"):
        privatize(model, torch.optim.SGD(model.parameters()), {"noise_multiplier": 1.0})  # type: ignore[arg-type]


def test_the_clipped_sum_holds_no_graph_of_the_forward() -> None:
    """Kept alive, it would hold the activations of every physical batch until the logical batch ends."""
    model, _, session = attach()
    session.backward(losses(model, torch.randn(4, 3).double()))
    assert all(not total.requires_grad for total in session._parts.update._sums.values())
    assert len(session._parts.update._sums) == 4


def test_a_loss_that_mixes_from_the_fourth_step_on_ends_the_account_of_the_three_before(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = PrivacyEngine(ledger=tmp_path / "run.jsonl", test_key=0)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(TensorDataset(torch.randn(32, 3), torch.randn(32, 2)), batch_size=8),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )

    def run() -> None:
        for _ in range(2):
            for x, y in loader:
                output = model(x)
                target = output.mean(0) if engine.session.steps == 3 else y
                (output - target).square().mean().backward()
                optimizer.step()

    with pytest.raises(CrossSampleLeakError):
        run()
    assert engine.session.steps == 3
    assert engine.get_epsilon(1e-5) == math.inf
    with pytest.raises(NotEstablishedError, match="DP301"):
        optimizer.step()
    engine.session.discard()
    with pytest.raises(NotEstablishedError):
        next(iter(loader))
    engine.session.close()
    assert epsilon(read_ledger(tmp_path / "run.jsonl").events, 1e-5) == math.inf
