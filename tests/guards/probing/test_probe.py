"""When a session probes: on its first batch of several examples, again after a change, and never past a refusal."""

from __future__ import annotations

import weakref
from typing import Any

import leaky_models
import pytest
import torch
import torch.nn.functional as F
from leaky_models import CLASSES, WIDTH
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import DPSGD, FlatClipping, PoissonSampling, PrivacyEngine, privatize
from hushgrad.errors import (
    CrossSampleLeakError,
    HushgradError,
    PrivateBufferError,
    ProtocolError,
    UnsupportedOptimizerError,
)
from hushgrad.guards.probing.kept_calls import KEPT_WHOLE
from hushgrad.session.session import Session


def classifier() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES))


def attached(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> tuple[Session, torch.optim.Optimizer]:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.1), expected_batch_size=4
    )
    return privatize(model, optimizer, mechanism), optimizer


def backward(session: Session, model: nn.Module, size: int) -> None:
    y = torch.arange(size) % CLASSES
    session.backward(F.cross_entropy(model(torch.randn(size, WIDTH)), y, reduction="none"))


def batches_of_four(model: nn.Module, count: int) -> tuple[PrivacyEngine, torch.optim.Optimizer, Any]:
    """Return an engine, an optimizer and a loader over `count` examples, four to an item, in their own batches."""
    engine = PrivacyEngine(test_key=1)
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        data_loader=DataLoader(TensorDataset(torch.randn(count, WIDTH), torch.arange(count) % CLASSES), batch_size=4),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    return engine, optimizer, loader


def test_no_update_is_released_before_the_model_was_probed_on_a_batch_of_at_least_two_examples() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, CLASSES), leaky_models.EarlyExit())
    session, optimizer = attached(model)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(HushgradError):
        backward(session, model, 4)
    with pytest.raises(HushgradError):
        optimizer.step()
    assert session.steps == 0
    assert all(torch.equal(p, kept) for p, kept in zip(model.parameters(), before, strict=True))


def test_a_refused_step_is_refused_again() -> None:
    """Catching the error and stepping once more releases nothing."""
    model = nn.Sequential(nn.Linear(WIDTH, CLASSES), leaky_models.StatisticsOnly())
    engine, optimizer, loader = batches_of_four(model, 8)
    x, y = next(iter(loader))
    F.cross_entropy(model(x), y).backward()
    for _ in range(3):
        with pytest.raises(PrivateBufferError, match=r"1\.seen"):
            optimizer.step()
    assert engine.session.steps == 0


def test_batches_of_one_example_postpone_the_probe_but_not_that_of_buffers() -> None:
    model = classifier()
    session, optimizer = attached(model)
    backward(session, model, 1)
    optimizer.step()
    assert not session.probe_report.examined
    backward(session, model, 3)
    optimizer.step()
    assert session.probe_report.examined

    follows = nn.Sequential(nn.Linear(WIDTH, CLASSES), leaky_models.StatisticsOnly())
    session, _ = attached(follows)
    with pytest.raises(PrivateBufferError):
        backward(session, follows, 1)


def test_a_model_is_probed_once() -> None:
    model = classifier()
    session, optimizer = attached(model)
    costs = []
    for _ in range(3):
        backward(session, model, 4)
        optimizer.step()
        costs.append((session.probe_report.calls, session.probe_report.forwards))
    assert costs == [costs[0]] * 3


def test_a_changed_model_is_probed_again() -> None:
    model = classifier()
    session, optimizer = attached(model)
    backward(session, model, 4)
    optimizer.step()
    model[1].register_forward_hook(lambda module, args, out: out + out.detach().mean())
    with pytest.raises(HushgradError, match=r"mean|mixes"):
        backward(session, model, 4)


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_backward_hook_that_comes_later_is_examined_too(register: str) -> None:
    """It mixes gradients and no outputs, so nothing but the probe can see it."""
    model = classifier()
    session, optimizer = attached(model)
    backward(session, model, 4)
    optimizer.step()
    if register == "register_full_backward_hook":
        model[2].register_full_backward_hook(lambda _, inner, outer: (inner[0] / inner[0].norm(),))
    else:
        model[2].register_full_backward_pre_hook(lambda _, outer: (outer[0] / outer[0].norm(),))
    with pytest.raises(CrossSampleLeakError):
        backward(session, model, 4)
    assert session.steps == 1


def test_a_model_that_went_to_eval_and_back_is_not_probed_again() -> None:
    model = classifier()
    session, optimizer = attached(model)
    for _ in range(2):
        backward(session, model, 4)
        optimizer.step()
        model.eval()
        model(torch.randn(4, WIDTH))
        model.train()
    assert session.probe_report.calls == 1


def test_every_call_of_the_first_batch_is_probed() -> None:
    model = classifier()
    session, optimizer = attached(model)
    out = model(torch.randn(4, WIDTH)) + model(torch.randn(4, WIDTH))
    session.backward(out.square().mean(1))
    optimizer.step()
    assert session.probe_report.calls == 2


def test_the_probe_changes_no_update() -> None:
    """The first update of a model is, without noise, the same as that of a session that probed before."""

    def first_update(probe_first: bool) -> Tensor:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(WIDTH, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES))
        mechanism = DPSGD(
            noise_multiplier=0.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.1), expected_batch_size=4
        )
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        session = privatize(model, optimizer, mechanism)
        x = torch.randn(4, WIDTH)
        for _ in range(2 if probe_first else 1):
            torch.manual_seed(4)
            session.backward(model(x).square().mean(1))
            if probe_first and not session.last_step_updated and session.steps == 0:
                session.discard()
                probe_first = False
        optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(first_update(False), first_update(True))


class Idle(torch.optim.SGD):
    """Forgets to update."""

    def step(self, closure: Any = None) -> None:
        return None


class ThroughData(torch.optim.SGD):
    """Writes to `.data`, as old optimizers do."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad, alpha=-group["lr"])


def test_an_optimizer_that_moves_no_weight_is_refused_at_the_first_step() -> None:
    model = classifier()
    session, optimizer = attached(model, Idle(model.parameters(), 0.1))
    backward(session, model, 4)
    with pytest.raises(UnsupportedOptimizerError, match="left every parameter"):
        optimizer.step()


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, ThroughData])
def test_an_optimizer_that_writes_is_not_refused_even_at_rate_0(make: Any, rate: float) -> None:
    model = classifier()
    session, optimizer = attached(model, make(model.parameters(), rate))
    backward(session, model, 4)
    optimizer.step()
    assert session.steps == 1


def test_an_optimizer_that_moves_no_weight_is_refused_at_the_first_step_after_a_rate_of_0() -> None:
    model = classifier()
    session, optimizer = attached(model, Idle(model.parameters(), 0.0))
    backward(session, model, 4)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    backward(session, model, 4)
    with pytest.raises(UnsupportedOptimizerError, match="left every parameter"):
        optimizer.step()


def test_a_second_backward_through_one_graph_says_so() -> None:
    model = classifier()
    session, _ = attached(model)
    losses = model(torch.randn(4, WIDTH)).square().mean(1)
    session.backward(losses)
    with pytest.raises(RuntimeError, match="second time"):
        session.backward(losses)


def test_a_backward_after_a_forward_without_gradients_says_so() -> None:
    model = classifier()
    session, _ = attached(model)
    with torch.no_grad():
        losses = model(torch.randn(4, WIDTH)).square().mean(1)
    with pytest.raises(ProtocolError, match="requires_grad is False"):
        session.backward(losses)


def test_criteria_are_examined_once_each() -> None:
    model = classifier()
    engine, optimizer, loader = batches_of_four(model, 12)
    one, two = engine.per_example(nn.CrossEntropyLoss()), engine.per_example(nn.MultiMarginLoss())
    for x, y in loader:
        out = model(x)
        (one(out, y) + 0.5 * two(out, y)).backward()
        optimizer.step()
    assert engine.session.probe_report.criteria == 2


def test_a_criterion_that_comes_later_is_examined_too() -> None:
    model = classifier()
    engine, optimizer, loader = batches_of_four(model, 12)
    good = engine.per_example(nn.CrossEntropyLoss())
    late = engine.per_example(lambda out, y: F.cross_entropy(out, y, reduction="none") / len(y))
    items = iter(loader)
    x, y = next(items)
    good(model(x), y).backward()
    optimizer.step()
    x, y = next(items)
    late(model(x), y).backward()
    with pytest.raises(CrossSampleLeakError, match="left out"):
        optimizer.step()
    assert engine.session.steps == 1


def test_a_model_that_cannot_run_on_one_example_alone_is_refused_with_the_cure() -> None:
    class Squeezes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x).unsqueeze(1).squeeze().softmax(1)

    model = Squeezes()
    session, _ = attached(model)
    with pytest.raises(HushgradError, match="squeeze"):
        backward(session, model, 4)


def test_an_evaluation_with_gradients_between_two_batches_is_not_kept() -> None:
    """A loop that forgets no_grad() in its evaluation holds no graph of it, and has nothing of it examined."""
    model = classifier()
    engine, optimizer, loader = batches_of_four(model, 8)
    criterion = engine.per_example(nn.CrossEntropyLoss())
    outputs = []
    for x, y in loader:
        criterion(model(x), y).backward()
        optimizer.step()
        model.eval()
        outputs.append(weakref.ref(model(torch.randn(7, WIDTH))))
        model.train()
    assert all(reference() is None for reference in outputs)
    assert engine.session.probe_report.calls == 1


def test_a_session_without_a_loader_keeps_one_evaluation_at_most() -> None:
    model = classifier()
    session, optimizer = attached(model)
    model.eval()
    outputs = [weakref.ref(model(torch.randn(7, WIDTH))) for _ in range(5)]
    model.train()
    assert sum(reference() is not None for reference in outputs) <= 1
    backward(session, model, 4)
    optimizer.step()
    assert session.probe_report.calls == 1


def test_many_calls_of_one_module_are_probed_by_a_few_of_them() -> None:
    model = classifier()
    session, optimizer = attached(model)
    out = torch.stack([model(torch.randn(4, WIDTH)) for _ in range(9)]).sum(0)
    session.backward(out.square().mean(1))
    optimizer.step()
    assert session.probe_report.calls == KEPT_WHOLE


class Scaled(nn.Module):
    """Divides by the largest value of the batch: a leak that no axis shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out / max(1.0, float(x.abs().max()))


@pytest.mark.parametrize("value", [0.0, 1e30, float("nan")])
@pytest.mark.parametrize("checked", [True, False], ids=["per_example", "own loss"])
def test_a_batch_that_is_overwritten_before_the_step_hides_no_leak_and_stops_no_honest_model(
    value: float, checked: bool
) -> None:
    for model in (Scaled(), nn.Linear(3, 2)):
        engine, data = PrivacyEngine(), TensorDataset(torch.randn(8, 3), torch.randint(0, 2, (8,)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = DataLoader(data, batch_size=8)
        _, _, items = engine.make_private(
            module=model,
            optimizer=optimizer,
            data_loader=loader,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            poisson_sampling=False,
        )
        criterion = engine.per_example(nn.CrossEntropyLoss()) if checked else nn.CrossEntropyLoss()
        x, y = next(iter(items))
        criterion(model(x), y).backward()
        x.fill_(value)
        y.fill_(77)
        if isinstance(model, Scaled):
            with pytest.raises(CrossSampleLeakError):
                optimizer.step()
        else:
            optimizer.step()
            assert engine.session.probe_report.examined
