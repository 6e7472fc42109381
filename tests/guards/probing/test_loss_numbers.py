"""Numbers that left torch: those of several examples that came back are found."""

from __future__ import annotations

import torch.nn.functional as F
from programs import B, program
from torch import Tensor

from hushgrad.guards.probing.loss_numbers import NumbersTaken
from hushgrad.guards.probing.loss_replay import replayed


def numbers(loss: object) -> NumbersTaken:
    found = program(loss)  # type: ignore[arg-type]
    base = replayed(found, {})
    taken = NumbersTaken(found, base.numbers)
    for half, rows in enumerate((slice(0, B // 2), slice(B // 2, B))):
        altered = {}
        for slot, source in found.sources.items():
            if source.kind == "output":
                altered[slot] = source.values.clone()
                altered[slot][rows] *= 3
        taken.note(half, replayed(found, altered).numbers)
    return taken


def test_a_number_of_all_examples_that_divides_the_loss_is_found() -> None:
    call = numbers(lambda o, y: o.square().mean() / float(o.std())).used()
    assert call is not None
    assert call.name == "div"


def test_a_number_that_is_only_printed_is_a_doubt_and_no_more() -> None:
    taken = numbers(lambda o, y: (F.cross_entropy(o, y).item(), F.cross_entropy(o, y))[1])
    assert taken.used() is None
    assert "item" in taken.doubt()


def test_a_decision_by_all_examples_is_found_and_a_question_for_nan_is_none() -> None:
    call = numbers(lambda o, y: o.square().mean() if bool(o.square().sum() > 30) else o.mean()).used()
    assert call is None or call.name == "bool"
    assert numbers(lambda o, y: o.mean() if not o.isnan().any() else o.sum()).used() is None


def test_numbers_of_single_examples_outputs_are_told_from_those_of_all() -> None:
    def each(o: Tensor, y: Tensor) -> Tensor:
        return sum((row.sum() for row in o if float(row.sum()) > 0), o.sum() * 0)

    assert numbers(each).of_single_rows() is not None
    assert numbers(lambda o, y: o.mean() * float(o.sum())).of_single_rows() is None
    assert numbers(lambda o, y: o.sum() / len(o)).holds_size()
