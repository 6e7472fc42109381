"""A session without the façade: custom loops, the ledger, pausing and closing."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad.mechanism.gaussian
from hushgrad import DPSGD, DisjointBatches, FlatClipping, PoissonSampling, Session, privatize
from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.events.disjoint_pass import DisjointPass
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.errors import (
    AccountingError,
    BudgetExhaustedError,
    ClosedSessionError,
    ContractChangedError,
    InvalidArgumentError,
    LedgerError,
    LossShapeError,
    PrivacyUnitError,
    ProtocolError,
    StrayGradientError,
)
from hushgrad.guards.gradient_marks import shows_nothing
from hushgrad.randomness import KeyStream

NO_NOISE = DPSGD(noise_multiplier=0, clipping=FlatClipping(1e6), sampling=PoissonSampling(0.5), expected_batch_size=8)
NOISY = replace(NO_NOISE, noise_multiplier=1.0, clipping=FlatClipping(1.0))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def attach(
    mechanism: DPSGD = NO_NOISE, model: nn.Module | None = None, **options: Any
) -> tuple[nn.Module, Any, Session]:
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, privatize(model, optimizer, mechanism, **options)


def losses(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum(1)


def values(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# Custom loops ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[12], [5, 7], [1] * 12, [8, 0, 4], [0, 12, 0]])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_physical_batches_of_any_sizes_give_the_update_of_the_whole(sizes: list[int], reduction: str) -> None:
    x = torch.randn(12, 3, dtype=torch.float64)
    model, optimizer, session = attach(replace(NO_NOISE, loss_reduction=reduction))
    plain = copy.deepcopy(model)
    for part in x.split(sizes):
        session.backward(losses(model, part) if len(part) else torch.zeros(0))
        assert all(shows_nothing(parameter) for parameter in model.parameters())
    optimizer.step()
    (losses(plain, x).sum() / (8 if reduction == "mean" else 1)).backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert session.steps == 1


def test_an_empty_draw_changes_nothing_without_noise_everything_with_it_and_is_charged() -> None:
    for mechanism, changes in ((NO_NOISE, False), (NOISY, True)):
        model, optimizer, session = attach(mechanism)
        before = values(model)
        session.backward(torch.zeros(0))
        optimizer.step()
        assert session.steps == 1
        assert same(before, values(model)) is not changes


def test_each_example_is_clipped_by_itself_and_not_the_batch() -> None:
    x = torch.randn(12, 3, dtype=torch.float64)
    model, optimizer, session = attach(replace(NO_NOISE, clipping=FlatClipping(0.05), loss_reduction="sum"))
    wanted = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for row in x:
        gradients = torch.autograd.grad(losses(copy_of := copy.deepcopy(model), row[None]).sum(), copy_of.parameters())
        norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients))
        for total, gradient in zip(wanted, gradients, strict=True):
            total += gradient * min(1.0, 0.05 / norm.item())
    before = values(model)
    session.backward(losses(model, x))
    optimizer.step()
    for old, new, total in zip(before, values(model), wanted, strict=True):
        torch.testing.assert_close(old - new, 0.1 * total)


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


def test_losses_of_another_number_than_the_rows_of_the_model_are_refused() -> None:
    model, optimizer, session = attach()
    before = values(model)
    with pytest.raises(PrivacyUnitError):
        session.backward(losses(model, torch.randn(6, 3).double())[:3])
    with pytest.raises(ProtocolError, match=r"session\.discard"):
        optimizer.step()
    assert same(before, values(model))
    assert session.steps == 0


def test_an_ordinary_backward_without_a_loader_is_refused() -> None:
    model, _, _ = attach()
    with pytest.raises(PrivacyUnitError, match=r"session\.backward"):
        losses(model, torch.randn(4, 3).double()).sum().backward()


def test_a_failed_backward_must_be_discarded_before_the_logical_batch_begins_again() -> None:
    model, optimizer, session = attach()
    x = torch.randn(4, 3).double()
    plain = copy.deepcopy(model)
    session.backward(losses(model, torch.randn(2, 3).double()))
    with pytest.raises(RuntimeError):
        session.backward(torch.zeros(3))  # needs no gradient
    with pytest.raises(ProtocolError, match="did not end"):
        session.backward(losses(model, x))
    session.discard()
    session.backward(losses(model, x))
    optimizer.step()
    (losses(plain, x).sum() / 8).backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_same_graph_cannot_be_counted_twice() -> None:
    model, _, session = attach()
    found = losses(model, torch.randn(4, 3).double())
    session.backward(found)
    with pytest.raises(RuntimeError, match="second time"):
        session.backward(found)


def test_a_stray_gradient_is_refused_without_a_loader_too() -> None:
    model, optimizer, session = attach()
    session.backward(losses(model, torch.randn(4, 3).double()))
    model[0].weight.sum().backward()
    with pytest.raises(StrayGradientError, match=r"0\.weight"):
        optimizer.step()
    assert session.steps == 0


# A session's own loader --------------------------------------------------------------------------------------------


def test_a_sessions_own_loader_is_observed_and_takes_losses_of_each_item() -> None:
    data = TensorDataset(torch.randn(16, 3).double())
    model, optimizer, session = attach(NOISY)
    loader = session.batches(data, max_physical_batch_size=3)
    assert len(loader) == 2
    for (x,) in loader:
        session.backward(losses(model, x))
        optimizer.step()
    assert session.steps == 2
    assert "observed" in str(session.guarantee(1e-5))
    assert "N = 16" in str(session.guarantee(1e-5))


def test_without_a_loader_the_guarantee_says_that_the_sampling_was_declared() -> None:
    model, optimizer, session = attach(NOISY)
    assert "declared by the caller" in str(session.guarantee(1e-5))
    session.backward(losses(model, torch.randn(4, 3).double()))
    optimizer.step()
    assert "declared by the caller" in str(session.guarantee(1e-5))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_session_backward_over_a_loader_item_is_the_scalar_loss(reduction: str) -> None:
    data = TensorDataset(torch.randn(16, 3).double())
    model = network()
    results = []
    for by_session in (True, False):
        own, optimizer, session = attach(
            replace(NO_NOISE, loss_reduction=reduction),
            copy.deepcopy(model),
            key=KeyStream.fixed_for_tests(1),
        )
        for (x,) in session.batches(data, max_physical_batch_size=3):
            found = losses(own, x)
            if by_session:
                session.backward(found)
            else:
                (found.mean() if reduction == "mean" else found.sum()).backward()
            optimizer.step()
        results.append(values(own))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_losses_of_another_number_than_the_records_of_the_item_are_refused() -> None:
    model, _, session = attach()
    (x,) = next(iter(session.batches(TensorDataset(torch.randn(16, 3).double()))))
    with pytest.raises(LossShapeError, match="one for each example"):
        session.backward(losses(model, x)[1:])


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


def test_disjoint_batches_need_a_loader_that_sees_the_passes() -> None:
    mechanism = replace(NOISY, sampling=DisjointBatches())
    model, _, session = attach(mechanism)
    with pytest.raises(ProtocolError, match="where a pass ends"):
        session.backward(losses(model, torch.randn(4, 3).double()))


def test_a_loader_of_disjoint_batches_is_as_long_as_they_are() -> None:
    _, _, session = attach(replace(NOISY, sampling=DisjointBatches()))
    loader = session.batches(TensorDataset(torch.zeros(16, 3)), batches=[range(5), [5], range(6, 16)])
    assert len(loader) == 3


def test_disjoint_passes_are_charged_once_each_and_never_share_a_number(tmp_path: Path) -> None:
    mechanism = replace(NOISY, sampling=DisjointBatches())
    data = TensorDataset(torch.randn(16, 3).double())
    for run in range(2):
        model, optimizer, session = attach(mechanism, ledger=tmp_path / "ledger")
        loader = session.batches(data, batches=[range(8), range(8, 16)])
        for leave_after in (2, 1, 2):
            for count, (x,) in enumerate(loader, 1):
                session.backward(losses(model, x))
                optimizer.step()
                if count == leave_after:
                    break
        passes = [event.pass_index for event, _ in session.charged]  # type: ignore[union-attr]
        assert passes == list(range(3 * (run + 1)))
        assert session.epsilon(1e-5) == epsilon([(DisjointPass(1.0, i), 1) for i in passes], 1e-5)
        session.close()


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


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_the_charge_is_on_disk_before_noise_is_drawn_and_a_failure_there_updates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    """Guarantee: an update happens only after its charge is recorded."""
    model, optimizer, session = attach(NOISY, ledger=tmp_path / "ledger")
    before = values(model)
    drawn = 0
    on_disk = []
    real = hushgrad.mechanism.gaussian.noisy_updates

    def interrupted(*args: Any, **options: Any) -> list[Tensor]:
        nonlocal drawn
        drawn += 1
        on_disk.append(read_ledger(tmp_path / "ledger").steps)
        if drawn == 1:
            raise failure
        return real(*args, **options)

    monkeypatch.setattr(hushgrad.mechanism.gaussian, "noisy_updates", interrupted)
    session.backward(losses(model, torch.randn(4, 3).double()))
    with pytest.raises(failure):
        optimizer.step()
    assert on_disk == [1]
    assert same(before, values(model))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not session.last_step_updated
    with pytest.raises(ProtocolError):
        optimizer.step()
    session.backward(torch.zeros(0))
    optimizer.step()
    assert session.steps == 2


def test_an_interrupt_between_the_end_of_a_logical_batch_and_its_release_carries_no_sum_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Examples of the interrupted batch in the next update would double what one record may change."""
    x = torch.randn(16, 3).double()
    model, optimizer, session = attach(NO_NOISE)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hushgrad.session.session.release", interrupted)
        session.backward(losses(model, x))
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    before = values(model)
    session.backward(torch.zeros(0))
    optimizer.step()
    assert same(before, values(model))


def test_a_ledger_that_cannot_be_written_stops_training_before_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer, session = attach(NOISY, ledger=tmp_path / "ledger")
    session.backward(losses(model, torch.randn(4, 3).double()))
    before = values(model)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for _ in range(2):
        with pytest.raises(LedgerError):
            optimizer.step()
        assert same(before, values(model))
        assert all(parameter.grad is None for parameter in model.parameters())
        session.backward(losses(model, torch.randn(4, 3).double()))


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


def test_steps_are_a_hard_limit() -> None:
    model, optimizer, session = attach(replace(NOISY, steps=2))
    for _ in range(2):
        session.backward(torch.zeros(0))
        optimizer.step()
    before = values(model)
    for _ in range(2):
        session.backward(losses(model, torch.randn(4, 3).double()))
        with pytest.raises(BudgetExhaustedError):
            optimizer.step()
        assert same(before, values(model))
        assert session.steps == 2
        assert not session._parts.update._sums


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


def test_a_generators_step_through_a_paused_critic_is_ordinary_and_leaves_nothing_in_the_critic() -> None:
    critic, optimizer, session = attach()
    generator = nn.Linear(2, 3).double()
    plain_critic, plain_generator = copy.deepcopy(critic), copy.deepcopy(generator)
    noise, x = torch.randn(5, 2).double(), torch.randn(5, 3).double()
    with session.paused():
        losses(critic, generator(noise)).sum().backward()
    losses(plain_critic, plain_generator(noise)).sum().backward()
    torch.testing.assert_close(generator.weight.grad, plain_generator.weight.grad)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in critic.parameters())
    plain_critic.zero_grad()
    session.backward(losses(critic, x))
    optimizer.step()
    (losses(plain_critic, x).sum() / 8).backward()
    torch.optim.SGD(plain_critic.parameters(), lr=0.1).step()
    for ours, theirs in zip(critic.parameters(), plain_critic.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_pause_ends_also_with_an_exception_and_can_be_nested() -> None:
    model, _, session = attach()
    with pytest.raises(ZeroDivisionError), session.paused(), session.paused():
        raise ZeroDivisionError
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_step_inside_a_pause_is_refused() -> None:
    model, optimizer, session = attach()
    session.backward(losses(model, torch.randn(4, 3).double()))
    with session.paused(), pytest.raises(ContractChangedError, match="paused"):
        optimizer.step()
    optimizer.step()
    assert session.steps == 1


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


@pytest.mark.parametrize("shared", [True, False])
def test_a_model_made_private_again_says_which_of_its_steps_epsilon_does_not_count(
    shared: bool, tmp_path: Path
) -> None:
    model = nn.Linear(3, 2)
    sentences = []
    for number in range(3):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        mechanism = DPSGD(
            noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.1), expected_batch_size=4
        )
        session = privatize(model, optimizer, mechanism, ledger=tmp_path / ("one" if shared else f"{number}"))
        session.backward(model(torch.randn(4, 3)).square().sum(1))
        optimizer.step()
        sentences.append(str(session.guarantee(1e-5)))
        session.close()
    assert all("not counted" not in sentence for sentence in (sentences if shared else sentences[:1]))
    if not shared:
        assert "1 earlier step of this model" in sentences[1]
        assert "2 earlier steps of this model" in sentences[2]


def test_a_model_or_optimizer_has_one_open_session() -> None:
    model, optimizer, session = attach()
    for part in (model, nn.Sequential(model), model[0]):
        with pytest.raises(ProtocolError, match="already"):
            privatize(part, torch.optim.SGD(part.parameters(), lr=0.1), NO_NOISE)
    with pytest.raises(ProtocolError, match="already"):
        privatize(model, optimizer, NO_NOISE)
    session.close()
    privatize(model, optimizer, NO_NOISE)


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
