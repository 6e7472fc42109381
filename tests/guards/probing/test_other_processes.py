"""Processes of a row settle together what a probe found; one process alone asks nobody."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hushgrad.errors import CrossSampleLeakError, DesyncError, PeerFailedError
from hushgrad.gradients.across import NOWHERE
from hushgrad.guards.probing.other_processes import OtherProcesses

X, Y = torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1])


class Peer:
    """Another process of a row, which gives a number of its own and keeps those that it was given."""

    def __init__(self, least: int = 1, number: int | None = None) -> None:
        self._least, self._number = least, number
        self.given: list[int] = []

    def has(self, name: str) -> bool:
        return True

    def added(self, squares: Tensor) -> Tensor:
        return squares

    def least(self, number: int) -> int:
        self.given.append(number)
        return min(number, self._least)

    def agree_on(self, number: int) -> bool:
        self.given.append(number)
        return self._number in (None, number)


def heard() -> None:
    raise PeerFailedError("another one has found something")


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_what_is_so_in_one_process_is_so_in_all(here: bool, there: bool) -> None:
    others = OtherProcesses()
    assert others.is_so_anywhere(here) == here
    others.join(Peer(int(not there)), heard)
    assert others.is_so_anywhere(here) == (here or there)


def test_a_process_goes_on_only_if_all_of_them_do() -> None:
    others = OtherProcesses()
    others.go_on()
    peer = Peer()
    others.join(peer, heard)
    others.go_on()
    others.stop()
    assert peer.given == [1, 0]
    others.join(Peer(0), heard)
    with pytest.raises(PeerFailedError, match="another one"):
        others.go_on()


def test_the_others_are_told_of_what_failed_here_and_not_of_what_was_found_here() -> None:
    others, peer = OtherProcesses(), Peer()
    others.join(peer, heard)
    found = CrossSampleLeakError("mixes")
    others.require(found)
    assert peer.given == []
    found.__context__ = RuntimeError("a connection was closed")
    others.require(found)
    assert peer.given == [0]


@pytest.mark.parametrize("other", [X.flip(0), X + 1])
def test_a_forward_on_other_values_or_in_another_order_is_refused(other: Tensor) -> None:
    others, first, peer = OtherProcesses(), OtherProcesses(), Peer()
    first.join(peer, heard)
    first.require_same_inputs((X, Y), (X,), {})
    (number,) = peer.given
    assert others.across is NOWHERE
    others.require_same_inputs((other, Y), (other,), {})  # alone it has nobody to differ from
    others.join(Peer(number=number), heard)
    others.require_same_inputs((X.clone(), Y), (X.clone(),), {})
    with pytest.raises(DesyncError, match="another order"):
        others.require_same_inputs((other, Y), (other,), {})
