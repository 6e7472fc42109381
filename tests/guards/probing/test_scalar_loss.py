"""A loop's own scalar loss: what is no mean of one loss for each example is refused, and what is one is trained."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import DPSGD, FlatClipping, PoissonSampling, PrivacyEngine, privatize
from hushgrad.accounting.conditions import INNER_LOSS, LOSS_OF_MODEL, OUTSIDE_CALL, OWN_LOSS, UNREAD_LOSS
from hushgrad.errors import CrossSampleLeakError, HushgradError, LossShapeError
from hushgrad.guards.probing import scalar_loss

COUNT, CLASSES, WORDS, LENGTH = 60, 5, 11, 6
GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(COUNT, 6, generator=GENERATOR)
LABELS = torch.randint(0, CLASSES, (COUNT,), generator=GENERATOR)
NUMBERS = torch.randn(COUNT, 1, generator=GENERATOR)
IDS = torch.randint(0, WORDS, (COUNT, LENGTH), generator=GENERATOR)
NEXT = IDS.roll(-1, 1)
LENGTHS = torch.randint(2, LENGTH + 1, (COUNT,), generator=GENERATOR)
CUT = NEXT.masked_fill(torch.arange(LENGTH) >= LENGTHS[:, None], -100)
"""Targets of which the examples have different numbers."""
LATE = NEXT.clone()
LATE[:, 0] = -100
"""Targets of which every example has the same number."""
RARE = LABELS.masked_fill(torch.arange(COUNT) % 3 == 0, -100)
WEIGHTS = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2])
SENTENCES = [ids[:length] + 1 for ids, length in zip(IDS, LENGTHS.tolist(), strict=True)]

Loss = Callable[[Any, Tensor], Tensor]
Calling = Callable[[nn.Module, Tensor], Any]


def classifier(outputs: int = CLASSES) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs))


def speaker() -> nn.Module:
    return nn.Sequential(nn.Embedding(WORDS + 2, 8), nn.Linear(8, WORDS))


def padded(records: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    ids = pad_sequence(list(records), batch_first=True)
    return ids, (ids - 1).masked_fill(ids == 0, -100).clamp(max=WORDS - 1)


def trained(
    model: nn.Module,
    data: Any,
    loss: Loss,
    *,
    batch_size: int = 12,
    steps: int = 4,
    call: Calling = lambda model, inputs: model(inputs),
    collate: Any = None,
    seed: int = 1,
    **settings: Any,
) -> PrivacyEngine:
    """Train some steps with a plain scalar loss, on batches drawn at random."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    engine = PrivacyEngine(test_key=seed)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=batch_size, collate_fn=collate),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        **settings,
    )
    while engine.session.steps < steps:
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss(call(model, inputs), targets).backward()
            optimizer.step()
            if engine.session.steps == steps:
                break
    return engine


def conditions(engine: PrivacyEngine) -> set[str]:
    """Return the names of what was taken on trust; the guarantee says them too, and takes a while to compute."""
    return {condition.name for condition in engine.session._parts.probe.conditions}


CLASSIFIED = TensorDataset(FEATURES, LABELS)
MEASURED = TensorDataset(FEATURES, NUMBERS)
FLAT = TensorDataset(FEATURES, NUMBERS[:, 0])
SPOKEN, SPOKEN_CUT, SPOKEN_LATE = (TensorDataset(IDS, targets) for targets in (NEXT, CUT, LATE))


def rows(logits: Tensor, targets: Tensor, **settings: Any) -> Tensor:
    return F.cross_entropy(logits.reshape(-1, WORDS), targets.reshape(-1), **settings)


def each(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.transpose(1, 2), targets.clamp(min=0), reduction="none")


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


BROADCAST: dict[str, tuple[Callable[[], nn.Module], Any, Loss]] = {
    "mse": (lambda: classifier(1), FLAT, F.mse_loss),
    "mse the other way": (lambda: classifier(1), MEASURED, lambda o, y: F.mse_loss(o[:, 0], y)),
    "l1": (lambda: classifier(1), FLAT, F.l1_loss),
    "by hand": (lambda: classifier(1), FLAT, lambda o, y: ((o - y) ** 2).mean()),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", BROADCAST)
def test_an_output_that_is_broadcast_against_the_targets_is_refused(name: str) -> None:
    model, data, loss = BROADCAST[name]
    with pytest.raises(LossShapeError, match="broadcast"):
        trained(model(), data, loss, steps=1)


def test_broadcasting_against_a_constant_of_the_batch_s_length_is_told_from_it_by_other_batches() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - torch.linspace(0, 1, 12)).abs().mean()

    sizes: list[int] = []

    def call(model: nn.Module, inputs: Tensor) -> Tensor:
        sizes.append(len(inputs))
        return model(inputs)

    engine = trained(classifier(1), MEASURED, loss, call=call, steps=60)
    assert sizes[0] != 12
    assert 12 in sizes
    assert OWN_LOSS.name in conditions(engine)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_padded_width_as_a_divisor_is_refused_when_it_changes() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.transpose(1, 2), targets.clamp(min=0))

    with pytest.raises(CrossSampleLeakError, match="another number than in an earlier batch"):
        trained(speaker(), SENTENCES, loss, collate=padded, batch_size=2, steps=60)


@pytest.mark.parametrize("divisor", [lambda y: 12, lambda y: 60], ids=["expected size", "constant"])
def test_a_sum_over_another_number_than_the_item_s_rows_is_refused_when_the_batch_changes(divisor: Any) -> None:
    with pytest.raises(CrossSampleLeakError, match="a size that is not this batch's"):
        trained(classifier(), CLASSIFIED, lambda o, y: F.cross_entropy(o, y, reduction="sum") / divisor(y), steps=20)


@pytest.mark.parametrize(
    ("declared", "loss"),
    [
        ("mean", lambda o, y: F.cross_entropy(o, y, reduction="sum")),
        ("mean", lambda o, y: F.mse_loss(o, o.detach() + 1, reduction="sum") + o.exp().sum()),
        ("mean", lambda o, y: F.cross_entropy(o, y) + o.square().sum()),
        ("sum", F.cross_entropy),
        ("sum", lambda o, y: F.cross_entropy(o, y, reduction="none").mean()),
    ],
)
def test_a_reduction_that_is_not_the_declared_one_is_refused_with_the_argument_that_cures_it(
    declared: str, loss: Loss
) -> None:
    other = {"mean": "sum", "sum": "mean"}[declared]
    with pytest.raises(LossShapeError, match=f"loss_reduction='{other}'"):
        trained(classifier(), CLASSIFIED, loss, steps=1, loss_reduction=declared)


@pytest.mark.parametrize("data", [SPOKEN, SPOKEN_CUT])
def test_a_sum_under_a_declared_sum_may_leave_out_what_it_likes(data: Any) -> None:
    engine = trained(speaker(), data, lambda o, y: rows(o, y, reduction="sum"), loss_reduction="sum")
    assert OWN_LOSS.name in conditions(engine)


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


def test_saturated_rows_are_not_taken_for_targets_that_were_left_out() -> None:
    data = TensorDataset(1e5 * FEATURES, LABELS)
    assert OWN_LOSS.name in conditions(trained(nn.Linear(6, CLASSES), data, F.cross_entropy))


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


def private_loop(model: nn.Module, data: Any, **settings: Any) -> tuple[PrivacyEngine, torch.optim.Optimizer, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    engine = PrivacyEngine(test_key=1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=12),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        **settings,
    )
    return engine, optimizer, loader


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
    [lambda model, inputs: model.forward(inputs), lambda model, inputs: model[2](model[1](model[0](inputs)))],
    ids=["forward", "parts"],
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


def released_sum(records: list[Tensor], token_mean: bool) -> Tensor:
    """Return the sum of clipped gradients of one batch of all records, without noise, in units of C."""
    torch.manual_seed(0)
    model, bound = nn.Embedding(WORDS, WORDS), 0.8
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine = PrivacyEngine(test_key=1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(records, batch_size=len(records), collate_fn=lambda r: pad_sequence(r, True)),
        noise_multiplier=0.0,
        max_grad_norm=bound,
        poisson_sampling=False,
    )
    for ids in loader:
        targets = ids[:, 1:].masked_fill(ids[:, 1:] == 0, -100)
        logits = model(ids[:, :-1])
        if token_mean:
            rows(logits, targets).backward()
        else:
            ((each(logits, targets) * (targets >= 0)).sum(1) / (targets >= 0).sum(1)).mean().backward()
        optimizer.step()
    return (before - model.weight.detach()) * len(records) / bound


def test_a_token_mean_is_refused_and_a_mean_of_each_example_s_own_mean_moves_by_one_clip_norm_at_most() -> None:
    short, long = [torch.tensor([3, 4, 5, 6])] * 9, torch.arange(31) % 10 + 1
    with pytest.raises(CrossSampleLeakError):
        released_sum([*short, long], token_mean=True)
    moved = released_sum([*short, long], token_mean=False) - released_sum(short, token_mean=False)
    assert moved.norm() <= 1 + 1e-6


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


def test_no_message_names_a_number_of_the_data() -> None:
    with pytest.raises(CrossSampleLeakError) as caught:
        trained(speaker(), SPOKEN_CUT, rows, steps=1)
    assert not any(character.isdigit() for character in str(caught.value).removeprefix("DP301"))


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
