"""A collate function that is asked again: each time from the same state, and with the same random numbers."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from hushgrad.guards.probing.calls import SEED
from hushgrad.guards.probing.collate_contents import content_of_part, is_opaque
from hushgrad.guards.probing.collate_draws import AS_DRAWN, Draws, Taken, seeded
from hushgrad.guards.probing.deterministic_mode import DeterministicMode
from hushgrad.guards.probing.kept import Key
from hushgrad.guards.probing.lifting import Packed
from hushgrad.guards.probing.state import State, forked_randomness, others_drawn, seed_all
from hushgrad.guards.probing.state_values import write
from hushgrad.guards.probing.trees import DESCEND, Path, tensors_at, with_parts, with_tensors
from hushgrad.torch_internals import unseen


@dataclass(frozen=True)
class Collated:
    """What one run gave.

    Attributes:
        batch: what was returned, with tensors for arrays, real numbers and texts.
        moved: what the collate function keeps and the run has changed, before it was put back.
        records: the copies that it was handed, as it left them.
    """

    batch: Any
    moved: dict[Key, Any]
    records: list[Any]


class CollateRuns:
    """Runs a collate function on records of the probe's choice.

    Args:
        collate_fn: list of records to batch.
        state: what it kept before the item in work was made; None for what it keeps now.
        turn: which of several examinations these runs are for: each draws other random numbers.

    Attributes:
        has_drawn: whether random numbers were drawn that torch does not draw: by Python, by NumPy, by a generator that
            the function keeps.
        draws_for_batches: whether such numbers were seen to fall to other rows in batches of other sizes.
        untold: what could not be told, in words.
        statistics: the paths of whole numbers and flags, without a row for each record, that other records changed.
    """

    def __init__(self, collate_fn: Callable[[list[Any]], Any], state: State | None = None, *, turn: int = 0) -> None:
        self._collate_fn = collate_fn
        self.state = State(collate_fn, parameters=False) if state is None else state
        self.turn = turn
        self.has_drawn = self.draws_for_batches = False
        self.untold: dict[str, None] = {}
        self.statistics: set[Path] = set()

    @property
    def place(self) -> str:
        """What messages call the function."""
        named = vars(type(self._collate_fn)).get("__name__") is not None
        return f"collate_fn {self._collate_fn.__name__ if named else type(self._collate_fn).__name__}"

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Start from the state before the item, and leave the function afterwards as it is now."""
        now = State(self.state.root, parameters=False, aside=self.state.aside)
        self.state.restore()
        try:
            yield
        finally:
            now.restore()

    def run(
        self,
        records: Sequence[Any],
        draws: Draws = AS_DRAWN,
        *,
        earlier: Sequence[Any] | None = None,
        copied: Callable[[Sequence[Any]], list[Any]] | None = None,
    ) -> Collated:
        """Collate copies of some records.

        Args:
            records: what is collated.
            draws: how random numbers come.
            earlier: records of a batch that comes before, and whose traces are not put back; generators are.
            copied: copies the records, each by itself unless said otherwise.
        """
        copied = each_copied if copied is None else copied
        try:
            if earlier is not None:
                self._collated(earlier, draws, copied)
                self.state.rewind()
            batch, copies = self._collated(records, draws, copied)
            return Collated(batch, self.state.moved(parameters=False), copies)
        finally:
            self.state.restore()

    def _collated(
        self, records: Sequence[Any], draws: Draws, copied: Callable[[Sequence[Any]], list[Any]]
    ) -> tuple[Any, list[Any]]:
        copies = copied(records)
        with ExitStack() as stack:
            stack.enter_context(forked_randomness([], SEED))
            if draws.quiet:
                stack.enter_context(DeterministicMode())
            given: list[Any] = list(copies)
            if draws.anew is not None:
                given = Taken(copies, self._beginning(draws.anew))
                given.begin()
            found = self._collate_fn(given)
            if draws.anew is None:
                self.has_drawn = self.has_drawn or others_drawn(SEED) or self.state.has_drawn()
            batch = as_tensors(found, self.state.aside)
            own = with_tensors(batch, lambda _, tensor: tensor.clone())
            return own, copies  # it may fill one buffer again

    def _beginning(self, seed: int) -> Callable[[], None]:
        """Return what puts all generators to the beginning of one sequence of numbers."""
        own = list(self.state.generators())
        own_states = [seeded(generator, seed) for generator in own]

        def begin() -> None:
            seed_all(seed)
            for generator, state in zip(own, own_states, strict=True):
                write(generator, state)

        return begin


def each_copied(records: Sequence[Any]) -> list[Any]:
    """Return copies of records that share nothing, also of one that comes several times.

    A record that is a row of a large tensor is copied by itself: a deep copy would be one of all the memory behind it.
    """
    return [copy.deepcopy(record, _cloned_tensors(record)) for record in records]


def _cloned_tensors(record: Any) -> dict[int, Any]:
    """Return copies of the tensors in a record, of subclasses as of plain ones, as `deepcopy` knows them."""
    with unseen():  # nor by what a subclass makes of calls
        found = [tensor for _, tensor in tensors_at(record) if tensor.layout is torch.strided]
        return {
            id(tensor): tensor.clone() if type(tensor) is Tensor else tensor.clone().as_subclass(type(tensor))
            for tensor in found
            if not (tensor.requires_grad or tensor.__dict__)
        }


def as_tensors(value: Any, aside: Any = None) -> Any:
    """Return nested values with tensors for arrays, numbers and texts: any may hold what the batch decides.

    What is none of these is there as its content; the object `aside` is not looked into.
    """

    def visit(path: Path, part: Any) -> Any:
        if isinstance(part, Taken):
            return with_parts(list(part), visit, path)
        if isinstance(part, np.ndarray) and part.dtype.kind not in "biufc":
            return with_parts(part.tolist(), visit, path)  # texts, dates or objects, maybe one for each record
        found = _as_tensor(part)
        return content_of_part(part, aside) if found is DESCEND and is_opaque(part) else found

    return with_parts(value, visit)


def _as_tensor(part: Any) -> Any:
    """Return arrays, numbers and texts as tensors, packed sequences padded, and sparse tensors dense."""
    if isinstance(part, Tensor) and part.layout is not torch.strided and not part.is_nested:
        return part.to_dense()
    if isinstance(part, PackedSequence):
        return Packed(*pad_packed_sequence(part, batch_first=True))
    if isinstance(part, np.ndarray) and part.dtype.kind in "biufc":
        try:
            return torch.from_numpy(part.copy())
        except TypeError:
            return DESCEND
    if isinstance(part, str):
        return torch.tensor(float(zlib.crc32(part.encode(errors="replace"))), dtype=torch.float64)
    if isinstance(part, (bool, np.bool_)):
        return torch.tensor(bool(part))
    if isinstance(part, (int, np.integer)) and abs(int(part)) < 2**62:
        return torch.tensor(int(part))
    return torch.tensor(float(part), dtype=torch.float64) if isinstance(part, (float, np.floating)) else DESCEND
