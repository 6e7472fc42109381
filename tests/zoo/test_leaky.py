"""Every leaky model and loss is refused at set-up or before its first release, by a message with place and cure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from leaky_losses import CRITERIA, contrastive
from leaky_models import AT_SETUP, BATCH, CLASSES, ON_FEATURES, ON_TOKENS, STORE, WIDTH, OwnLoss, SharedTemperature
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.errors import CrossSampleLeakError, HushgradError, LossShapeError

CURES = (
    "Use ",
    "use ",
    "Set ",
    "Take ",
    "Compute ",
    "Give ",
    "Freeze ",
    "Keep ",
    "Make ",
    "Normalise ",
    "Detach",
    "Initialise",
    "Is the",
)


LOSS_ERRORS = (CrossSampleLeakError, LossShapeError)


def features() -> TensorDataset:
    return TensorDataset(torch.randn(2 * BATCH, WIDTH), torch.arange(2 * BATCH) % CLASSES)


def tokens() -> TensorDataset:
    return TensorDataset(torch.randint(0, 11, (2 * BATCH, 5)), torch.arange(2 * BATCH) % CLASSES)


def attached(model: nn.Module, data: TensorDataset) -> tuple[PrivacyEngine, Any, Any]:
    engine = PrivacyEngine(test_key=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=BATCH),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    return engine, optimizer, loader


def refusal(
    model: nn.Module,
    data: TensorDataset,
    step: Callable[[PrivacyEngine, nn.Module, Tensor, Tensor], None],
    kinds: tuple[type[HushgradError], ...],
) -> str:
    """Train one step, check that it is refused with nothing charged and released, and return the message."""
    engine, optimizer, loader = attached(model, data)
    x, y = next(iter(loader))
    before: list[Tensor] = []

    def one_step() -> None:
        step(engine, model, x, y)
        before.extend(parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad)
        optimizer.step()

    with pytest.raises(kinds) as raised:
        one_step()
    assert engine.session.steps == 0
    after = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert not before or all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    return str(raised.value)


def with_criterion(criterion: Any) -> Callable[[PrivacyEngine, nn.Module, Tensor, Tensor], None]:
    def step(engine: PrivacyEngine, model: nn.Module, x: Tensor, y: Tensor) -> None:
        engine.per_example(criterion)(model(x), y).backward()

    return step


def with_losses(losses: Callable[[Any, Tensor], Tensor]) -> Callable[[PrivacyEngine, nn.Module, Tensor, Tensor], None]:
    def step(engine: PrivacyEngine, model: nn.Module, x: Tensor, y: Tensor) -> None:
        engine.session.backward(losses(model(x), y))

    return step


def plain(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y, reduction="none")


@pytest.mark.parametrize(("name", "make", "kind"), AT_SETUP, ids=[case[0] for case in AT_SETUP])
def test_a_layer_that_mixes_examples_is_refused_at_set_up(
    name: str, make: Callable[[], nn.Module], kind: type[HushgradError]
) -> None:
    with pytest.raises(kind, match=r"^DP30[12] 1: ") as raised:
        attached(make(), features())
    assert any(cure in str(raised.value) for cure in CURES)


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    """What a model of another test has put into the variable of the module's file is gone."""
    STORE.clear()


@pytest.mark.parametrize("path", ["criterion", "losses", "scalar"])
@pytest.mark.parametrize(("name", "make", "place", "kinds"), ON_FEATURES, ids=[case[0] for case in ON_FEATURES])
def test_a_leaky_model_is_refused_before_its_first_release(
    name: str, make: Callable[[], nn.Module], place: str, kinds: tuple[type[HushgradError], ...], path: str
) -> None:
    """Whether the loss is per example, a vector or an ordinary scalar: the model itself is always probed."""
    steps = {
        "criterion": with_criterion(nn.CrossEntropyLoss()),
        "losses": with_losses(plain),
        "scalar": lambda engine, model, x, y: F.cross_entropy(model(x), y).backward(),
    }
    message = refusal(make(), features(), steps[path], kinds)
    assert place in message
    assert any(cure in message for cure in CURES)


@pytest.mark.parametrize(("name", "make", "place", "kinds"), ON_TOKENS, ids=[case[0] for case in ON_TOKENS])
def test_a_leaky_sequence_model_is_refused_before_its_first_release(
    name: str, make: Callable[[], nn.Module], place: str, kinds: tuple[type[HushgradError], ...]
) -> None:
    message = refusal(make(), tokens(), with_criterion(nn.CrossEntropyLoss()), kinds)
    assert place in message
    assert any(cure in message for cure in CURES)


LOSS_CURES = ("Give each example a loss of its own", "Give each example one loss", "Compute each example's loss")


@pytest.mark.parametrize(("name", "make"), CRITERIA, ids=[case[0] for case in CRITERIA])
def test_a_leaky_criterion_is_refused_before_its_first_release(name: str, make: Callable[[], Any]) -> None:
    message = refusal(nn.Linear(WIDTH, CLASSES), features(), with_criterion(make()), LOSS_ERRORS)
    assert "criterion" in message or "loss of one example" in message
    assert any(cure in message for cure in LOSS_CURES)


def test_a_loss_that_the_model_averages_over_the_tokens_of_the_batch_is_refused() -> None:
    """Sequences of different lengths: with such a mean one example's part depends on the others' lengths."""

    def step(engine: PrivacyEngine, model: nn.Module, x: Tensor, y: Tensor) -> None:
        model(x)["loss"].backward()

    message = refusal(OwnLoss(), tokens(), step, (CrossSampleLeakError,))
    assert "output loss" in message
    assert "engine.per_example(criterion)" in message


def test_a_number_of_the_batch_that_the_loss_uses_by_value_is_refused() -> None:
    def scaled(output: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        logits, temperature = output
        return F.cross_entropy(logits / temperature, y, reduction="none")

    message = refusal(SharedTemperature(), features(), with_criterion(scaled), (CrossSampleLeakError,))
    assert "scaled" in message or "test_leaky.py, line" in message


def test_examples_that_meet_between_two_calls_of_the_model_are_refused() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def step(engine: PrivacyEngine, model: nn.Module, x: Tensor, y: Tensor) -> None:
        assert isinstance(model, Pair)
        hidden = model.encoder(x)
        engine.session.backward(plain(model.decoder(hidden - hidden.mean(0)), y))

    refusal(Pair(), features(), step, (HushgradError,))


def test_losses_of_pairs_of_examples_are_refused() -> None:
    """Losses given as a vector: their graph shows it."""
    message = refusal(nn.Linear(WIDTH, CLASSES), features(), with_losses(contrastive), (CrossSampleLeakError,))
    assert any(cure in message for cure in LOSS_CURES)


def test_the_message_of_a_refusal_holds_no_value_of_the_data() -> None:
    """Guarantee: a message never contains a data value: all numbers in it are shapes, lines, codes and names."""
    data = TensorDataset(torch.full((2 * BATCH, WIDTH), 123.25), torch.arange(2 * BATCH) % CLASSES)
    for _, make, _, kinds in ON_FEATURES[:12]:
        assert "123" not in refusal(make(), data, with_losses(plain), kinds)


def test_the_zoo_holds_at_least_forty_leaks() -> None:
    assert len(AT_SETUP) + len(ON_FEATURES) + len(ON_TOKENS) + len(CRITERIA) >= 40
