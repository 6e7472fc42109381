"""Do tensors that a loop keeps hold other values in a later item? Whoever writes there, and in whichever way.

A running mean, a centre, a queue, a normaliser in front of the model: written to after the step, where no call is
written down, they bring values of one item into the losses of the next, and nobody can know which values. What follows
the model's own weights, which are released, is told by these: a teacher that is their moving average, a copy of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from hushgrad.guards.probing.own_memory import OwnMemory, is_plain
from hushgrad.guards.probing.state_values import fingerprint
from hushgrad.torch_internals import unseen, version

SAMPLE = 1 << 12
"""Tensors of up to so many values are compared by all of them, larger ones by a random sample as well as by sums."""

MOST_SUMMED = 1 << 22
"""Still larger ones by a sample and by torch's count of writes."""

ROUNDINGS = 4.0
"""A moving average may be off by so many roundings of its largest value."""


class _Look(NamedTuple):
    """What tells whether a tensor has other values: a sample (all of a small one), and sums of all."""

    values: Tensor
    told: tuple[object, ...]

    def is_same(self, other: _Look) -> bool:
        return self.told == other.told and _bits(self.values) == _bits(other.values)


@dataclass(eq=False)
class _Held:
    """A tensor that was met in a program.

    Attributes:
        look: at its values, when it was met first or compared last.
        is_met: whether the item in work met it.
        follows: whether it has changed with the model's weights, and otherwise never.
    """

    tensor: weakref.ref[Tensor]
    version: int
    look: _Look
    is_met: bool = True
    follows: bool = False


class OutsideChanges:
    """Compares the tensors that one session's programs hold from outside, from item to item.

    From an item that is looked at to the draw of the next one by their values. Between two looks by torch's count of
    writes, and at the second by their values; but for those of which a look has shown that they follow the weights.

    Args:
        own: the model's own tensors, which are compared elsewhere.

    Attributes:
        have_changed: whether one has, otherwise than by the model's weights.
    """

    def __init__(self, own: OwnMemory) -> None:
        self._own = own
        self._held: dict[int, _Held] = {}
        self._before: dict[torch.Size, list[Tensor]] = {}  # samples of the weights in the item in work, by shape
        self.have_changed = False

    def meet(self, tensor: Tensor) -> None:
        """A program holds this tensor, as it is now."""
        if self.have_changed or not is_plain(tensor) or self._own.holds(tensor):
            return
        held = self._held.get(id(tensor))
        if held is None or held.tensor() is not tensor:
            self._held[id(tensor)] = _Held(weakref.ref(tensor), version(tensor), _look(tensor))
            return
        if held.is_met:
            return
        look = _look(tensor)
        if not held.follows:  # of others it is not known what they were in between
            self._compare([(held, look)])
        held.is_met, held.look, held.version = True, look, version(tensor)

    def end_item(self, is_of_item: Callable[[Tensor], bool]) -> None:
        """The program has ended; `is_of_item` tells whether a tensor has values of it now, which are seen elsewhere."""
        for key, held in [*self._held.items()]:
            tensor = held.tensor()
            if tensor is None or (held.is_met and is_of_item(tensor)):
                del self._held[key]
        shapes = {shape for held in self._held.values() if held.is_met and (shape := _shape_of(held)) is not None}
        self._before = {shape: self._weights(shape) for shape in shapes}

    def before_draw(self) -> None:
        """The next item is going to be read: what was met in the last one, or was written to since, is compared."""
        if self.have_changed:
            self._held.clear()
            return
        moved = []
        for key, held in [*self._held.items()]:
            tensor = held.tensor()
            if tensor is None:
                del self._held[key]
            elif held.is_met or (not held.follows and version(tensor) != held.version):
                look = _look(tensor)
                if not look.is_same(held.look):
                    moved.append((held, look))
                held.is_met, held.version = False, version(tensor)
        self._compare(moved)
        self._before = {}

    def _compare(self, looks: Sequence[tuple[_Held, _Look]]) -> None:
        """Take note of tensors that are others now, and of those that follow the weights."""
        moved = [(held, look) for held, look in looks if not look.is_same(held.look)]
        if not moved:
            return
        if not self._follow_weights(moved):
            self.have_changed = True
            return
        for held, look in moved:
            held.look, held.follows = look, True

    # What follows the weights ----------------------------------------------------------------------------------------

    def _follow_weights(self, moved: Sequence[tuple[_Held, _Look]]) -> bool:
        """Whether each has moved towards a parameter of its shape, by a part of the way; a single value by another's.

        A moving average moves by one part in all tensors, a copy by the whole way. So does no mean of an item, unless
        all its values lie on the line between two tensors.
        """
        shares: list[float] = []
        single = []
        counts: dict[torch.Size, int] = {}
        for held, look in moved:
            shape = _shape_of(held)
            if shape is None:
                continue
            place = counts[shape] = counts.get(shape, -1) + 1
            if look.values.numel() == 1:
                single.append((held, look, shape))
            elif (share := self._share(held, look, shape, place)) is None:
                return False
            else:
                shares.append(share)
        return all(
            any(_leaves_rounding(held, look, weights, share) for weights in self._ways(shape, 0) for share in shares)
            for held, look, shape in single
        )

    def _share(self, held: _Held, look: _Look, shape: torch.Size, place: int) -> float | None:
        """Return by which part of the way a tensor has moved towards a parameter; None if it has not."""
        step = look.values - held.look.values
        for weights in self._ways(shape, place):
            way = weights - held.look.values
            square = float(way.dot(way))
            share = float(way.dot(step)) / square if square else 0.0
            if 0 < share < 1.001 and _leaves_rounding(held, look, weights, share):
                return share
        return None

    def _ways(self, shape: torch.Size, place: int) -> Iterator[Tensor]:
        """Yield the weights of a shape as they are and as they were in the item, the likeliest first."""
        for found in (self._weights(shape), self._before.get(shape, [])):
            yield from found[place:]
            yield from found[:place]

    def _weights(self, shape: torch.Size) -> list[Tensor]:
        with unseen():
            return [_sample(part) for part in self._own.tensors() if part.shape == shape]


def _leaves_rounding(held: _Held, look: _Look, weights: Tensor, share: float) -> bool:
    """Whether a step of this part of the way is what has happened, and changed anything that was looked at."""
    before, after = held.look.values, look.values
    tensor = held.tensor()
    if tensor is None or torch.equal(before, after):
        return False  # what has changed is not in the sample
    unit = torch.finfo(tensor.dtype).eps if tensor.is_floating_point() or tensor.is_complex() else 0.0
    most = max(float(part.abs().max()) for part in (before, after, weights))
    return bool((after - before - share * (weights - before)).abs().max() <= ROUNDINGS * unit * most)


def _shape_of(held: _Held) -> torch.Size | None:
    tensor = held.tensor()
    return None if tensor is None else tensor.shape


def _look(tensor: Tensor) -> _Look:
    with unseen():
        told: tuple[object, ...] = ()
        if tensor.numel() > MOST_SUMMED:
            told = (version(tensor),)
        elif tensor.numel() > SAMPLE:
            told = fingerprint(tensor)
        return _Look(_sample(tensor), (tensor.shape, tensor.dtype, *told))


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat.resolve_conj()).reshape(-1)
    if flat.numel() > SAMPLE:
        flat = flat[_places(flat.numel()).to(flat.device)]
    return flat.to("cpu", copy=True).double()


@lru_cache(maxsize=64)
def _places(count: int) -> Tensor:
    return torch.randint(count, (SAMPLE,), generator=torch.Generator().manual_seed(count))


def _bits(values: Tensor) -> bytes:
    return bytes(values.numpy().tobytes())
