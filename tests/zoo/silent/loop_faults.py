"""What a loop does around the model: failing loads, writes, gradients thrown away, sizes that are secret."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from silent_programs import REPLACED, Kept, Kind, Measured, Program
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hushgrad import PrivacyEngine

COUNT, CLIP, RATE = 32, 0.05, 1e-9
X = 3 * torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def squares(out: Tensor) -> Tensor:
    return out.square().sum(1)


Body = Callable[[PrivacyEngine, nn.Module, Kept, Tensor], None]


def step(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
    squares(model(x)).mean().backward()
    optimizer.step()


def sum_after(body: Body, value: float) -> tuple[Tensor, frozenset[str]]:
    """The update of one batch with `value` in its first record, in units of the rate that the run began with."""
    torch.manual_seed(0)
    data = X.clone()
    data[0] = value
    model, engine = net(), PrivacyEngine()
    optimizer = Kept(model.parameters(), lr=RATE)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(list(data), batch_size=COUNT),  # type: ignore[arg-type]
        noise_multiplier=0.0,
        max_grad_norm=CLIP,
        poisson_sampling=False,
    )
    for x in loader:
        body(engine, model, optimizer, x)
    conditions = frozenset(condition.name for condition in engine.session.guarantee(1e-5, "rdp").conditions)
    rate = optimizer.param_groups[0]["lr"] / RATE
    seen = optimizer.seen * COUNT * rate if hasattr(optimizer, "seen") else torch.full((1,), math.nan)
    engine.session.close()
    return seen, conditions


def looped(name: str, body: Body, *trust: str, is_clean: bool = False) -> Program:
    """S of a loop whose body is given; a step that one run takes and the other does not counts as infinite."""

    def measure(way: str) -> Measured:
        first, conditions = sum_after(body, 1e3)
        second, others = sum_after(body, 0.0)
        conditions |= others
        if first.shape != second.shape:
            return Measured(math.inf, conditions)
        moved = float((first.double() - second.double()).norm()) / CLIP
        return Measured(math.inf if math.isnan(moved) else moved, conditions)

    return Program(name, measure, ways=("scalar",), limit=REPLACED, trust=trust, is_clean=is_clean)


class Failing(Dataset[Tensor]):
    """Records of which one cannot be read."""

    def __init__(self, fails: int | None, error: type[Exception] = OSError) -> None:
        self.fails, self.error = fails, error

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Tensor:
        if index == self.fails:
            raise self.error("a record cannot be read")
        return X[index]


@dataclass(frozen=True)
class Loading:
    """How a loop meets records that cannot be read; returns how many steps it took."""

    take: Callable[[Any, Callable[[Tensor], None]], None]
    poisson: bool = True
    error: type[Exception] = OSError

    def steps(self, fails: int | None) -> tuple[int, frozenset[str]]:
        torch.manual_seed(0)
        model, engine = net(), PrivacyEngine(test_key=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        _, _, loader = engine.make_private(
            module=model,
            optimizer=optimizer,
            data_loader=DataLoader(Failing(fails, self.error), batch_size=8),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            poisson_sampling=self.poisson,
        )
        taken = 0

        def train(x: Tensor) -> None:
            nonlocal taken
            engine.session.backward(squares(model(x)))
            optimizer.step()
            taken += 1

        self.take(loader, train)
        conditions = frozenset(condition.name for condition in engine.session.guarantee(1e-5, "rdp").conditions)
        engine.session.close()
        return taken, conditions


def around_the_pass(loader: Any, train: Any) -> None:
    for _ in range(4):
        try:
            for x in loader:
                train(x)
        except (OSError, ValueError):
            pass


def around_next(loader: Any, train: Any) -> None:
    batches = iter(loader)
    while True:
        try:
            x = next(batches)
        except StopIteration:
            return
        except (OSError, ValueError):
            batches = iter(loader)
            continue
        train(x)


def loading(name: str, how: Loading, *trust: str, is_clean: bool = False) -> Program:
    """S is 0 if a record that cannot be read changes nothing about how many steps are taken."""

    def measure(way: str) -> Measured:
        whole, conditions = how.steps(None)
        if is_clean:
            return Measured(0.0 if whole else math.inf, conditions)
        broken, conditions = how.steps(5)
        return Measured(0.0 if broken == whole else math.inf, conditions)

    return Program(name, measure, ways=("session",), limit=0.0, trust=trust, is_clean=is_clean)


# Bodies --------------------------------------------------------------------------------------------------------------


def written(change: Callable[[Tensor], Any]) -> Body:
    def body(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
        squares(model(x)).mean().backward()
        change(x)
        optimizer.step()

    return body


def written_before(change: Callable[[Tensor], Any]) -> Body:
    """Between the forward and the backward, where torch does not count it."""

    def body(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
        loss = squares(model(x)).mean()
        change(x)
        loss.backward()
        optimizer.step()

    return body


def weights_written(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
    squares(model(x)).mean().backward()
    with torch.no_grad():
        model[2].weight.mul_(float(x.mean()))  # type: ignore[index]
    optimizer.step()


def thrown_away(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
    squares(model(x)).mean().backward()
    optimizer.zero_grad()
    squares(model(x)).mean().backward()
    optimizer.step()


def thrown_by_none(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
    squares(model(x)).mean().backward()
    for p in model.parameters():
        p.grad = None
    squares(model(x)).mean().backward()
    optimizer.step()


def scaled_by_the_batch(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
    loss = squares(model(x)).mean()
    (loss / loss.detach()).backward()
    optimizer.step()


def with_weight(weight: Callable[[Tensor], Tensor], *, direct: bool = False) -> Body:
    """A backward of examined losses that is given a gradient."""

    def body(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
        loss = engine.per_example(squares)(model(x))
        if direct:
            torch.autograd.backward([loss], [weight(x)])
        else:
            loss.backward(gradient=weight(x))
        optimizer.step()

    return body


def rate_by_the_batch(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
    squares(model(x)).mean().backward()
    for group in optimizer.param_groups:
        group["lr"] = float(x.abs().mean())
    optimizer.step()


def skipped_if_large(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
    loss = squares(model(x)).mean()
    if float(loss) > 1e2:
        return
    loss.backward()
    optimizer.step()


def discarded_if_large(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
    loss = squares(model(x)).mean()
    loss.backward()
    if float(loss) > 1e2:
        engine.session.discard()
        return
    optimizer.step()


def backward_twice(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
    loss = squares(model(x)).mean()
    loss.backward(retain_graph=True)
    loss.backward()
    optimizer.step()


def grad_changed(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
    squares(model(x)).mean().backward()
    for p in model.parameters():
        p.grad = x.mean() * torch.ones_like(p)
    optimizer.step()


def stepped_twice(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
    squares(model(x)).mean().backward()
    optimizer.step()
    optimizer.step()


def hooked(change: Callable[[nn.Module, Tensor], None]) -> Body:
    def body(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
        squares(model(x)).mean().backward()
        optimizer.register_step_pre_hook(lambda *_: change(model, x))
        optimizer.step()

    return body


def added_to_the_update(model: nn.Module, x: Tensor) -> None:
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad += x.mean()


def zeroed_before(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
    optimizer.zero_grad()
    step(engine, model, optimizer, x)


def logged(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
    loss = squares(model(x)).mean()
    loss.backward()
    float(loss)
    x.clone().sub_(x.mean(0))
    optimizer.step()


def evaluated(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
    with torch.no_grad():
        model(x)
    step(engine, model, optimizer, x)


def scheduled(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 1e-10
    step(engine, model, optimizer, x)


def two_losses(engine: PrivacyEngine, model: nn.Module, optimizer: Kept, x: Tensor) -> None:
    out = model(x)
    (squares(out).mean() + 0.1 * out.abs().sum(1).mean()).backward()
    optimizer.step()


PROGRAMS: tuple[Program, ...] = (
    loading("a record that cannot be read, try around the pass", Loading(around_the_pass), "discarded batches"),
    loading("a record that cannot be read, try around next()", Loading(around_next), "discarded batches"),
    loading("the same by ValueError", Loading(around_the_pass, error=ValueError), "discarded batches"),
    loading(
        "a record that cannot be read, fixed batches", Loading(around_the_pass, poisson=False), "discarded batches"
    ),
    looped("x -= x.mean(0) between backward and step", written(lambda x: x.sub_(x.mean(0)))),
    looped("x.copy_ between backward and step", written(lambda x: x.copy_(50 * x.mean(0).expand_as(x)))),
    looped("x.data written between forward and backward", written_before(lambda x: x.data.sub_(x.data.mean(0)))),
    looped(
        "x.numpy() written between forward and backward",
        written_before(lambda x: x.numpy().__isub__(x.numpy().mean(0))),
    ),
    looped("weights scaled by the batch between backward and step", weights_written),
    looped("a backward thrown away by zero_grad()", thrown_away),
    looped("a backward thrown away by grad = None", thrown_by_none),
    looped("loss / loss.detach()", scaled_by_the_batch),
    looped("a gradient of the loss that follows the batch", with_weight(lambda x: 1 / (1 + x.abs().max()))),
    looped(
        "a gradient of the loss that follows the batch, by torch.autograd",
        with_weight(lambda x: 1 / (1 + x.abs().max()), direct=True),
    ),
    looped("a learning rate that follows the batch", rate_by_the_batch, "values changed within an item"),
    looped("batches of a large loss skipped", skipped_if_large, "discarded batches"),
    looped("batches of a large loss discarded", discarded_if_large, "discarded batches"),
    looped("backward twice through one graph", backward_twice),
    looped("gradients replaced by the loop", grad_changed),
    looped("a second step()", stepped_twice),
    looped("a hook on the optimizer that adds to the update", hooked(added_to_the_update), "hooks on the optimizer"),
    looped("backward, step", step, is_clean=True),
    looped("zero_grad() before the backward", zeroed_before, is_clean=True),
    looped("a copy of the batch for a log", logged, is_clean=True),
    looped("an evaluation before the step", evaluated, is_clean=True),
    looped("a learning rate by schedule", scheduled, is_clean=True),
    looped("a constant gradient of the loss", with_weight(lambda x: torch.tensor(0.5)), is_clean=True),
    looped("the sum of two losses", two_losses, is_clean=True),
    loading("all records can be read, try around the pass", Loading(around_the_pass), is_clean=True),
    loading("all records can be read, try around next()", Loading(around_next), is_clean=True),
)

KIND = Kind(
    "the loop around it",
    "what was drawn and not trained; what backward recorded; gradients, groups and their order",
    "every step",
    "`discarded batches` is stated; writes that torch does not count, before the backward",
    PROGRAMS,
)
