"""Does one example's loss depend on another's output or target? Asked of the losses, and of the criterion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from first_forwards import BATCH, CLASSES, Body, attached, data
from torch import Tensor, nn

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.loss_probe import CriterionProbe, require_separate_losses


def test_losses_that_mix_are_refused_beside_one_that_is_not_finite() -> None:
    """By their graph: a NaN of a record's own backward is told from one that comes over from another record."""
    out = torch.randn(6, 3, requires_grad=True)
    scale = torch.ones(6)
    scale[2] = float("nan")
    assert require_separate_losses(out.square().mean(1) * scale, [out])
    for mixed in (out.square().mean(1) * scale + out[5].sum(), (out - out[:2].mean(0)).square().mean(1) * scale):
        with pytest.raises(CrossSampleLeakError):
            require_separate_losses(mixed, [out])


def test_a_gradient_that_is_not_finite_at_a_finite_loss_is_no_leak() -> None:
    """The root of an error of 0, say: it is looked at in the next batch."""
    out = torch.randn(6, 3)
    out[2] = 0
    out.requires_grad_()
    assert not require_separate_losses(out.square().sum(1).sqrt(), [out])
    with pytest.raises(CrossSampleLeakError):
        require_separate_losses(out.square().sum(1).sqrt() + out[5].sum(), [out])


def test_losses_of_other_examples_are_found_in_the_graph_and_their_own_are_not() -> None:
    out = torch.randn(5, 3, requires_grad=True)
    assert require_separate_losses(out.square().mean(1), [out])
    for mixed in (out.square().mean(1) - out.mean(), out.softmax(0).sum(1), out.square().mean(1) * out[0, 0]):
        with pytest.raises(CrossSampleLeakError, match="depends on the outputs of others"):
            require_separate_losses(mixed, [out])


def test_one_example_and_losses_without_a_graph_have_nothing_to_be_mixed() -> None:
    out = torch.randn(1, 3, requires_grad=True)
    assert require_separate_losses(out.mean(1) + out.sum(), [out])
    assert require_separate_losses(torch.zeros(4), [out])


# The criterion ---------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Keeps a running mean of its losses, and may use it."""

    def __init__(self, uses: bool) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.uses = uses

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        found = F.cross_entropy(output, target, reduction="none")
        self.seen = 0.9 * self.seen + found.detach().mean()
        return found + self.seen if self.uses else found


class Asked:
    """A criterion as the probe sees it."""

    name = "asked"

    def __init__(self, losses: Callable[..., Tensor], watched: nn.Module | None = None) -> None:
        self.losses, self.watched = losses, watched


def examine(losses: Callable[[Any, Any], Tensor], watched: nn.Module | None = None, size: int = 6) -> bool:
    generator = torch.Generator().manual_seed(0)
    output, target = torch.randn(size, 3, generator=generator), torch.arange(size) % 3
    return CriterionProbe(Asked(losses, watched)).examine(((output, target), {}), size)


def each(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none")


def test_a_criterion_of_one_loss_for_each_example_is_accepted() -> None:
    assert examine(each)
    assert examine(lambda o, y: each(o, y) * torch.tensor([0.1, 0.5, 2.0])[y] + 0.1 * o.square().mean(1))


MIXING: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "divided by the size": (lambda o, y: each(o, y) / len(y), "left out"),
    "less the mean": (lambda o, y: each(o, y) - each(o, y).mean(), "left out|were exchanged"),
    "weighed by class counts": (lambda o, y: each(o, y) / torch.bincount(y, minlength=3)[y], "left out|were exchanged"),
    "contrasting outputs by value": (lambda o, y: each(o - o.detach().mean(0), y), "left out|were exchanged"),
    "of a fixed number": (lambda o, y: each(o, y).view(2, 3).flatten(), "cannot be evaluated without one"),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_criterion_by_which_examples_change_each_others_losses_is_refused(name: str) -> None:
    losses, what = MIXING[name]
    with pytest.raises(CrossSampleLeakError, match=f"criterion asked: .*({what})"):
        examine(losses)


def test_a_criterion_that_does_not_repeat_itself_is_refused() -> None:
    calls: list[int] = []

    def drifting(output: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        return each(output, target) * len(calls)

    with pytest.raises(CrossSampleLeakError, match="other losses when it is run again"):
        examine(drifting)


@pytest.mark.parametrize("uses", [True, False])
def test_state_of_a_criterion_that_follows_the_data_is_refused_and_put_back(uses: bool) -> None:
    module = Counting(uses)
    with pytest.raises(CrossSampleLeakError, match=r"seen|depend"):
        examine(module, module)
    assert module.seen == 0


def test_losses_that_are_not_finite_for_some_are_asked_of_others_in_their_place() -> None:
    def with_a_hole(output: Tensor, target: Tensor) -> Tensor:
        return torch.where(output[:, 0] == -7, torch.nan, each(output, target))

    output, target = torch.randn(6, 3), torch.arange(6) % 3
    output[2, 0] = -7
    assert CriterionProbe(Asked(with_a_hole)).examine(((output, target), {}), 6)
    with pytest.raises(CrossSampleLeakError):
        CriterionProbe(Asked(lambda o, y: with_a_hole(o, y) / len(y))).examine(((output, target), {}), 6)


# What a criterion keeps ------------------------------------------------------------------------------------------


KEPT: dict[str, float] = {}


class Remembers:
    def __init__(self) -> None:
        self.largest = ""

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        self.largest = str(float(out.detach().abs().max()))
        return F.cross_entropy(out, y, reduction="none")


def remembers_around() -> Callable[[Tensor, Tensor], Tensor]:
    largest = 1.0

    def criterion(out: Tensor, y: Tensor) -> Tensor:
        nonlocal largest
        largest = float(out.detach().abs().max())
        return F.cross_entropy(out, y, reduction="none")

    return criterion


def remembers_in_the_file(out: Tensor, y: Tensor) -> Tensor:
    KEPT["largest"] = float(out.detach().abs().max())
    return F.cross_entropy(out, y, reduction="none")


def remembers_the_first() -> Callable[[Tensor, Tensor], Tensor]:
    scale: list[float] = []

    def criterion(out: Tensor, y: Tensor) -> Tensor:
        if not scale:
            scale.append(1 + float(out.detach().abs().max()))
        return F.cross_entropy(out / scale[0], y, reduction="none")

    return criterion


def counts() -> Callable[[Tensor, Tensor], Tensor]:
    calls = 0

    def criterion(out: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return F.cross_entropy(out, y, reduction="none") / (1 + 0.1 * calls)

    return criterion


@pytest.mark.parametrize("make", [Remembers, remembers_around, lambda: remembers_in_the_file, remembers_the_first])
def test_a_criterion_that_keeps_what_follows_the_data_is_refused(make: Callable[[], Any]) -> None:
    """Guarantee: objects, closures and functions that name variables are watched as loss modules are."""
    with pytest.raises(CrossSampleLeakError, match="criterion"):
        step(make())


def test_a_criterion_that_counts_its_calls_is_none() -> None:
    criterion = counts()
    assert step(criterion) == 1
    out, y = torch.zeros(1, CLASSES), torch.zeros(1, dtype=torch.long)
    assert float(criterion(out, y)) == pytest.approx(float(torch.tensor(CLASSES).log()) / 1.2)  # its second call


def step(criterion: Any) -> int:
    model = Body()
    engine, optimizer, loader = attached(model, data(BATCH))
    for x, y in loader:
        engine.per_example(criterion)(model(x), y).backward()
        optimizer.step()
    return engine.session.steps
