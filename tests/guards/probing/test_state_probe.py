"""Does what a model keeps follow the data? Then it is refused."""

from __future__ import annotations

import math
import re

import pytest
import torch
from first_forwards import Body, train
from keeping_models import LEAKY as KEEPING
from keeping_models import SEEN, TABLE, Cycling, Keeping, Logged, Machinery, first_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.errors import HushgradError, PrivateBufferError
from hushgrad.guards.probing.state_probe import refusal


class HookOfABatch(Body):
    def after(self, out: Tensor) -> Tensor:
        if "is_ready" not in vars(self):
            mean = out.detach().mean(0)
            self.head.register_forward_hook(lambda module, args, out: out - mean)
            self.is_ready = True
        return out


class HookOfEveryBatch(Body):
    def after(self, out: Tensor) -> Tensor:
        mean = out.detach().mean(0)
        self.head.register_forward_hook(lambda module, args, out: out - mean)
        return out


class PartOfABatch(Body):
    def after(self, out: Tensor) -> Tensor:
        if "minus" in self._modules:
            return self.minus(out)
        mean = out.detach().mean(0)

        class Minus(nn.Module):
            def forward(self, h: Tensor) -> Tensor:
                return h - mean

        self.minus = Minus()
        return out


class BufferOfABatch(Body):
    def prepare(self, x: Tensor) -> None:
        if "mean" not in self._buffers:
            self.register_buffer("mean", x.mean(0))


class ClassOfABatch(Body):
    largest = 0.0

    def prepare(self, x: Tensor) -> None:
        type(self).largest = float(x.max())


class ObjectOfABatch(Body):
    def prepare(self, x: Tensor) -> None:
        self.box.largest = float(x.max())


LEAKY = [HookOfABatch, HookOfEveryBatch, PartOfABatch, BufferOfABatch, ClassOfABatch, ObjectOfABatch]


@pytest.mark.parametrize("make", LEAKY)
def test_what_a_first_forward_makes_of_its_batch_is_refused(make: type[Body]) -> None:
    with pytest.raises(PrivateBufferError):
        train(make())


class Own(Body):
    """Keeps each example's own values, which the next call overwrites, or adds to."""

    adds = False

    def prepare(self, x: Tensor) -> None:
        kept = vars(self).get("kept")
        self.kept = x.clone() if kept is None or not self.adds or kept.shape != x.shape else kept + x


class Adds(Own):
    adds = True

    def after(self, out: Tensor) -> Tensor:
        return out + self.kept.sum()


class Counts(Body):
    """What does not follow the data."""

    def prepare(self, x: Tensor) -> None:
        self.calls = vars(self).get("calls", 0) + 1


class Reads(Own):
    """Each example gets something of the one that was in its place before: within a call nothing is mixed."""

    def forward(self, x: Tensor) -> Tensor:
        earlier = vars(self).get("kept")
        out = super().forward(x)
        return out if earlier is None or earlier.shape != x.shape else out + earlier.sum(1, keepdim=True)


@pytest.mark.parametrize("make", [Own, Counts])
def test_a_cache_that_nobody_reads_later_and_a_count_are_allowed(make: type[Body]) -> None:
    assert train(make()).session.probe_report.examined


@pytest.mark.parametrize("make", [Adds, Reads])
def test_a_cache_that_enters_the_next_call_is_refused(make: type[Body]) -> None:
    with pytest.raises(HushgradError):
        train(make())


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (("buffer", "norm", "mean"), r"norm\.mean: this buffer"),
        (("parameter", "norm.weight"), r"norm\.weight: this parameter"),
        (("attribute", "box", "largest"), r"box\.largest: this attribute"),
    ],
)
def test_a_refusal_names_the_place_and_what_it_is(key: tuple[str, ...], message: str) -> None:
    with pytest.raises(PrivateBufferError, match=message):
        raise refusal(key)


@pytest.mark.parametrize("name", KEEPING)
def test_what_a_forward_writes_of_its_batch_is_refused_wherever_it_is_and_though_nobody_reads_it(name: str) -> None:
    """Guarantee: state of the model and of its code is found by its being written, not by its being read."""
    first_of.cache_clear()
    with pytest.raises(PrivateBufferError, match="follows the data") as raised:
        train(Keeping(*KEEPING[name]))
    message = str(raised.value)
    assert "Freeze it" in message
    assert not any(character.isdigit() for character in re.sub(r"\.\d+", "", message[5:])), message


def test_counts_times_logs_tables_and_generators_train_and_are_given_back() -> None:
    calls, seen = Logged.calls, len(SEEN)
    engine = train(Logged())
    assert engine.session.probe_report.examined
    assert engine.session.probe_report.notes == ()
    assert (Logged.calls - calls, len(SEEN) - seen) == (2, 2)


def test_what_runs_a_program_trains_and_is_given_back_and_nothing_of_it_is_on_trust() -> None:
    model = Machinery()
    engine = train(model)
    assert engine.session.probe_report.notes == ()
    assert "not examined" not in {condition.name for condition in engine.guarantee(1e-5).conditions}
    assert (model.engine.calls, model.loader.calls) == (2, 2)
    assert model.ahead.result() == 1.0


def test_what_cannot_be_looked_into_is_said() -> None:
    engine = train(Cycling())
    assert any("itertools.repeat" in note for note in engine.session.probe_report.notes)


def test_a_key_that_came_with_the_data_is_not_named() -> None:
    class Words(Body):
        def prepare(self, x: Tensor) -> None:
            TABLE.setdefault(f"word{float(x.max())}", []).append(float(x.max()))

    TABLE.clear()
    with pytest.raises(PrivateBufferError) as raised:
        train(Words())
    assert "word" not in str(raised.value)


class Rare(nn.Module):
    """Counts records with one rare value, in a buffer that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 2)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + (x[:, 0] == 0.5).float().sum().detach()
        return self.a(x)  # type: ignore[no-any-return]


def test_state_that_follows_the_data_from_a_later_batch_on_is_found_by_a_secret_look() -> None:
    """The key is fixed: the looks, and the batches with the one record, are the same in every run."""
    x = torch.rand(40, 4, generator=torch.Generator().manual_seed(0))
    x[7, 0] = 0.5
    model = Rare()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = PrivacyEngine(test_key=0)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(TensorDataset(x, torch.zeros(40, dtype=torch.long)), batch_size=8),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    criterion = engine.per_example(nn.CrossEntropyLoss())

    def train_on() -> None:
        for _ in range(12):
            for inputs, labels in loader:
                optimizer.zero_grad()
                criterion(model(inputs), labels).backward()
                optimizer.step()

    with pytest.raises(PrivateBufferError, match="count"):
        train_on()
    assert engine.session.steps > 0
    assert engine.get_epsilon(1e-3) == math.inf


class OfBackward(Body):
    """Keeps what its backward hands on."""

    def after(self, out: Tensor) -> Tensor:
        if out.requires_grad:
            out.register_hook(self.note)  # type: ignore[no-untyped-call]
        return out

    def note(self, gradient: Tensor) -> None:
        self.kept = float(gradient.abs().max())


class OfRecordedForward(Body):
    """Keeps something of its batch where gradients are recorded."""

    def prepare(self, x: Tensor) -> None:
        if torch.is_grad_enabled():
            self.kept = float(x.max())


class OwnOfBackward(OfBackward):
    """Keeps each example's own gradient, which the next backward writes over."""

    def note(self, gradient: Tensor) -> None:
        self.kept = gradient.detach()  # type: ignore[assignment]


class CountsBackwards(OfBackward):
    def note(self, gradient: Tensor) -> None:
        self.kept = vars(self).get("kept", 0) + 1


@pytest.mark.parametrize("make", [OfBackward, OfRecordedForward])
def test_what_a_forward_with_gradients_or_its_backward_writes_of_its_batch_is_refused(make: type[Body]) -> None:
    with pytest.raises(PrivateBufferError, match="a forward with gradients, or its backward, writes"):
        train(make())


@pytest.mark.parametrize("make", [OwnOfBackward, CountsBackwards])
def test_gradients_kept_for_each_example_and_counts_of_backwards_are_no_state_of_the_data(make: type[Body]) -> None:
    train(make())
