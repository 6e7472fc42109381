"""Tensors that a loop keeps and changes between two items are told; those that follow released weights are not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.accounting.conditions import LOSSES_CHANGE
from hushgrad.errors import TakenOnTrustError
from hushgrad.guards.probing.loss_programs import LossPrograms
from hushgrad.guards.probing.outside_changes import MOST_SUMMED, SAMPLE, OutsideChanges
from hushgrad.guards.probing.own_memory import OwnMemory
from hushgrad.guards.probing.widths import Drawn

D, K, B = 4, 3, 8
GENERATOR = torch.Generator().manual_seed(5)
X, Y = torch.randn(24, D, generator=GENERATOR), torch.arange(24) % K
ALWAYS = {"fixed key", "no ledger path"}

# By themselves -------------------------------------------------------------------------------------------------------


def changed(
    tensor: Tensor, between: Callable[[nn.Module], Any], model: nn.Module | None = None, items: int = 3
) -> bool:
    """Meet a tensor in items that are looked at; return whether it has changed otherwise than by weights."""
    model = nn.Linear(D, K) if model is None else model
    own = OwnMemory(model)
    changes = OutsideChanges(own)
    for _ in range(items):
        changes.before_draw()
        changes.meet(tensor)
        changes.end_item(lambda other: False)
        own.forget()
        between(model)
    changes.before_draw()
    return changes.have_changed


@pytest.mark.parametrize("size", [1, 7, SAMPLE, SAMPLE + 1, 5 * SAMPLE, MOST_SUMMED + 1])
def test_a_write_is_told_whatever_the_size_and_nothing_else_is(size: int) -> None:
    kept = torch.zeros(size)
    assert not changed(kept, lambda model: None)
    assert not changed(kept, lambda model: kept.sum())
    assert changed(kept, lambda model: kept[-1:].add_(1))


def test_a_write_past_torchs_count_is_told() -> None:
    kept, array = torch.zeros(5), torch.zeros(5)
    values = array.numpy()
    assert changed(kept, lambda model: setattr(kept, "data", torch.ones(5)))
    assert changed(array, lambda model: values.__setitem__(2, values[2] + 1))


def test_values_that_are_not_numbers_are_themselves() -> None:
    kept = torch.tensor([float("nan"), 1.0])
    assert not changed(kept, lambda model: None)
    assert changed(kept, lambda model: kept[1:].add_(1))


def test_a_write_between_two_looks_is_told_by_torchs_count_and_at_the_next_look_by_values() -> None:
    for write in (lambda kept: kept.add_(1), lambda kept: setattr(kept, "data", kept + 1)):
        kept, own = torch.zeros(3), OwnMemory(nn.Linear(2, 2))
        changes = OutsideChanges(own)
        changes.meet(kept)
        changes.end_item(lambda other: False)
        changes.before_draw()  # an item that is not looked at
        write(kept)  # type: ignore[no-untyped-call]
        changes.before_draw()
        changes.meet(kept)
        assert changes.have_changed


def test_what_has_values_of_its_item_is_not_compared() -> None:
    kept = torch.zeros(3)
    changes = OutsideChanges(OwnMemory(None))
    changes.meet(kept)
    changes.end_item(lambda other: other is kept)
    kept.add_(1)
    changes.before_draw()
    assert not changes.have_changed


def moved(model: nn.Module) -> None:
    """Another step of the model."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("share", [0.004, 0.5, 1.0])
@pytest.mark.parametrize("is_before", [True, False])
def test_a_moving_average_of_weights_is_no_change(dtype: torch.dtype, share: float, is_before: bool) -> None:
    torch.manual_seed(1)
    model = nn.Linear(D, K).to(dtype)
    teacher = model.weight.detach().clone() * 1.5

    def step(model: Any) -> None:
        if not is_before:
            moved(model)
        teacher.lerp_(model.weight.detach(), share)
        if is_before:
            moved(model)

    assert not changed(teacher, step, model)


def test_an_average_with_anything_added_is_a_change() -> None:
    model = nn.Linear(D, K)
    teacher, mean = model.weight.detach().clone(), torch.randn(D)

    def step(model: Any) -> None:
        moved(model)
        teacher.lerp_(model.weight.detach(), 0.1).add_(0.001 * mean)

    assert changed(teacher, step, model)


def test_a_single_value_moves_by_the_part_of_others_or_has_changed() -> None:
    model = nn.Linear(D, 1)
    model.bias.data.fill_(1.0)
    for share, is_change in ((0.1, False), (0.2, True)):
        weight, bias = torch.zeros(1, D), torch.zeros(1)
        own = OwnMemory(model)
        changes = OutsideChanges(own)
        for tensor in (weight, bias):
            changes.meet(tensor)
        changes.end_item(lambda other: False)
        weight.lerp_(model.weight.detach(), 0.1)
        bias.lerp_(model.bias.detach(), share)
        changes.before_draw()
        assert changes.have_changed is is_change


# In loops ------------------------------------------------------------------------------------------------------------


class Loop:
    """What a loop keeps beside its model."""

    def __init__(self, model: nn.Module, engine: PrivacyEngine) -> None:
        self.model, self.engine = model, engine
        self.mean, self.centre, self.queue, self.array = (
            torch.zeros(D),
            torch.zeros(K),
            torch.randn(12, K),
            torch.zeros(D),
        )
        self.centres, self.numpy, self.parameter = torch.zeros(K, K), self.array.numpy(), nn.Parameter(torch.zeros(D))
        self.norm, self.front, self.place = nn.BatchNorm1d(D, affine=False).eval(), nn.Linear(D, D), 0
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.unfrozen = copy.deepcopy(model)
        self.averaged = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        weights = torch.ones(K)
        self.weights, self.noise, self.generator = weights, torch.zeros(D), nn.Linear(2, D)
        self.criterion = engine.per_example(lambda output, y: F.cross_entropy(output, y, reduction="none"))
        self.weighted = engine.per_example(
            lambda output, y: F.cross_entropy(output, y, reduction="none") * (1 / weights)[y]
        )
        self.pairs = engine.per_example(lambda real, made: F.softplus(-real[:, 0]) + F.softplus(made[:, 0]))

    def by(self, inputs: Tensor, y: Tensor) -> None:
        self.criterion(self.model(inputs), y).backward()

    def taught(self, teacher: nn.Module, x: Tensor) -> None:
        output = self.model(x)
        with torch.no_grad():
            target = teacher(x).softmax(1)
        self.engine.session.backward(-(target * output.log_softmax(1)).sum(1))

    def push(self, x: Tensor) -> None:
        self.queue[self.place : self.place + 2] = self.model(x[:2]).detach()
        self.place = (self.place + 2) % 12

    def follow(self, teacher: nn.Module, part: float = 0.1) -> None:
        with torch.no_grad():
            for mine, other in zip(teacher.parameters(), self.model.parameters(), strict=True):
                mine.lerp_(other, part)

    def follow_data(self, teacher: nn.Module) -> None:
        for mine, other in zip(teacher.parameters(), self.model.parameters(), strict=True):
            mine.data.mul_(0.9).add_(other.data, alpha=0.1)

    def write(self, tensor: Tensor, values: Tensor) -> None:
        tensor.data = values

    def against_queue(self, x: Tensor) -> None:
        output = self.model(x)
        self.engine.session.backward((output @ self.queue.T).logsumexp(1))

    def to_centres(self, x: Tensor, y: Tensor) -> None:
        self.engine.session.backward((self.model(x) - self.centres[y]).square().sum(1))

    def centred_teacher(self, x: Tensor) -> None:
        output = self.model(x)
        with torch.no_grad():
            target = (self.teacher(x) - self.centre).softmax(1)
        self.engine.session.backward(-(target * output.log_softmax(1)).sum(1))

    def in_training(self, x: Tensor) -> None:
        self.norm.train()(x)
        self.norm.eval()

    def of_front(self, x: Tensor) -> None:
        self.front.zero_grad()
        (self.front(x) - x).square().mean().backward()
        with torch.no_grad():
            for parameter in self.front.parameters():
                parameter -= 0.1 * parameter.grad

    def generate(self) -> None:
        with self.engine.session.paused():
            loss = F.softplus(-self.model(self.generator(torch.randn(B, 2)))).mean()
            self.generator.zero_grad()
            loss.backward()
        with torch.no_grad():
            for parameter in self.generator.parameters():
                parameter -= 0.1 * parameter.grad
        self.model.zero_grad()


Step = Callable[[Loop, Tensor, Tensor], Any]

LEAKY: dict[str, tuple[Step, Step]] = {
    "a running mean": (lambda a, x, y: a.by(x - a.mean, y), lambda a, x, y: a.mean.lerp_(x.mean(0), 0.3)),
    "a mean by .data": (lambda a, x, y: a.by(x - a.mean, y), lambda a, x, y: a.write(a.mean, x.mean(0))),
    "a mean in NumPy's memory": (
        lambda a, x, y: a.by(x - a.array, y),
        lambda a, x, y: a.numpy.__setitem__(slice(None), x.numpy().mean(0)),
    ),
    "a parameter of the loop": (
        lambda a, x, y: a.by(x - a.parameter.detach(), y),
        lambda a, x, y: a.parameter.data.copy_(x.mean(0)),
    ),
    "a teacher's centre": (
        lambda a, x, y: a.centred_teacher(x),
        lambda a, x, y: a.centre.lerp_(a.teacher(x).detach().mean(0), 0.5),
    ),
    "a queue": (lambda a, x, y: a.against_queue(x), lambda a, x, y: a.push(x)),
    "centres of classes": (
        lambda a, x, y: a.to_centres(x, y),
        lambda a, x, y: a.centres.index_add_(0, y, 0.3 * a.model(x).detach()),
    ),
    "a normaliser": (lambda a, x, y: a.by(a.norm(x), y), lambda a, x, y: a.in_training(x)),
    "another network in front": (lambda a, x, y: a.by(a.front(x).detach(), y), lambda a, x, y: a.of_front(x)),
    "what a criterion reads": (
        lambda a, x, y: a.weighted(a.model(x), y).backward(),
        lambda a, x, y: a.weights.fill_(float(x.abs().max())),
    ),
}

HONEST: dict[str, tuple[Step, Step]] = {
    "a constant shift": (lambda a, x, y: a.by(x - a.mean, y), lambda a, x, y: x.mean(0)),
    "a constant queue": (lambda a, x, y: a.against_queue(x), lambda a, x, y: None),
    "constant centres": (lambda a, x, y: a.to_centres(x, y), lambda a, x, y: None),
    "a normaliser that stays": (lambda a, x, y: a.by(a.norm(x), y), lambda a, x, y: a.norm(x)),
    "a frozen network in front": (lambda a, x, y: a.by(a.front(x).detach(), y), lambda a, x, y: a.front(x)),
    "class weights": (lambda a, x, y: a.weighted(a.model(x), y).backward(), lambda a, x, y: None),
    "a teacher": (lambda a, x, y: a.taught(a.teacher, x), lambda a, x, y: a.follow(a.teacher)),
    "a teacher by .data": (lambda a, x, y: a.taught(a.unfrozen, x), lambda a, x, y: a.follow_data(a.unfrozen)),
    "a teacher that is copied": (lambda a, x, y: a.taught(a.teacher, x), lambda a, x, y: a.follow(a.teacher, 1.0)),
    "torch's averaged model": (
        lambda a, x, y: a.taught(a.averaged, x),
        lambda a, x, y: a.averaged.update_parameters(a.model),
    ),
    "noise in a buffer": (lambda a, x, y: a.by(x + 0.1 * a.noise.normal_(), y), lambda a, x, y: None),
    "a generator": (
        lambda a, x, y: a.pairs(a.model(x), a.model(a.generator(torch.randn(len(x), 2)).detach())).backward(),
        lambda a, x, y: a.generate(),
    ),
}


def conditions(name: str, loops: dict[str, tuple[Step, Step]], *, strict: bool = False, epochs: int = 2) -> set[str]:
    """Train some steps; return what was taken on trust."""
    torch.manual_seed(0)
    engine: Any = PrivacyEngine(test_key=4, strict=strict)
    model: Any = nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, K))
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(TensorDataset(X, Y), batch_size=B),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    loop, (step, after) = Loop(model, engine), loops[name]
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            step(loop, x, y)
            optimizer.step()
            after(loop, x, y)
    return {condition.name for condition in engine.guarantee(1e-5).conditions} - ALWAYS


@pytest.mark.parametrize("name", LEAKY)
def test_what_a_loop_keeps_and_changes_after_its_step_is_told(name: str) -> None:
    assert LOSSES_CHANGE.name in conditions(name, LEAKY, epochs=1)


@pytest.mark.parametrize("name", HONEST)
def test_what_stays_or_follows_released_weights_is_not(name: str) -> None:
    assert conditions(name, HONEST) == set()


@pytest.mark.parametrize("name", ["a running mean", "a mean by .data"])
def test_strict_refuses_it(name: str) -> None:
    with pytest.raises(TakenOnTrustError, match=LOSSES_CHANGE.name):
        conditions(name, LEAKY, strict=True)


def test_a_write_past_torchs_count_between_two_looks_is_told_by_the_item_that_meets_it() -> None:
    """The last one, after which nothing is drawn."""
    kept = torch.zeros(D)
    programs = LossPrograms("mean", None)
    for number in range(2):
        programs.before_draw(None, None)
        programs.begin(B, Drawn(None, range(B), X[:B], B, None))
        programs.given(((X[:B],), {}), None)
        output = X[:B].clone().requires_grad_() * 1
        programs.returned(output)
        programs.losses((output - kept).square().sum(1))
        programs.examine()
        assert programs.have_changed is (number == 1)
        programs.forget()
        programs.before_draw(None, None)  # an item that is not looked at
        kept.data = torch.ones(D)
