"""The graph of a loop's own loss, down to the model's outputs: known, vouched for, from inside the model, or unread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scalar_losses import (
    CLASSES,
    CLASSIFIED,
    FEATURES,
    LABELS,
    RARE,
    SPOKEN_CUT,
    WORDS,
    Loss,
    classifier,
    conditions,
    private_loop,
    speaker,
    trained,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

from hushgrad import DPSGD, FlatClipping, PoissonSampling, PrivacyEngine, privatize
from hushgrad.accounting.conditions import INNER_LOSS, OWN_LOSS, UNREAD_LOSS
from hushgrad.errors import CrossSampleLeakError


class Reversed(torch.autograd.Function):
    """An operator of the user's own."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Tensor:
        return -gradients


UNREAD: dict[str, tuple[Callable[[], nn.Module], Any, Loss]] = {
    "divided by what is not shown": (
        classifier,
        CLASSIFIED,
        lambda o, y: (o.square().sum() + o.exp().sum()) / len(y),
    ),
    "squares with weights of their own": (
        speaker,
        SPOKEN_CUT,
        lambda o, y: ((o - 1).square() * torch.linspace(1, 2, WORDS) * (y >= 0)[..., None]).sum() / len(y),
    ),
    "an operator without a rule": (
        classifier,
        CLASSIFIED,
        lambda o, y: torch.linalg.matrix_exp(torch.diag_embed(o.tanh())).mean(),
    ),
    "an operator of the loop's own": (
        classifier,
        CLASSIFIED,
        lambda o, y: F.cross_entropy(Reversed.apply(o), y),
    ),
    "a loop over the examples": (
        classifier,
        CLASSIFIED,
        lambda o, y: sum((F.cross_entropy(o[i], y[i]) for i in range(len(y))), torch.tensor(0.0)) / len(y),
    ),
    "a loop over slices of one example": (
        classifier,
        CLASSIFIED,
        lambda o, y: (
            sum((F.cross_entropy(o[i : i + 1], y[i : i + 1]) for i in range(len(y))), torch.tensor(0.0)) / len(y)
        ),
    ),
    "means of slices of one example": (
        classifier,
        CLASSIFIED,
        lambda o, y: torch.stack([(o[i : i + 1] - 1).square().mean() for i in range(len(y))]).mean(),
    ),
    "two parts of the batch": (
        classifier,
        CLASSIFIED,
        lambda o, y: (4 * (o[:4] - 1).square().mean() + (len(y) - 4) * (o[4:] - 1).square().mean()) / len(y),
    ),
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_loss_that_cannot_be_read_is_trained_on_trust_and_this_is_said(name: str) -> None:
    model, data, loss = UNREAD[name]
    engine = trained(model(), data, loss)
    assert conditions(engine) == {UNREAD_LOSS.name}


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_part_changes_nothing(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, CLASSES)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = checkpoint(self.first, inputs.requires_grad_(), use_reentrant=reentrant)
            return self.last(hidden)

    assert OWN_LOSS.name in conditions(trained(Checkpointed(), CLASSIFIED, F.cross_entropy))
    with pytest.raises(CrossSampleLeakError):
        trained(Checkpointed(), TensorDataset(FEATURES, RARE), F.cross_entropy)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_hooks_of_the_user_s_on_the_model_change_nothing() -> None:
    def hooked() -> nn.Module:
        model = classifier()
        model.register_full_backward_hook(lambda module, into, out: None)
        model.register_forward_hook(lambda module, inputs, output: output * 1.0)
        return model

    assert OWN_LOSS.name in conditions(trained(hooked(), CLASSIFIED, lambda o, y: F.cross_entropy(o, y)))
    with pytest.raises(CrossSampleLeakError):
        trained(hooked(), CLASSIFIED, lambda o, y: F.cross_entropy(o @ o.T, torch.arange(len(o))))


REDUCED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared": lambda one, other: one**2,
    "logarithm": lambda one, other: one.log(),
    "exponential": lambda one, other: one.clamp(max=5).exp(),
    "cut": lambda one, other: F.relu(one - 2),
    "flooded": lambda one, other: (one - 0.1).abs() + 0.1,
    "product of two": lambda one, other: one * other,
    "quotient of two": lambda one, other: one / other,
    "root of a sum": lambda one, other: (one + other).sqrt(),
}

KEPT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "as it is": lambda one, other: one,
    "multiplied": lambda one, other: one * 3,
    "scaled by a tensor": lambda one, other: one * torch.tensor(65536.0),
    "divided for accumulation": lambda one, other: one / 4,
    "sum of two": lambda one, other: 0.5 * one + 0.5 * other,
    "sum of a list": lambda one, other: sum([one, other], torch.tensor(0.0)),
    "mean of two": lambda one, other: torch.stack([one, other]).mean(),
    "mean of a number": lambda one, other: one.mean(),
    "as another dtype": lambda one, other: one.double(),
    "less a constant": lambda one, other: -(1 - one),
}


def examined_elsewhere(change: Callable[[Tensor, Tensor], Tensor], reduction: str) -> PrivacyEngine:
    model = classifier()
    engine, optimizer, loader = private_loop(model, CLASSIFIED, loss_reduction=reduction)
    criterion = engine.per_example(nn.CrossEntropyLoss(reduction=reduction))
    for _, (inputs, targets) in zip(range(2), loader, strict=False):
        outputs = model(inputs)
        change(criterion(outputs, targets), criterion(0.5 * outputs, targets)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return engine


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", REDUCED)
def test_a_function_of_a_loss_that_was_examined_elsewhere_is_refused_if_it_is_not_linear(
    name: str, reduction: str
) -> None:
    with pytest.raises(CrossSampleLeakError, match="over all examples"):
        examined_elsewhere(REDUCED[name], reduction)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", KEPT)
def test_a_linear_function_of_losses_that_were_examined_elsewhere_is_no_condition(name: str, reduction: str) -> None:
    found = conditions(examined_elsewhere(KEPT[name], reduction))
    assert not found & {OWN_LOSS.name, UNREAD_LOSS.name, INNER_LOSS.name}


def test_a_function_of_an_examined_loss_that_cannot_be_read_is_a_condition() -> None:
    assert UNREAD_LOSS.name in conditions(examined_elsewhere(lambda one, other: Reversed.apply(one), "mean"))


class Keeping(nn.Module):
    """Keeps what is computed inside, for a loss of the loop's."""

    def __init__(self, returns: bool, checkpoints: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, CLASSES)
        self.returns, self.checkpoints = returns, checkpoints
        self.kept: Tensor | None = None

    def forward(self, inputs: Tensor) -> Any:
        if self.checkpoints:
            hidden = checkpoint(self.first, inputs.requires_grad_(), use_reentrant=True)
        else:
            hidden = self.first(inputs)
        self.kept = hidden if torch.is_grad_enabled() and not self.returns else None
        outputs = self.last(hidden.tanh())
        return (outputs, hidden) if self.returns else outputs


def with_inner_values(model: nn.Module, way: str, data: Any = CLASSIFIED, **settings: Any) -> PrivacyEngine:
    """Train two steps with a squared mean of hidden values beside the outputs' loss."""
    engine, optimizer, loader = private_loop(model, data, **settings)
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for _, (inputs, targets) in zip(range(2), loader, strict=False):
        found = model(inputs)
        outputs, hidden = found if isinstance(found, tuple) else (found, model.kept)
        inner = 1e-3 * hidden.square().sum(1)
        if way == "session":
            engine.session.backward(F.cross_entropy(outputs, targets, reduction="none") + inner)
        elif way == "criterion":
            (criterion(outputs, targets) + inner.mean()).backward()
        else:
            (F.cross_entropy(outputs, targets) + inner.mean()).backward()
        model.kept = None
        optimizer.step()
        optimizer.zero_grad()
    return engine


@pytest.mark.parametrize("way", ["scalar", "criterion", "session"])
@pytest.mark.parametrize("checkpoints", [False, True], ids=["", "checkpointed"])
def test_values_from_inside_the_model_in_a_loss_are_a_condition(way: str, checkpoints: bool) -> None:
    found = conditions(with_inner_values(Keeping(False, checkpoints), way))
    assert INNER_LOSS.name in found
    assert OWN_LOSS.name not in found


@pytest.mark.parametrize("way", ["scalar", "criterion", "session"])
def test_values_that_the_model_returns_are_none_from_inside(way: str) -> None:
    assert INNER_LOSS.name not in conditions(with_inner_values(Keeping(True), way))


def test_values_from_inside_the_model_are_found_in_a_loss_too_long_to_be_read() -> None:
    model = Keeping(False)
    engine, _, loader = private_loop(model, CLASSIFIED)
    inputs, targets = next(iter(loader))
    outputs = model(inputs)
    long = sum((outputs[0, 0] * 1e-6 for _ in range(150)), torch.tensor(0.0))
    assert model.kept is not None
    ((F.cross_entropy(outputs, targets) + long) + model.kept.square().mean()).backward()
    assert conditions(engine) == {INNER_LOSS.name, UNREAD_LOSS.name}


@pytest.mark.parametrize("kept", [True, False])
def test_values_from_inside_the_model_are_a_condition_without_a_loader_too(kept: bool) -> None:
    model = Keeping(returns=not kept)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.2), expected_batch_size=12
    )
    session = privatize(model, optimizer, mechanism)
    found = model(FEATURES[:12])
    outputs, hidden = (found, model.kept) if kept else found
    session.backward(F.cross_entropy(outputs, LABELS[:12], reduction="none") + hidden.square().sum(1))
    assert (INNER_LOSS in session._parts.probe.conditions) == kept
