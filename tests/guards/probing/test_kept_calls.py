"""Which calls of a batch are kept to be run again: the first ones whole, of the others a few, each as likely."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from hushgrad.guards.probing.kept_calls import KEPT_IN_PART, KEPT_LATER, KEPT_WHOLE, KeptCalls, Pending, signature_of
from hushgrad.guards.probing.looks import Looks
from hushgrad.randomness import KeyStream


class Kept:
    """A model and the calls that are kept of it; call number n is given n."""

    def __init__(self, model: nn.Module | None = None, looks: Looks | None = None) -> None:
        self.model = nn.Linear(1, 1) if model is None else model
        self.parameters = list(self.model.parameters())
        self.calls = KeptCalls(self.model, self.parameters, looks or Looks(None))
        self.made = 0

    def call(self, module: nn.Module | None = None, *, is_known: bool = False, is_new: bool = False) -> Pending | None:
        self.made += 1
        module = module or self.model
        given = torch.tensor([float(self.made)])
        found = self.calls.begun(module, (given,), {}, signature_of(self.model), is_known=is_known, is_new=is_new)
        given.zero_()  # the loop writes into it
        return found

    def clear(self) -> None:
        self.calls.clear()
        self.made = 0


def numbers(calls: list[Pending]) -> list[int]:
    """The numbers of calls, by what they were given."""
    return [int(pending.call.inputs[0][0]) for pending in calls]


def looking(key: int) -> Looks:
    """Looks that want this batch, by a key of their own."""
    looks = Looks(KeyStream.fixed_for_tests(key))
    looks.begin()
    looks.wanted = True
    return looks


def test_the_first_calls_of_a_module_are_kept_whole_and_the_others_in_part() -> None:
    kept = Kept()
    found = [kept.call() for _ in range(KEPT_WHOLE + 3)]
    assert numbers(kept.calls.whole) == list(range(1, KEPT_WHOLE + 1))
    assert numbers(kept.calls.in_part) == [KEPT_WHOLE + 1, KEPT_WHOLE + 2, KEPT_WHOLE + 3]
    assert [pending is not None and pending.is_look for pending in found] == [False] * KEPT_WHOLE + [True] * 3
    assert kept.calls.count == KEPT_WHOLE + 3


def test_there_is_room_for_each_module_and_each_signature() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    kept = Kept(model)
    for part in (model, model[0], model[1]):
        for _ in range(KEPT_WHOLE):
            kept.call(part)
    model[0].eval()
    for _ in range(KEPT_WHOLE):
        kept.call()
    assert len(kept.calls.whole) == 4 * KEPT_WHOLE
    assert kept.calls.in_part == []


def test_the_inputs_are_those_of_the_call_and_what_is_frozen_is_noted() -> None:
    kept = Kept(nn.Linear(1, 1))
    kept.parameters[1].requires_grad_(False)
    found = kept.call()
    assert found is not None
    assert numbers([found]) == [1]
    assert [id(part) for part in found.frozen] == [id(kept.parameters[1])]
    kept.parameters[1].requires_grad_()
    assert len(found.frozen) == 1


def test_a_call_of_a_known_signature_is_kept_where_something_is_new_or_a_look_is_wanted_alone() -> None:
    kept = Kept()
    assert kept.call(is_known=True) is None
    new = kept.call(is_known=True, is_new=True)
    assert new is not None
    assert new.is_look
    assert (kept.calls.whole, numbers(kept.calls.in_part)) == ([], [2])
    looked = Kept(looks=looking(1))
    assert looked.call(is_known=True) is not None
    assert kept.calls.count == 2


@pytest.mark.parametrize(("is_known", "room"), [(False, KEPT_IN_PART), (True, KEPT_LATER)])
def test_of_the_others_no_more_are_kept_than_there_is_room(is_known: bool, room: int) -> None:
    kept = Kept(looks=looking(3))
    for _ in range(room + 10 + KEPT_WHOLE):
        kept.call(is_known=is_known)
    whole = 0 if is_known else KEPT_WHOLE
    assert len(kept.calls.whole) == whole
    assert len(kept.calls.in_part) == room
    places = numbers(kept.calls.in_part)
    assert len(set(places)) == room
    assert min(places) > whole


def test_each_of_the_others_is_as_likely_kept() -> None:
    """8 calls, 2 places, 1,000 keys: each is kept in 250 ± 5·14 of them, the last as often as the first."""
    found: Counter[int] = Counter()
    kept = Kept(nn.Identity())
    for key in range(1000):
        kept.calls = KeptCalls(kept.model, [], looking(key))
        kept.made = 0
        for _ in range(8):
            kept.call(is_known=True)
        found.update(numbers(kept.calls.in_part))
    assert all(180 < found[call] < 320 for call in range(1, 9))


def test_a_batch_begins_with_all_the_room() -> None:
    kept = Kept()
    for _ in range(KEPT_WHOLE + 2):
        kept.call()
    kept.clear()
    assert (kept.calls.whole, kept.calls.in_part, kept.calls.count) == ([], [], 0)
    for _ in range(KEPT_WHOLE):
        kept.call()
    assert numbers(kept.calls.whole) == list(range(1, KEPT_WHOLE + 1))
    assert kept.calls.in_part == []
    for _ in range(2):
        kept.clear()
        for _ in range(KEPT_LATER):
            kept.call(is_known=True, is_new=True)
        assert len(kept.calls.in_part) == KEPT_LATER


def test_in_eval_those_that_no_backward_reached_make_room_for_the_last_call() -> None:
    kept = Kept(nn.Linear(1, 1).eval())
    reached = kept.call()
    assert reached is not None
    reached.call.reached.add(())
    for _ in range(2 * KEPT_WHOLE):
        kept.call()
    assert numbers(kept.calls.whole) == [1, 2 * KEPT_WHOLE + 1]
    assert kept.calls.in_part == []


def test_a_signature_is_of_the_modules_their_modes_and_their_hooks() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.width = nn.Linear(1, 1), 3

        def forward(self, x: Tensor) -> Tensor:
            return x

    model = Named()
    before = signature_of(model)
    model.width = 4
    with torch.no_grad():
        model.layer.weight.zero_()
    assert signature_of(model) == before
    model.layer.eval()
    assert signature_of(model) != before
    model.layer.train()
    handle = model.layer.register_forward_hook(lambda *_: None)
    assert signature_of(model) != before
    handle.remove()
    assert signature_of(model) == before
    model.layer = nn.Linear(1, 1)
    assert signature_of(model) != before
