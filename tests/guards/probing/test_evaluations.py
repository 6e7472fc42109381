"""Evaluations of criteria: kept until they are examined, examined once, and looked at again in part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.evaluations import FEW, Evaluation, Evaluations
from hushgrad.guards.probing.looks import Looks
from hushgrad.randomness import KeyStream

B = 9
GENERATOR = torch.Generator().manual_seed(6)
OUTPUT, TARGET = torch.randn(B, 3, generator=GENERATOR), torch.arange(B) % 3


def each(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none")


class Asked:
    """A criterion as the probe sees it, which counts how many examples it was given."""

    name = "asked"
    watched = None

    def __init__(self, losses: Callable[[Any, Any], Tensor] = each) -> None:
        self._losses = losses
        self.sizes: list[int] = []

    def losses(self, output: Any, target: Any) -> Tensor:
        self.sizes.append(len(output))
        return self._losses(output, target)


class OneBatch:
    """Evaluations of one batch after another, with a backward or without."""

    def __init__(self) -> None:
        self.looks = Looks(KeyStream.fixed_for_tests(2))
        self.looks.begin()
        self.looks.wanted = False
        self.is_accumulating = True
        self.evaluations = Evaluations(self.looks, lambda: self.is_accumulating)

    def evaluate(
        self, criterion: Asked, output: Tensor = OUTPUT, target: Any = TARGET, *, backward: bool = True
    ) -> bool:
        """Call the criterion as a loop does; return whether it is to be examined."""
        output = output.clone().requires_grad_()
        self.evaluations.begin(criterion)
        losses = criterion.losses(output, target)
        is_kept = self.evaluations.note(criterion, ((output, target), {}), losses)
        if backward:
            losses.sum().backward()  # type: ignore[no-untyped-call]
        return is_kept

    def examine(self) -> list[Evaluation]:
        """Examine what was reached, and begin the next batch."""
        reached = self.evaluations.reached()
        for evaluation in reached:
            assert self.evaluations.examine(evaluation, len(OUTPUT), None) == []
        self.evaluations.clear()
        return reached


@pytest.fixture
def batch() -> OneBatch:
    return OneBatch()


def test_a_criterion_is_examined_whole_once_and_then_kept_no_more(batch: OneBatch) -> None:
    criterion = Asked()
    assert batch.evaluate(criterion)
    (found,) = batch.examine()
    assert (found.losses, batch.evaluations.examined) == (None, 1)
    for _ in range(3):
        assert not batch.evaluate(criterion)
        assert batch.examine() == []
    assert batch.evaluate(Asked())  # another one
    batch.examine()
    assert batch.evaluations.examined == 2


def test_what_was_given_is_kept_as_it_was(batch: OneBatch) -> None:
    target = TARGET.clone()
    criterion = Asked()
    output = OUTPUT.clone().requires_grad_()
    losses = criterion.losses(output, target)
    batch.evaluations.begin(criterion)
    batch.evaluations.note(criterion, ((output, target), {}), losses)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    target.zero_()
    with torch.no_grad():
        output.zero_()
    (found,) = batch.evaluations.reached()
    assert found.given[0][0] is output
    assert torch.equal(found.values[0][1], TARGET)
    assert torch.equal(found.values[0][0], OUTPUT)


def test_what_no_accumulating_backward_came_back_through_is_not_examined(batch: OneBatch) -> None:
    criterion = Asked()
    batch.evaluate(criterion, backward=False)
    assert batch.evaluations.reached() == []
    batch.is_accumulating = False
    batch.evaluate(criterion)
    assert batch.evaluations.reached() == []
    batch.is_accumulating = True
    batch.evaluate(criterion)
    assert len(batch.evaluations.reached()) == 1


def test_of_several_evaluations_the_first_that_was_reached_stays(batch: OneBatch) -> None:
    criterion = Asked()
    batch.evaluate(criterion, OUTPUT + 1, backward=False)
    batch.evaluate(criterion, OUTPUT + 2)
    batch.evaluate(criterion, OUTPUT + 3)
    (found,) = batch.evaluations.reached()
    assert torch.equal(found.values[0][0], OUTPUT + 2)
    batch.evaluations.clear()
    assert batch.evaluations.reached() == []


def test_a_look_at_a_known_criterion_evaluates_a_few_of_its_examples(batch: OneBatch) -> None:
    criterion = Asked()
    batch.evaluate(criterion)
    batch.examine()
    batch.looks.wanted = True
    assert batch.evaluate(criterion, OUTPUT * 2)
    (found,) = batch.evaluations.reached()
    assert found.losses is not None
    assert found.losses.shape == (FEW,)
    assert torch.allclose(each(found.values[0][0], found.values[0][1]), found.losses)
    rows = [int((row == OUTPUT * 2).all(1).nonzero()) for row in found.values[0][0]]
    assert rows == sorted(set(rows))
    assert torch.equal(found.values[0][1], TARGET[rows])
    criterion.sizes.clear()
    batch.examine()
    assert criterion.sizes
    assert max(criterion.sizes) <= FEW
    assert batch.evaluations.examined == 1


LATER: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "less the mean of all": (lambda losses: losses - losses.mean(), True),
    "divided by their number": (lambda losses: losses / len(losses), True),
    "half": (lambda losses: losses / 2, False),
    "clamped": (lambda losses: losses.clamp(max=1.0), False),
}
"""What a criterion turns to after it was examined, and whether that mixes examples."""


@pytest.mark.parametrize("name", LATER)
def test_a_criterion_that_mixes_examples_later_is_refused_by_a_look_and_no_other_change_is(
    batch: OneBatch, name: str
) -> None:
    then, is_refused = LATER[name]
    now: list[Callable[[Tensor], Tensor]] = []
    criterion = Asked(lambda output, target: now[0](each(output, target)) if now else each(output, target))
    batch.evaluate(criterion)
    batch.examine()
    now.append(then)
    assert not batch.evaluate(criterion)  # nobody looks
    batch.looks.wanted = True
    assert batch.evaluate(criterion)
    (found,) = batch.evaluations.reached()
    if is_refused:
        with pytest.raises(CrossSampleLeakError, match="criterion asked"):
            batch.evaluations.examine(found, B, None)
    else:
        assert batch.evaluations.examine(found, B, None) == []


def test_a_criterion_that_mixes_examples_from_the_start_is_refused_and_not_taken_for_known(batch: OneBatch) -> None:
    criterion = Asked(lambda output, target: each(output, target) / len(target))
    for _ in range(2):
        assert batch.evaluate(criterion)
        (found,) = batch.evaluations.reached()
        with pytest.raises(CrossSampleLeakError, match="criterion asked"):
            batch.evaluations.examine(found, B, None)
        batch.evaluations.clear()
    assert batch.evaluations.examined == 0


def test_one_example_is_not_looked_at_again(batch: OneBatch) -> None:
    criterion = Asked()
    batch.evaluate(criterion)
    batch.examine()
    batch.looks.wanted = True
    assert not batch.evaluate(criterion, OUTPUT[:1], TARGET[:1])


def test_where_it_is_not_told_which_parts_belong_to_which_example_all_are_looked_at(batch: OneBatch) -> None:
    """Targets of another form than when the criterion was examined."""
    criterion = Asked(lambda output, target: each(output, target["y"] if isinstance(target, dict) else target))
    batch.evaluate(criterion)
    batch.examine()
    batch.looks.wanted = True
    batch.evaluate(criterion, OUTPUT, {"y": TARGET})
    (found,) = batch.evaluations.reached()
    assert found.losses is None
    assert found.values[0][0].shape == OUTPUT.shape


def test_targets_in_a_list_are_looked_at_in_part_too(batch: OneBatch) -> None:
    criterion = Asked(lambda output, target: each(output, torch.tensor(target)))
    batch.evaluate(criterion, OUTPUT, TARGET.tolist())
    batch.examine()
    batch.looks.wanted = True
    batch.evaluate(criterion, OUTPUT, TARGET.tolist())
    (found,) = batch.evaluations.reached()
    assert found.losses is not None
    assert isinstance(found.values[0][1], list)
    assert len(found.values[0][1]) == FEW
    assert torch.allclose(each(found.values[0][0], torch.tensor(found.values[0][1])), found.losses)


def test_what_a_criterion_kept_before_is_kept_where_it_is_to_be_examined_alone(batch: OneBatch) -> None:
    criterion = Asked()
    batch.evaluate(criterion)
    (found,) = batch.examine()
    assert found.before is not None
    batch.evaluations.begin(criterion)
    assert batch.evaluations._before is None
    batch.looks.wanted = True
    batch.evaluations.begin(criterion)
    assert batch.evaluations._before is not None
