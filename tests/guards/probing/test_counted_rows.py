"""The gradient of an output shows which of its parts a loss counted, and with which weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hushgrad.guards.probing.counted_rows import CountedRows, counted_values

SIZE, LENGTH, CLASSES = 6, 4, 7
KEPT = torch.arange(LENGTH) < torch.tensor([1, 2, 3, 4, 2, 1])[:, None]


def logits_and_targets(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(SIZE, LENGTH, CLASSES, generator=generator)
    return logits.requires_grad_(), torch.randint(0, CLASSES, (SIZE, LENGTH), generator=generator)


def gradient_of(loss: Tensor, outputs: Tensor) -> Tensor:
    return torch.autograd.grad(loss, outputs)[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_counts_and_weights_of_rows_are_told_exactly(seed: int, smoothing: float) -> None:
    logits, targets = logits_and_targets(seed)
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", label_smoothing=smoothing)
    gradient = gradient_of((losses * KEPT).sum() / 37, logits)
    found = CountedRows(gradient, logits, 0, SIZE, CLASSES).found(with_weight=True, smoothed=smoothing > 0)
    assert (found.least, found.most, found.total) == (1, 4, int(KEPT.sum()))
    assert found.weight == pytest.approx(1 / 37, rel=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_batch_and_the_classes_may_lie_on_any_axes(axis: int) -> None:
    logits, targets = logits_and_targets()
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    gradient = gradient_of((losses * KEPT).sum(), logits).movedim(0, axis)
    found = CountedRows(gradient, logits.detach().movedim(0, axis), axis, SIZE, CLASSES)
    assert found.found(with_weight=True, smoothed=False).weight == pytest.approx(1, rel=1e-5)


def test_weights_that_differ_are_no_weight() -> None:
    logits, targets = logits_and_targets()
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    gradient = gradient_of((losses * torch.linspace(1, 2, SIZE)[:, None]).sum(), logits)
    assert CountedRows(gradient, logits, 0, SIZE, CLASSES).found(with_weight=True, smoothed=False).weight is None


def test_a_row_whose_probabilities_vanish_is_counted_and_one_that_was_ignored_is_not() -> None:
    _, targets = logits_and_targets()
    logits = (1000.0 * F.one_hot(targets, CLASSES)).requires_grad_()
    targets[0] = -100
    gradient = gradient_of(F.cross_entropy(logits.transpose(1, 2), targets), logits)
    assert not gradient.any()  # nothing in the gradient tells them apart
    whole = CountedRows(gradient, logits, 0, SIZE, CLASSES).found(with_weight=False, smoothed=False)
    assert whole.least == whole.most == LENGTH
    mild, targets = logits_and_targets()
    targets[0] = -100
    gradient = gradient_of(F.cross_entropy(mild.transpose(1, 2), targets), mild)
    assert CountedRows(gradient, mild, 0, SIZE, CLASSES).found(with_weight=False, smoothed=False).least == 0


def test_an_axis_of_classes_that_cannot_be_told_is_said() -> None:
    assert not CountedRows(torch.zeros(6, 7, 7), None, 0, 6, 7).is_known
    assert not CountedRows(torch.zeros(6, 5), None, 0, 6, 7).is_known


@pytest.mark.parametrize("kind", ["square", "absolute", "bernoulli"])
def test_counts_and_weights_of_values_are_told_exactly(kind: str) -> None:
    outputs = torch.randn(SIZE, LENGTH).requires_grad_()
    targets = torch.randn(SIZE, LENGTH)
    each = {
        "square": lambda: (outputs - targets).square(),
        "absolute": lambda: (outputs - targets).abs(),
        "bernoulli": lambda: F.binary_cross_entropy_with_logits(outputs, (targets > 0).float(), reduction="none"),
    }[kind]()
    loss = (each * KEPT).sum() / 13
    found = counted_values(kind, gradient_of(loss, outputs), outputs, float(loss.detach()), 0, SIZE)
    assert found is not None
    assert (found.least, found.most, found.total) == (1, 4, int(KEPT.sum()))
    assert found.weight == pytest.approx(1 / 13, rel=1e-5)
