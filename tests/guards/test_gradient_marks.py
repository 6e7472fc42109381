"""What `zero_grad()` throws away: noticed, and neither dropped nor trained on in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import DPSGD, FlatClipping, PoissonSampling, PrivacyEngine, Session, privatize
from hushgrad.errors import ProtocolError
from hushgrad.guards.gradient_marks import MOST_MARKS, MOST_VALUES, GradientMarks, mark_value

COUNT = 8


class Training:
    """A private loop over one fixed batch; no noise, and a clip norm that clips nothing."""

    def __init__(self, model: nn.Module | None = None, inputs: tuple[int, ...] = (3,), **options: Any) -> None:
        self.model = model or nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.engine = PrivacyEngine()
        data = TensorDataset(torch.randn(COUNT, *inputs), torch.randint(0, 2, (COUNT,)))
        _, _, self.loader = self.engine.make_private(
            module=self.model,
            optimizer=self.optimizer,
            data_loader=DataLoader(data, batch_size=COUNT),
            noise_multiplier=0.0,
            max_grad_norm=1e6,
            poisson_sampling=False,
            **options,
        )
        self.session: Session = self.engine.session

    def item(self) -> tuple[Tensor, Tensor]:
        x, y = next(iter(self.loader))
        return x, y

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.model(x), y)

    def values(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def _data_zeroed(training: Training) -> None:
    for parameter in training.model.parameters():
        if parameter.grad is not None:
            parameter.grad.data.zero_()


def _set_to_none(training: Training) -> None:
    for parameter in training.model.parameters():
        parameter.grad = None


CLEARINGS: dict[str, Callable[[Training], None]] = {
    "optimizer.zero_grad()": lambda training: training.optimizer.zero_grad(),
    "optimizer.zero_grad(set_to_none=False)": lambda training: training.optimizer.zero_grad(set_to_none=False),
    "model.zero_grad()": lambda training: training.model.zero_grad(),
    "model.zero_grad(set_to_none=False)": lambda training: training.model.zero_grad(set_to_none=False),
    "zero_grad() of a part of the model": lambda training: training.model[2].zero_grad(),  # type: ignore[index]
    "grad.data.zero_()": _data_zeroed,
    "grad = None": _set_to_none,
}


@pytest.mark.parametrize("clear", CLEARINGS.values(), ids=CLEARINGS)
@pytest.mark.parametrize("again", [True, False], ids=["another backward", "no other backward"])
def test_what_zero_grad_clears_is_neither_dropped_nor_kept_in_silence(
    clear: Callable[[Training], None], again: bool
) -> None:
    """Guarantee: what a backward gave is neither dropped nor kept in silence when `zero_grad()` clears it."""
    training = Training()
    before, (x, y) = training.values(), training.item()
    training.loss(x, y).backward()
    clear(training)
    if again:
        training.loss(x, y).backward()
    for _ in range(2):  # and it stays refused
        with pytest.raises(ProtocolError, match=r"zero_grad.*paused\(\).*discard\(\)"):
            training.optimizer.step()
    assert all(torch.equal(now, then) for now, then in zip(training.values(), before, strict=True))
    training.session.discard()
    assert training.session.steps == 0
    assert "discarded" in str(training.session.guarantee(1e-5))


def test_a_loop_goes_on_after_a_cleared_backward_was_discarded() -> None:
    training, ordinary = Training(), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    ordinary.load_state_dict(training.model.state_dict())
    x, y = training.item()
    training.loss(x, y).backward()
    training.optimizer.zero_grad()
    training.session.discard()
    x, y = training.item()
    training.loss(x, y).backward()
    training.optimizer.step()
    F.cross_entropy(ordinary(x), y).backward()
    torch.optim.SGD(ordinary.parameters(), lr=0.1).step()
    for ours, theirs in zip(training.model.parameters(), ordinary.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_several_backwards_over_one_item_add_up() -> None:
    once, twice = Training(), Training()
    twice.model.load_state_dict(once.model.state_dict())
    x, y = once.item()
    (once.loss(x, y) + 2 * once.loss(x, y)).backward()
    once.optimizer.step()
    twice.item()
    twice.loss(x, y).backward()
    (2 * twice.loss(x, y)).backward()
    twice.optimizer.step()
    for ours, theirs in zip(twice.model.parameters(), once.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("way", ["paused", "autograd.grad"])
def test_the_cures_for_adversarial_training_train_what_an_ordinary_loop_does(way: str) -> None:
    training = Training()
    ordinary = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    ordinary.load_state_dict(training.model.state_dict())
    x, y = training.item()
    if way == "paused":
        with training.session.paused():
            probe = x.clone().requires_grad_()
            training.loss(probe, y).backward()
            direction = probe.grad
    else:
        probe = x.clone().requires_grad_()
        (direction,) = torch.autograd.grad(training.loss(probe, y), probe)
    assert direction is not None
    training.optimizer.zero_grad()
    training.loss(x + 0.1 * direction.sign(), y).backward()
    training.optimizer.step()

    probe = x.clone().requires_grad_()
    F.cross_entropy(ordinary(probe), y).backward()
    assert probe.grad is not None
    optimizer = torch.optim.SGD(ordinary.parameters(), lr=0.1)
    optimizer.zero_grad()
    F.cross_entropy(ordinary(x + 0.1 * probe.grad.sign()), y).backward()
    optimizer.step()
    for ours, theirs in zip(training.model.parameters(), ordinary.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_generators_loss_through_the_critic_and_then_zero_grad_is_refused_and_trains_when_paused() -> None:
    critic = nn.Linear(3, 2)
    training, generator = Training(critic), nn.Linear(2, 3)
    x, y = training.item()
    training.loss(generator(torch.randn(COUNT, 2)), 1 - y).backward()
    training.optimizer.zero_grad()
    training.loss(x, y).backward()
    with pytest.raises(ProtocolError, match=r"paused\(\)"):
        training.optimizer.step()
    training.session.discard()
    generator.zero_grad()
    x, y = training.item()
    with training.session.paused():
        training.loss(generator(torch.randn(COUNT, 2)), 1 - y).backward()
    training.optimizer.zero_grad()
    training.loss(x, y).backward()
    training.optimizer.step()
    assert generator.weight.grad is not None


def test_a_closure_that_clears_gradients_first_is_an_ordinary_step() -> None:
    training = Training()
    x, y = training.item()

    def closure() -> Tensor:
        training.optimizer.zero_grad()
        loss = training.loss(x, y)
        loss.backward()
        return loss

    training.optimizer.step(closure)
    assert training.session.steps == 1


def test_clearing_between_two_backwards_of_a_custom_loop_is_refused() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mechanism = DPSGD(
        noise_multiplier=0.0,
        clipping=FlatClipping(1.0),
        sampling=PoissonSampling(rate=0.5),
        expected_batch_size=COUNT / 2,
        steps=4,
    )
    session = privatize(model, optimizer, mechanism)
    x, y = torch.randn(COUNT, 3), torch.randint(0, 2, (COUNT,))
    session.backward(F.cross_entropy(model(x), y, reduction="none"))
    optimizer.zero_grad()
    with pytest.raises(ProtocolError, match="zero_grad"):
        session.backward(F.cross_entropy(model(x), y, reduction="none"))


def test_marks_are_few_and_small_and_one_lies_in_each_of_the_larger_parts() -> None:
    blocks = [nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 512)) for _ in range(MOST_MARKS + 20)]
    model = nn.Sequential(nn.Embedding(5000, 64), *blocks)
    trainable = dict(model.named_parameters())
    marks = GradientMarks(model, trainable)
    marks.put()
    marked = [name for name, parameter in trainable.items() if parameter.grad is not None]
    assert len(marked) == MOST_MARKS
    assert all(trainable[name].numel() <= MOST_VALUES for name in marked)
    assert all(any(name.startswith(f"{part}.") for name in marked) for part in range(2, MOST_MARKS))
    assert len({trainable[name].grad.data_ptr() for name in marked}) == 2  # type: ignore[union-attr]
    marks.take_away()
    assert all(parameter.grad is None for parameter in trainable.values())


@pytest.mark.parametrize("clear", [lambda m: m[23].zero_grad(), lambda m: setattr(m[5].weight, "grad", None)])
def test_clearing_one_layer_or_one_parameter_of_many_is_refused(clear: Callable[[Any], None]) -> None:
    training = Training(nn.Sequential(*[nn.Linear(3, 3) for _ in range(24)]))
    x, y = training.item()
    training.loss(x, y % 2).backward()
    clear(training.model)
    with pytest.raises(ProtocolError, match="zero_grad"):
        training.optimizer.step()


def test_where_a_marked_parameter_is_frozen_another_one_is_marked() -> None:
    training = Training(nn.Linear(3, 2))
    training.model.bias.requires_grad_(False)  # type: ignore[union-attr, operator]
    x, y = training.item()
    training.loss(x, y).backward()
    training.optimizer.zero_grad()
    training.loss(x, y).backward()
    with pytest.raises(ProtocolError, match="zero_grad"):
        training.optimizer.step()


@pytest.mark.parametrize("cleared", [False, True])
def test_a_parameter_frozen_between_two_backwards_stops_nothing_and_hides_nothing(cleared: bool) -> None:
    training = Training(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    x, y = training.item()
    training.loss(x, y).backward()
    if cleared:
        training.optimizer.zero_grad()
    training.model[0].bias.requires_grad_(False)  # type: ignore[index, union-attr, operator]
    training.loss(x, y).backward()
    if cleared:
        with pytest.raises(ProtocolError, match="zero_grad"):
            training.optimizer.step()
    else:
        training.optimizer.step()
        assert all(parameter.grad is None for parameter in training.model.parameters())


def test_a_parameter_without_values_and_a_norm_that_is_clipped_stop_nothing() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.where, self.layer = nn.Parameter(torch.empty(0)), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.to(self.where.device))  # type: ignore[no-any-return]

    training = Training(Placed())
    x, y = training.item()
    training.loss(x, y).backward()
    nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
    training.optimizer.step()
    assert training.session.steps == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_mark_weighs_nothing_in_a_norm_and_is_told_from_zero_in_every_dtype(dtype: torch.dtype) -> None:
    value = torch.full((1000,), mark_value(dtype), dtype=dtype)
    assert bool((value != 0).all())
    assert float(value[0]) == mark_value(dtype)
    if dtype != torch.float16:
        assert float(torch.linalg.vector_norm(value)) == 0


def test_one_large_parameter_alone_is_marked_and_a_stray_gradient_of_it_is_found() -> None:
    model = nn.Embedding(MOST_VALUES, 4)
    marks = GradientMarks(model, {"weight": model.weight})
    marks.put()
    model(torch.tensor([MOST_VALUES - 1])).sum().backward()
    marks.require_untouched()
    marks.take_away()
    assert model.weight.grad is not None  # left for the session to refuse by name
    model.weight.grad = None
    marks.put()
    marks.require_untouched()
    marks.take_away()
    assert model.weight.grad is None
