"""Criteria of many arguments: all of them are examined, and their gradients are those of one example at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from first_forwards import BATCH, Body, attached, data
from torch import Tensor, nn

from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import CrossSampleLeakError, LossShapeError
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time
from hushgrad.guards.probing.loss_probe import CriterionProbe

B, D, T, C = 6, 3, 5, 4
GENERATOR = torch.Generator().manual_seed(3)


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


class Asked:
    """A criterion as the probe sees it."""

    name, watched = "asked", None

    def __init__(self, losses: Callable[..., Tensor]) -> None:
        self.losses = losses


def examine(losses: Callable[..., Tensor], *arguments: Any, **named: Any) -> CriterionProbe:
    probe = CriterionProbe(Asked(losses))
    assert probe.examine((arguments, named), B)
    return probe


def apart(one: Tensor, two: Tensor) -> Tensor:
    return (one - two).square().sum(1)


# The probe alone -------------------------------------------------------------------------------------------------


def ctc(times: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    lengths = torch.randint(4, times + 1, (B,), generator=GENERATOR)
    targets = torch.randint(1, C, (B, 2), generator=GENERATOR)
    return values(times, B, C).log_softmax(2), targets, lengths, torch.full((B,), 2)


HONEST: dict[str, Callable[[], tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]]] = {
    "three tensors": lambda: (
        lambda a, p, n: F.triplet_margin_loss(a, p, n, reduction="none"),
        (values(B, D), values(B, D), values(B, D)),
        {},
    ),
    "times before the batch": lambda: (lambda *a: F.ctc_loss(*a, reduction="none"), ctc(T), {}),
    "as many times as examples": lambda: (lambda *a: F.ctc_loss(*a, reduction="none"), ctc(B), {}),
    "by name, and a constant": lambda: (
        lambda out, *, weight, prior: weight * apart(out, prior.mean(0).expand_as(out)),
        (values(B, D),),
        {"weight": values(B), "prior": values(7, D)},
    ),
    "lists of numbers and of texts": lambda: (
        lambda out, numbers, texts: out.sum(1) * torch.tensor(numbers) + torch.tensor([len(t) for t in texts]),
        (values(B, D), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [*"abcde", "long"]),
        {},
    ),
    "one argument": lambda: (lambda out: out.square().sum(1), (values(B, D),), {}),
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_criterion_of_any_arguments_passes(name: str) -> None:
    losses, arguments, named = HONEST[name]()
    examine(losses, *arguments, **named)


def test_the_axis_of_the_examples_is_found_in_each_argument() -> None:
    for times in (T, B):
        probe = examine(lambda *a: F.ctc_loss(*a, reduction="none"), *ctc(times))
        assert probe.axes == {(0, 0): 1, (0, 1): 0, (0, 2): 0, (0, 3): 0}


def test_examples_whose_losses_are_not_finite_are_repaired_on_whatever_axis_they_lie() -> None:
    scores, *rest = ctc(T)
    scores[:, 2] = torch.nan
    examine(lambda *a: F.ctc_loss(*a, reduction="none"), scores, *rest)
    scores, targets, lengths, of_targets = ctc(T)
    lengths[4] = 1  # too short for its target: Inf
    examine(lambda *a: F.ctc_loss(*a, reduction="none"), scores, targets, lengths, of_targets)


LEAKY: dict[str, Callable[[Tensor, Tensor, Any], Tensor]] = {
    "the third centred over the batch": lambda a, b, c: apart(a, b) + apart(c, c.mean(0)),
    "the third centred, without a gradient": lambda a, b, c: apart(a, b) * (c.detach() - c.detach().mean(0)).sum(1),
    "weighed by another's second": lambda a, b, c: apart(a, c) * b.roll(1, 0).sum(1),
    "divided by the sum of the third": lambda a, b, c: apart(a, b) / c.sum(),
    "the hardest negative of the batch": lambda a, b, c: apart(a, b) - torch.cdist(a, c).amin(1),
    "the batch's size": lambda a, b, c: apart(a, b) / len(c),
}


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("name", LEAKY)
def test_a_criterion_that_mixes_examples_by_any_argument_is_refused(name: str, by_name: bool) -> None:
    a, b, c = values(B, D), values(B, D), values(B, D)
    leaky = LEAKY[name]
    arguments, named = ((a,), {"c": c, "b": b}) if by_name else ((a, b, c), {})
    with pytest.raises(CrossSampleLeakError, match="criterion asked"):
        examine(leaky, *arguments, **named)


def test_a_list_that_mixes_examples_is_refused() -> None:
    def leaky(out: Tensor, target: Tensor, numbers: list[float]) -> Tensor:
        return apart(out, target) * max(numbers)

    with pytest.raises(CrossSampleLeakError, match="criterion asked"):
        examine(leaky, values(B, D), values(B, D), [1.0, 5.0, 2.0, 9.0, 3.0, 4.0])


def test_a_leak_through_what_lies_behind_the_times_is_refused() -> None:
    def leaky(scores: Tensor, *rest: Tensor) -> Tensor:
        return F.ctc_loss(scores, *rest, reduction="none") * scores.std((0, 2)).mean()

    for times in (T, B):
        with pytest.raises(CrossSampleLeakError, match="criterion asked"):
            examine(leaky, *ctc(times))


# In a loop -------------------------------------------------------------------------------------------------------


def branches(model: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return model(x), model(x.roll(1, 1)), model(x.flip(1))


def frames(model: Any, x: Tensor) -> tuple[Tensor, ...]:
    """`[T, b, C]` with T = 2 here, targets, and both lengths."""
    scores = torch.stack([model(x), model(-x)]).log_softmax(2)
    return scores, torch.ones(len(x), 1).long(), torch.full((len(x),), 2), torch.ones(len(x)).long()


IN_A_LOOP: dict[str, tuple[nn.Module, Callable[[Any, Tensor], tuple[Tensor, ...]]]] = {
    "triplet": (nn.TripletMarginLoss(), branches),
    "cosine": (nn.CosineEmbeddingLoss(), lambda m, x: (*branches(m, x)[:2], x[:, 0].sign())),
    "ranking": (nn.MarginRankingLoss(margin=0.5), lambda m, x: (m(x)[:, 0], m(x)[:, 1], x[:, 0].sign())),
    "gaussian": (nn.GaussianNLLLoss(), lambda m, x: (m(x), x[:, :3], m(2 * x).exp())),
    "ctc": (nn.CTCLoss(), frames),
}


@pytest.mark.parametrize("name", IN_A_LOOP)
def test_the_update_is_that_of_one_example_at_a_time(name: str) -> None:
    criterion, arguments = IN_A_LOOP[name]
    torch.manual_seed(4)
    records = data(BATCH)
    x = records.tensors[0]
    model, alone = Body(), Body()
    alone.load_state_dict(model.state_dict())
    losses = [lambda i=i: criterion(*arguments(alone, x[i : i + 1])) for i in range(BATCH)]  # type: ignore[misc]
    expected = clipped_sum_of(one_at_a_time(alone, losses), FlatClipping(1.0))
    engine, optimizer, loader = attached(model, records, lr=1.0)
    per_example = engine.per_example(criterion)
    for batch, _ in loader:
        per_example(*arguments(model, batch)).backward()
        optimizer.step()
    assert engine.session.probe_report.criteria == 1
    for (name_of, now), before in zip(model.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(before - now, expected[name_of] / BATCH, rtol=1e-4, atol=1e-6)


IN_A_LOOP_LEAKY: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "the third centred over the batch": lambda a, b, c: apart(a, b) + apart(c, c.mean(0)),
    "the third centred, without a gradient": lambda a, b, c: apart(a, b) * (c.detach() - c.detach().mean(0)).sum(1),
    "weighed by another's second": lambda a, b, c: apart(a, c) * b.detach().roll(1, 0).abs().sum(1),
    "the hardest negative of the batch": lambda a, b, c: F.relu(apart(a, b) - torch.cdist(a, c).amin(1) + 1),
}


@pytest.mark.parametrize("name", IN_A_LOOP_LEAKY)
def test_no_update_of_a_criterion_that_mixes_examples_by_any_argument_is_released(name: str) -> None:
    model = Body()
    engine, optimizer, loader = attached(model, data())
    per_example = engine.per_example(IN_A_LOOP_LEAKY[name])

    def train() -> None:
        for x, _ in loader:
            per_example(*branches(model, x)).backward()
            optimizer.step()

    with pytest.raises((CrossSampleLeakError, LossShapeError)):
        train()
    assert engine.session.steps == 0


def test_a_part_of_the_models_output_that_carries_the_batch_is_refused() -> None:
    class WithABalance(Body):
        def after(self, out: Tensor) -> Any:
            return out, out.detach().mean()

    model = WithABalance()
    engine, optimizer, loader = attached(model, data())
    per_example = engine.per_example(lambda y, balance, out: F.cross_entropy(out, y, reduction="none") * balance)

    def train() -> None:
        for x, y in loader:
            out, balance = model(x)
            per_example(y, balance, out).backward()
            optimizer.step()

    with pytest.raises(CrossSampleLeakError):
        train()
    assert engine.session.steps == 0
