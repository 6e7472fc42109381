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
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from hushgrad.guards.probing.calls import SEED
from hushgrad.guards.probing.deterministic_mode import DeterministicMode
from hushgrad.guards.probing.kept import Key
from hushgrad.guards.probing.lifting import Packed
from hushgrad.guards.probing.state import State, forked_randomness
from hushgrad.guards.probing.trees import DESCEND, Path, with_parts, with_tensors


@dataclass(frozen=True)
class Collated:
    """What one run gave.

    Attributes:
        batch: what was returned, with tensors for arrays, real numbers and texts.
        moved: what the collate function keeps and the run has changed, before it was put back.
    """

    batch: Any
    moved: dict[Key, Any]


class CollateRuns:
    """Runs a collate function on records of the probe's choice.

    Args:
        collate_fn: list of records to batch.
        state: what it kept before the item in work was made; None for what it keeps now.

    Attributes:
        statistics: the paths of whole numbers and flags, without a row for each record, that other records changed.
    """

    def __init__(self, collate_fn: Callable[[list[Any]], Any], state: State | None = None) -> None:
        self._collate_fn = collate_fn
        self.state = State(collate_fn, parameters=False) if state is None else state
        self.statistics: set[Path] = set()

    @property
    def place(self) -> str:
        """What messages call the function."""
        named = vars(type(self._collate_fn)).get("__name__") is not None
        return f"collate_fn {self._collate_fn.__name__ if named else type(self._collate_fn).__name__}"

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Start from the state before the item, and leave the function afterwards as it is now."""
        now = State(self._collate_fn, parameters=False, aside=self.state.aside)
        self.state.restore()
        try:
            yield
        finally:
            now.restore()

    def run(self, records: Sequence[Any], *, quiet: bool = False, earlier: Sequence[Any] | None = None) -> Collated:
        """Collate copies of some records.

        Args:
            records: what is collated.
            quiet: whether torch's random operators give constants.
            earlier: records of a batch that comes before, and whose traces are not put back; generators are.
        """
        try:
            if earlier is not None:
                self._collated(earlier, quiet)
                self.state.rewind()
            batch = self._collated(records, quiet)
            return Collated(batch, self.state.moved(parameters=False))
        finally:
            self.state.restore()

    def _collated(self, records: Sequence[Any], quiet: bool) -> Any:
        with ExitStack() as stack:
            stack.enter_context(forked_randomness([], SEED))
            if quiet:
                stack.enter_context(DeterministicMode())
            batch = with_parts(self._collate_fn([copy.deepcopy(record) for record in records]), _as_tensor)
            return with_tensors(batch, lambda _, tensor: tensor.clone())  # it may fill one buffer again and again


def _as_tensor(path: Path, part: Any) -> Any:
    """Return arrays, numbers and texts as tensors, and packed sequences padded: any may hold what the batch decides."""
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
