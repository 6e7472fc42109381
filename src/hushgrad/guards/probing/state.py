"""What a model, a criterion or a collate function keeps between two calls, as a copy: all that its code can keep.

A forward may change any of these in its first call: set a flag and install hooks, register a buffer, make a part of its
own. A run of the probe starts from what was there before the call, whole, and the model is given back as the call left
it, whole: half of either is another model.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hushgrad.guards.probing.holders import content_of, is_same, refill
from hushgrad.guards.probing.kept import CacheEntry, DictKey, Key, ThreadNumber, kept_by, structure_of
from hushgrad.guards.probing.state_values import RANDOM, agree, copy_of, fingerprint, saved_copy, write
from hushgrad.numpy_generator import kept_generator
from hushgrad.torch_sharding import at_rest, places_of_swapped

SAMPLES = 3
"""How often a batch is run again to see how far what is kept differs by itself, where it differs."""

Structure = dict[str, list[int]]
"""How many parts, parameters and hooks of each kind every module has, by its name."""


class _Contents:
    """What holders held. Most dictionaries of a module's hooks are empty, and are asked all at once."""

    def __init__(self, holders: Iterable[Any]) -> None:
        self._empty: list[Any] = []
        self._filled: list[tuple[Any, Any]] = []
        for holder in holders:
            if type(holder) in (dict, OrderedDict, set) and not holder:
                self._empty.append(holder)
            else:
                self._filled.append((holder, content_of(holder)))

    def are_same(self) -> bool:
        """Return whether they hold the very objects that they held."""
        return not any(self._empty) and all(is_same(holder, content) for holder, content in self._filled)

    def restore(self) -> None:
        """Give them back what they held."""
        for holder, content in self._filled:
            if not is_same(holder, content):
                refill(holder, content)
        for holder in self._empty if any(self._empty) else ():
            holder.clear()


class State:
    """A copy of what a model (a criterion, a collate function) keeps, to compare with and to go back to.

    Values of parameters are not copied: forwards that change them are told by fingerprints.

    Attributes:
        root: whose state it is.
        unread: what could not be looked into, in words.
        aside: an object that is no part of the state.
    """

    def __init__(self, root: Any, *, parameters: bool = True, aside: Any = None, beside: Sequence[Any] = ()) -> None:
        """Take the copy; without `parameters` whether those change is not to be told from it.

        What is `beside`, too, is no part of the state.
        """
        self._beside = tuple(beside)
        self.root = root
        self.aside = aside
        model = self._model = root if isinstance(root, nn.Module) else nn.Module()
        self._held: list[tuple[Tensor, Tensor]] = []
        cells, holders, _, self.unread = kept_by(root, aside, *self._beside)
        self._saved = {key: (value, saved_copy(value, is_buffer=is_buffer(key))) for key, value in cells}
        self._generators = [self._saved[key] for key, value in cells if isinstance(value, RANDOM)]
        self._holders = _Contents(holders)
        swapped = places_of_swapped(model)
        self._structure = _Contents(holder for holder in structure_of(model.modules()) if id(holder) not in swapped)
        named = at_rest(model)
        self._uses = [(p, p.requires_grad, p.grad) for p in {id(p): p for _, p in named}.values()]
        self._prints = {name: fingerprint(p) for name, p in named} if parameters else {}

    def changed_parameters(self) -> list[str]:
        """Return the names of the parameters with other values now than when the copy was taken."""
        return [name for name, parameter in at_rest(self._model) if fingerprint(parameter) != self._prints.get(name)]

    def spoiled_parameters(self) -> list[str]:
        """Return the names of the parameters with more values that are not finite than when the copy was taken."""
        named = dict(at_rest(self._model))
        return [name for name, before in self._prints.items() if before and fingerprint(named[name])[2] > before[2]]

    def hold(self, names: Sequence[str]) -> None:
        """Copy some parameters as they are now; `restore` puts these values back."""
        chosen = dict(at_rest(self._model))
        self._held = [(chosen[name], chosen[name].detach().clone()) for name in names]

    def moved(self, *, parameters: bool = True) -> dict[Key, Any]:
        """Return copies of what has other values now than when the copy was taken, by place."""
        now = dict(kept_by(self.root, self.aside, *self._beside).cells)
        found = {
            key: copy_of(value)
            for key, value in now.items()
            if key not in self._saved or not agree(value, self._saved[key][1])
        }
        found.update({key: None for key in self._saved if key not in now})
        if parameters:
            named = dict(at_rest(self._model))
            for name in self.changed_parameters():
                found[("parameter", name)] = fingerprint(named[name])
        return found

    def values(self) -> Iterator[Any]:
        """Yield what was kept when the copy was taken, the objects themselves."""
        return (value for value, _ in self._saved.values())

    def is_unsteady(self, key: Key, samples: Sequence[Mapping[Key, Any]]) -> bool:
        """Return whether a place is one of threads that keep something else after each run of one batch; that is said.

        `samples` are what some runs of one batch moved. How threads share their work is no state, but it hides state.
        """
        length = next((n for n, part in enumerate(key) if isinstance(part, ThreadNumber)), None)
        if length is None:
            return False
        first, *others = [{k: v for k, v in moved.items() if k[:length] == key[:length]} for moved in samples]
        if not any(following(first, other) for other in others):
            return False
        said = f"what {describe(key[:length])} keep, which differs from run to run of one batch"
        self.unread += [] if said in self.unread else [said]
        return True

    def has_drawn(self) -> bool:
        """Return whether a generator that the model keeps was drawn from since the copy was taken."""
        return any(not agree(kept, copied) for kept, copied in self._generators)

    def generators(self) -> Iterator[Any]:
        """Yield the random generators that are kept."""
        return (generator for generator, _ in self._generators)

    def is_generator(self, key: Key) -> bool:
        """Return whether a random generator is at a place: it stands elsewhere where more numbers were drawn."""
        return isinstance(self._saved.get(key, (None, None))[0], RANDOM)

    def rewind(self) -> None:
        """Put the random generators back, and nothing else."""
        for original, copied in self._generators:
            if not agree(original, copied):
                write(original, copied)

    def knows(self, key: Key) -> bool:
        """Return whether there was something at a place when the copy was taken."""
        return key in self._saved

    def saved(self, key: Key) -> Any:
        """Return the copy of the value at a place; None where nothing was."""
        return self._saved.get(key, (None, None))[1]

    def place(self, key: Key) -> str:
        """Return the name of a place; what a dictionary holds by keys that came with the data is not named."""
        known = {saved[:length] for saved in self._saved for length in range(1, len(saved) + 1)}
        shown = [
            "[...]" if isinstance(part, (DictKey, CacheEntry)) and key[: n + 1] not in known else part
            for n, part in enumerate(key)
        ]
        return describe(tuple(shown))

    def other_structure(self) -> Structure | None:
        """Return the structure as it is now; None where it is that of the copy."""
        if self._structure.are_same():
            return None
        return {name: [len(holder) for holder in structure_of([part])] for name, part in self._model.named_modules()}

    def take_structure(self, other: State) -> None:
        """Go back to the parts, parameters and hooks of another copy from now on, and to everything else of this."""
        self._structure = other._structure

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back as it was."""
        self._holders.restore()
        self._structure.restore()
        for original, copied in self._saved.values():
            if original is not copied and not agree(original, copied):
                write(original, copied)
        for parameter, requires_grad, gradient in self._uses:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not gradient:
                parameter.grad = gradient
        for held, copied in self._held:
            held.data.copy_(copied)


def own_objects(model: nn.Module) -> list[Any]:
    """Return the objects of this library that a model keeps, beside modules: they are shared with a copy of it."""
    return kept_by(model).own_objects


def following(one: Mapping[Key, Any], two: Mapping[Key, Any]) -> list[Key]:
    """Return the places that two runs from one state have left different; `one` and `two` are what they moved."""
    return [key for key in {**one, **two} if not _is_same(one, two, key)]


def _is_same(one: Mapping[Key, Any], two: Mapping[Key, Any], key: Key) -> bool:
    if key not in one or key not in two:
        return any(isinstance(part, CacheEntry) for part in key)  # other arguments came, which is no state
    return agree(one[key], two[key])


def describe(key: Key) -> str:
    """Return the name of a place of state: a buffer's or attribute's dotted name."""
    return ".".join(part.__qualname__ if isinstance(part, type) else str(part) for part in key[1:])


def is_buffer(key: Key) -> bool:
    """Whether a place is a registered buffer or parameter, which is saved and shared with the model."""
    return key[0] in ("buffer", "parameter")


@contextmanager
def forked_randomness(devices: Sequence[torch.device], seed: int) -> Iterator[None]:
    """Seed torch, NumPy and Python alike, and give back their states afterwards."""
    cuda = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    python_state = random.getstate()
    with torch.random.fork_rng(cuda), kept_generator():
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        seed_all(seed)
        try:
            yield
        finally:
            random.setstate(python_state)


def randomness_used(devices: Sequence[torch.device], seed: int) -> bool:
    """Return whether anything was drawn since `forked_randomness(devices, seed)` began."""
    fresh, python, numpy = _seeded(seed)
    if torch.random.get_rng_state().numpy().tobytes() != fresh:
        return True
    for device in devices:
        if device.type == "cuda":
            mine = torch.Generator(device).manual_seed(seed)
            if not torch.equal(torch.cuda.get_rng_state(device), mine.get_state()):
                return True
    return _others_moved(python, numpy)


def others_drawn(seed: int) -> bool:
    """Return whether anything was drawn since then that torch does not draw, by Python or by NumPy."""
    _, python, numpy = _seeded(seed)
    return _others_moved(python, numpy)


def _others_moved(python: Any, numpy: Any) -> bool:
    if random.getstate() != python:
        return True
    kept: Any = np.random.get_state()
    return not (np.array_equal(kept[1], numpy[1]) and kept[2] == numpy[2])


def seed_all(seed: int) -> None:
    """Seed the global generators of the processor: torch's, Python's and NumPy's."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@lru_cache(maxsize=8)
def _seeded(seed: int) -> tuple[bytes, Any, Any]:
    """Return the states of torch's, Python's and NumPy's generators as a seed makes them, none of it a tensor."""
    torch_state = torch.Generator().manual_seed(seed).get_state().numpy().tobytes()
    return torch_state, random.Random(seed).getstate(), np.random.RandomState(seed).get_state()
