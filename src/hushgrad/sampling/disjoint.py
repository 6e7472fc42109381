"""The caller's own batches, checked: no record twice in a pass."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hushgrad.arguments import whole_number
from hushgrad.errors import DuplicateRecordError, UnsupportedSamplerError


@dataclass(frozen=True)
class DisjointBatches:
    """The caller's own batches; every example takes part at most once in a pass over the data.

    There is no amplification by sampling: one pass is one Gaussian mechanism. The neighbouring relation is zero-out (a
    record's contribution is replaced by nothing and its place stays), because the absence of a record would shift
    every later batch.
    """

    adjacency: ClassVar[str] = "zero-out"

    def describe(self) -> str:
        """Return what this sampling is, as a sentence for ledgers and reports."""
        return (
            "Disjoint batches: the caller's own batches, every example at most once in a pass, "
            "without amplification by sampling."
        )


class CheckedBatches:
    """The caller's batches of indices into range(count), pass by pass.

    Guarantee: no record takes part twice in one pass; `DuplicateRecordError` comes before the second time.
    """

    def __init__(self, batches: Iterable[Sequence[int]], count: int) -> None:
        self.count = whole_number("count", count, minimum=1)
        self._batches = batches

    def one_pass(self, first_step: int = 0) -> Iterator[tuple[int, ...]]:
        """Yield the caller's batches in the caller's order; the steps' numbers do not matter.

        Raises:
            DuplicateRecordError: a record comes a second time.
            UnsupportedSamplerError: an index is not a whole number in [0, count).
        """
        seen = np.zeros(self.count, dtype=np.bool_)
        for batch in self._batches:
            indices = self._whole_indices(batch)
            for index in indices:
                if seen[index]:
                    raise DuplicateRecordError(
                        "the sampler gave one record twice in one pass over the data, which would be charged once; "
                        "use a sampler without replacement, or poisson_sampling=True"
                    )
                seen[index] = True
            yield indices

    def _whole_indices(self, batch: Sequence[int]) -> tuple[int, ...]:
        try:
            indices = tuple(operator.index(index) for index in batch)
        except TypeError:
            raise UnsupportedSamplerError(
                "a batch of the sampler must be a sequence of whole numbers; give indices into the dataset"
            ) from None
        # A negative index would be another name for a record that was seen already.
        if any(not 0 <= index < self.count for index in indices):
            raise UnsupportedSamplerError(
                f"the sampler gave an index outside [0, {self.count}), the length of the dataset; "
                "give indices into the dataset that the loader reads"
            )
        return indices
