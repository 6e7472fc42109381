"""A loop's own scalar loss: what is no mean of one loss for each example is refused, and what is one is trained."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scalar_losses import (
    CLASSES,
    CLASSIFIED,
    FEATURES,
    FLAT,
    MEASURED,
    RARE,
    SPOKEN,
    SPOKEN_CUT,
    SPOKEN_LATE,
    WEIGHTS,
    WORDS,
    Calling,
    Loss,
    classifier,
    conditions,
    each,
    private_loop,
    rows,
    speaker,
    trained,
)
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hushgrad.accounting.conditions import LOSS_OF_MODEL, OUTSIDE_CALL, OWN_LOSS, UNREAD_LOSS
from hushgrad.errors import CrossSampleLeakError, HushgradError, LossShapeError
from hushgrad.guards.probing import scalar_loss

HONEST: dict[str, tuple[Callable[[], nn.Module], Any, Loss]] = {
    "cross entropy": (classifier, CLASSIFIED, F.cross_entropy),
    "of losses": (classifier, CLASSIFIED, lambda o, y: F.cross_entropy(o, y, reduction="none").mean()),
    "sum over B": (classifier, CLASSIFIED, lambda o, y: F.cross_entropy(o, y, reduction="none").sum() / len(y)),
    "smoothed": (classifier, CLASSIFIED, lambda o, y: F.cross_entropy(o, y, label_smoothing=0.1)),
    "of probabilities": (classifier, CLASSIFIED, lambda o, y: F.cross_entropy(o, F.one_hot(y, CLASSES).float())),
    "nll": (classifier, CLASSIFIED, lambda o, y: F.nll_loss(o.log_softmax(1), y)),
    "gathered": (classifier, CLASSIFIED, lambda o, y: -o.log_softmax(1)[torch.arange(len(y)), y].mean()),
    "margin": (classifier, CLASSIFIED, F.multi_margin_loss),
    "equal weights": (classifier, CLASSIFIED, lambda o, y: F.cross_entropy(o, y, weight=torch.ones(CLASSES))),
    "own weights": (classifier, CLASSIFIED, lambda o, y: (F.cross_entropy(o, y, reduction="none") * WEIGHTS[y]).mean()),
    "a coefficient": (classifier, CLASSIFIED, lambda o, y: 0.5 * F.cross_entropy(o, y) + 0.01 * o.square().mean()),
    "mse": (lambda: classifier(1), MEASURED, F.mse_loss),
    "l1": (lambda: classifier(1), MEASURED, F.l1_loss),
    "smooth l1": (lambda: classifier(1), MEASURED, F.smooth_l1_loss),
    "huber": (lambda: classifier(1), MEASURED, F.huber_loss),
    "binary": (lambda: classifier(1), MEASURED, lambda o, y: F.binary_cross_entropy_with_logits(o, (y > 0).float())),
    "squeezed": (lambda: classifier(1), FLAT, lambda o, y: F.mse_loss(o.squeeze(1), y)),
    "normalised": (lambda: classifier(12), CLASSIFIED, lambda o, y: (F.normalize(o, dim=1) - 0.1).square().mean()),
    "cosine": (lambda: classifier(12), CLASSIFIED, lambda o, y: (1 - F.cosine_similarity(o, o.detach())).mean()),
    "tokens of one length": (speaker, SPOKEN, rows),
    "tokens, one left out": (speaker, SPOKEN_LATE, rows),
    "shifted tokens": (speaker, SPOKEN, lambda o, y: rows(o[:, :-1], y[:, 1:])),
    "classes on axis 1": (speaker, SPOKEN, lambda o, y: F.cross_entropy(o.transpose(1, 2), y)),
    "mean of each": (speaker, SPOKEN_CUT, lambda o, y: ((each(o, y) * (y >= 0)).sum(1) / (y >= 0).sum(1)).mean()),
    "masked sum over B": (speaker, SPOKEN_CUT, lambda o, y: (each(o, y) * (y >= 0)).sum() / len(y)),
    "masked error over B": (speaker, SPOKEN_CUT, lambda o, y: ((o - 1).abs() * (y >= 0)[..., None]).sum() / len(y)),
}


@pytest.mark.parametrize("name", HONEST)
def test_a_mean_of_one_loss_for_each_example_is_trained_and_its_graph_is_read(name: str) -> None:
    model, data, loss = HONEST[name]
    assert conditions(trained(model(), data, loss)) >= {OWN_LOSS.name}
    assert UNREAD_LOSS.name not in conditions(trained(model(), data, loss, steps=1))


MIXING: dict[str, tuple[Callable[[], nn.Module], Any, Loss]] = {
    "tokens left out": (speaker, SPOKEN_CUT, rows),
    "tokens left out, classes on axis 1": (speaker, SPOKEN_CUT, lambda o, y: F.cross_entropy(o.transpose(1, 2), y)),
    "smoothed tokens": (speaker, SPOKEN_CUT, lambda o, y: rows(o, y, label_smoothing=0.1)),
    "sum over tokens": (speaker, SPOKEN_CUT, lambda o, y: rows(o, y, reduction="sum") / (y >= 0).sum()),
    "masked sum over tokens": (speaker, SPOKEN_CUT, lambda o, y: (each(o, y) * (y >= 0)).sum() / (y >= 0).sum()),
    "chosen tokens": (speaker, SPOKEN_CUT, lambda o, y: each(o, y)[y >= 0].mean()),
    "chosen tokens, focal": (
        speaker,
        SPOKEN_CUT,
        lambda o, y: ((1 - torch.exp(-each(o, y))).square() * each(o, y))[y >= 0].mean(),
    ),
    "masked squares over elements": (
        speaker,
        SPOKEN_CUT,
        lambda o, y: ((o - 1).square() * (y >= 0)[..., None]).sum() / (y >= 0).sum(),
    ),
    "masked absolute errors over elements": (
        speaker,
        SPOKEN_CUT,
        lambda o, y: ((o - 1).abs() * (y >= 0)[..., None]).sum() / (y >= 0).sum(),
    ),
    "masked binary over elements": (
        speaker,
        SPOKEN_CUT,
        lambda o, y: (
            (F.binary_cross_entropy_with_logits(o, torch.ones_like(o), reduction="none") * (y >= 0)[..., None]).sum()
            / (y >= 0).sum()
        ),
    ),
    "labels left out": (classifier, TensorDataset(FEATURES, RARE), F.cross_entropy),
    "class weights": (classifier, CLASSIFIED, lambda o, y: F.cross_entropy(o, y, weight=WEIGHTS)),
    "a part of the batch": (classifier, CLASSIFIED, lambda o, y: F.cross_entropy(o[:5], y[:5])),
    "the same part of the batch twice": (
        classifier,
        CLASSIFIED,
        lambda o, y: (o[:7].square().mean() + o[:7].exp().mean()) / 2,
    ),
    "pairs": (classifier, CLASSIFIED, lambda o, y: F.cross_entropy(o @ o.T, torch.arange(len(o)))),
    "pairs by einsum": (
        classifier,
        CLASSIFIED,
        lambda o, y: F.cross_entropy(torch.einsum("id,jd->ij", o, o), torch.arange(len(o))),
    ),
    "differences of all": (classifier, CLASSIFIED, lambda o, y: (o[:, None] - o[None]).square().mean()),
    "distances of all": (classifier, CLASSIFIED, lambda o, y: torch.cdist(o, o).mean()),
    "dice": (
        lambda: classifier(1),
        MEASURED,
        lambda o, y: 1 - 2 * (o.sigmoid() * (y > 0)).sum() / (o.sigmoid().sum() + (y > 0).sum()),
    ),
    "root of a mean": (lambda: classifier(1), MEASURED, lambda o, y: F.mse_loss(o, y).sqrt()),
    "norm over the batch": (lambda: classifier(1), MEASURED, lambda o, y: (o - y).norm()),
    "spread of the batch": (classifier, CLASSIFIED, lambda o, y: F.cross_entropy(o, y) + o.std(0).sum()),
    "centred by the batch": (classifier, CLASSIFIED, lambda o, y: F.cross_entropy((o - o.mean(0)).tanh(), y)),
    "softmax over the batch": (classifier, CLASSIFIED, lambda o, y: -o.log_softmax(0).mean()),
    "largest of the batch": (classifier, CLASSIFIED, lambda o, y: F.cross_entropy(o, y, reduction="none").max()),
    "flooded": (classifier, CLASSIFIED, lambda o, y: (F.cross_entropy(o, y) - 0.1).abs() + 0.1),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_loss_that_lets_one_example_change_the_gradient_of_others_is_refused_before_a_release(name: str) -> None:
    """Guarantee: no update is released from a scalar loss whose graph shows that it is not the declared mean or sum of
    one loss for each example."""
    model, data, loss = MIXING[name]
    network = model()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    with pytest.raises(CrossSampleLeakError, match="per_example"):
        trained(network, data, loss, steps=1)
    assert all(torch.equal(one, other) for one, other in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {"max_physical_batch_size": 5},
        {"max_physical_batch_size": 5, "constant_shapes": True},
        {"poisson_sampling": False},
        {"batch_size": 1},
    ],
)
def test_physical_batches_padding_and_batches_of_one_are_read_too(settings: dict[str, Any]) -> None:
    assert OWN_LOSS.name in conditions(trained(classifier(), CLASSIFIED, F.cross_entropy, **settings))
    if "batch_size" not in settings:
        with pytest.raises(CrossSampleLeakError):
            trained(speaker(), SPOKEN_CUT, rows, **settings)


@pytest.mark.parametrize("keeps", [True, False])
def test_large_outputs_are_not_kept_and_what_they_would_have_shown_is_still_refused_or_said(
    keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scalar_loss, "KEPT_VALUES", 0)
    words = 120
    held: list[Tensor] = []

    def call(model: nn.Module, inputs: Tensor) -> Any:
        held[:] = [model(inputs)]
        return held[0] if keeps else held.pop()

    def mean(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.reshape(-1, words), targets.reshape(-1))

    def divided(outputs: Tensor, targets: Tensor) -> Tensor:
        total = F.cross_entropy(outputs.reshape(-1, words), targets.reshape(-1), reduction="sum")
        return total / (targets >= 0).sum()

    def network() -> nn.Module:
        return nn.Sequential(nn.Embedding(WORDS, 8), nn.Linear(8, words))

    assert OWN_LOSS.name in conditions(trained(network(), SPOKEN, mean, call=call))
    with pytest.raises(CrossSampleLeakError):
        trained(network(), SPOKEN_CUT, mean, call=call)
    if keeps:
        with pytest.raises(CrossSampleLeakError):
            trained(network(), SPOKEN_CUT, divided, call=call)


def test_each_of_several_backwards_over_one_item_is_looked_at() -> None:
    model = classifier()
    _, _, loader = private_loop(model, CLASSIFIED)
    inputs, targets = next(iter(loader))
    outputs = model(inputs)
    F.cross_entropy(outputs, targets).backward(retain_graph=True)
    with pytest.raises(CrossSampleLeakError):
        F.cross_entropy(outputs, targets).sqrt().backward()


def test_all_losses_of_one_backward_are_looked_at() -> None:
    model = classifier()
    _, _, loader = private_loop(model, CLASSIFIED)
    inputs, targets = next(iter(loader))
    outputs = model(inputs)
    fair = F.cross_entropy(outputs, targets)
    with pytest.raises(CrossSampleLeakError):
        torch.autograd.backward([fair, outputs.square().mean().sqrt()])


def test_gradients_that_are_only_asked_for_are_not_looked_at() -> None:
    model = classifier()
    engine, optimizer, loader = private_loop(model, CLASSIFIED)
    inputs, targets = next(iter(loader))
    inputs.requires_grad_()
    torch.autograd.grad(F.cross_entropy(model(inputs), targets).sqrt(), inputs)
    with engine.session.paused():
        F.cross_entropy(model(inputs), targets).sqrt().backward()
    inputs.grad = None
    F.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    assert OWN_LOSS.name in conditions(engine)


@pytest.mark.parametrize("way", ["per_example", "session", "scaled"])
def test_losses_that_are_examined_elsewhere_are_no_condition(way: str) -> None:
    model = classifier()
    engine, optimizer, loader = private_loop(model, CLASSIFIED)
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for inputs, targets in loader:
        if way == "session":
            engine.session.backward(F.cross_entropy(model(inputs), targets, reduction="none"))
        else:
            (criterion(model(inputs), targets) * (0.5 if way == "scaled" else 1)).backward()
        optimizer.step()
    assert not conditions(engine) & {OWN_LOSS.name, UNREAD_LOSS.name, LOSS_OF_MODEL.name, OUTSIDE_CALL.name}


def test_a_part_of_the_loop_s_own_beside_examined_losses_is_looked_at() -> None:
    model = classifier()
    engine, _, loader = private_loop(model, CLASSIFIED)
    criterion = engine.per_example(nn.CrossEntropyLoss())
    inputs, targets = next(iter(loader))
    outputs = model(inputs)
    with pytest.raises(CrossSampleLeakError):
        (criterion(outputs, targets) + outputs.std(0).sum()).backward()


def test_a_scalar_loss_that_the_model_returns_is_a_condition_of_its_own() -> None:
    class Losing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = classifier()

        def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(self.inner(inputs), targets)

    model = Losing()
    engine, optimizer, loader = private_loop(model, CLASSIFIED)
    for inputs, targets in loader:
        model(inputs, targets).backward()
        optimizer.step()
    assert conditions(engine) >= {LOSS_OF_MODEL.name}
    assert not conditions(engine) & {OWN_LOSS.name, UNREAD_LOSS.name}


@pytest.mark.parametrize(
    "call",
    [lambda model, inputs: model[2](model[1](model[0](inputs))), lambda model, inputs: model[1:](model[0](inputs))],
    ids=["parts", "slices"],
)
@pytest.mark.parametrize("way", ["scalar", "session"])
def test_code_outside_of_the_model_s_call_is_a_condition(call: Calling, way: str) -> None:
    model = classifier()
    engine, optimizer, loader = private_loop(model, CLASSIFIED)
    for inputs, targets in loader:
        losses = F.cross_entropy(call(model, inputs), targets, reduction="none")
        if way == "session":
            engine.session.backward(losses)
        else:
            losses.mean().backward()
        optimizer.step()
    assert OUTSIDE_CALL.name in conditions(engine)


def test_the_same_loss_is_refused_again_when_the_step_is_tried_again() -> None:
    model = speaker()
    engine, optimizer, loader = private_loop(model, SPOKEN_CUT)
    inputs, targets = next(iter(loader))
    for _ in range(2):
        with pytest.raises(CrossSampleLeakError):
            rows(model(inputs), targets).backward()
        with pytest.raises(HushgradError, match="no backward has finished"):
            optimizer.step()
    assert engine.session.steps == 0


@pytest.mark.parametrize(
    "reduced",
    [
        lambda losses: losses.logsumexp(0),
        lambda losses: losses.norm(),
        lambda losses: losses.max(),
        lambda losses: losses.var(),
        lambda losses: losses.sum(),
    ],
    ids=["logsumexp", "norm", "max", "var", "sum"],
)
def test_losses_that_were_examined_are_still_held_to_the_declared_reduction(
    reduced: Callable[[Tensor], Tensor],
) -> None:
    model = classifier()
    engine, _, loader = private_loop(model, CLASSIFIED)
    inputs, targets = next(iter(loader))
    losses = F.cross_entropy(model(inputs), targets, reduction="none")
    engine.session.loss(losses)  # examined, and not run backward
    loss = reduced(losses)
    with pytest.raises((CrossSampleLeakError, LossShapeError)):
        loss.backward()


def test_an_examination_of_one_output_of_an_operator_says_nothing_of_the_others() -> None:
    model = classifier()
    engine, _, loader = private_loop(model, CLASSIFIED)
    inputs, targets = next(iter(loader))
    losses = F.cross_entropy(model(inputs), targets, reduction="none")
    first, mixed = torch.stack([losses, losses.softmax(0)]).unbind(0)
    engine.session.loss(first)
    loss = mixed.mean()
    with pytest.raises(CrossSampleLeakError):
        loss.backward()


def test_a_factor_on_losses_that_were_examined_is_on_trust() -> None:
    model = classifier()
    engine, optimizer, loader = private_loop(model, CLASSIFIED)
    inputs, targets = next(iter(loader))
    losses = F.cross_entropy(model(inputs), targets, reduction="none")
    engine.session.loss(losses)
    (losses.sum() / len(inputs)).backward()
    optimizer.step()
    assert conditions(engine) == {UNREAD_LOSS.name}


def test_a_loss_whose_backward_runs_in_another_thread_than_the_forward_is_looked_at() -> None:
    model = classifier()
    engine, _, loader = private_loop(model, CLASSIFIED)
    inputs, targets = next(iter(loader))
    loss = F.cross_entropy(model(inputs), targets, reduction="sum")
    found: list[HushgradError] = []

    def run() -> None:
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        except HushgradError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert [type(error) for error in found] == [LossShapeError]
    assert conditions(engine) == set()
