"""The caller's own batches, checked: no record twice in a pass."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from hushgrad.accounting.events.disjoint_pass import DisjointPass
from hushgrad.arguments import whole_number
from hushgrad.errors import DuplicateRecordError, InvalidArgumentError, UnsupportedSamplerError
from hushgrad.randomness import KeyStream
from hushgrad.sampling.scheme import Batches, SamplingScheme


@dataclass(frozen=True)
class DisjointBatches(SamplingScheme):
    """The caller's own batches; every example takes part at most once in a pass over the data.

    There is no amplification by sampling: one pass is one Gaussian mechanism. The neighbouring relation is zero-out (a
    record's contribution is replaced by nothing and its place stays), because the absence of a record would shift
    every later batch.
    """

    counts_in: ClassVar[Literal["steps", "passes", "blocks"]] = "passes"
    takes_batches: ClassVar[bool] = True
    can_be_declared: ClassVar[bool] = False  # nobody would see where a pass ends
    draws_afresh: ClassVar[bool] = False

    def sampler(self, population: int, stream: KeyStream, batches: Batches | None = None) -> CheckedBatches:
        """Return the caller's batches, checked in every pass."""
        if batches is None:
            raise InvalidArgumentError("DisjointBatches needs batches", cure="Give the batches of indices of a pass")
        return CheckedBatches(batches, population)

    def event(self, noise_multiplier: float, index: int = 0) -> DisjointPass:
        """Return what one step costs as a part of its pass."""
        return DisjointPass(noise_multiplier, index)

    def inclusion_probability(self, population: int) -> float:
        """Return 1: which step a record takes part in is nothing that the charge counts on."""
        return 1.0

    def expected_batch_size(self, population: int) -> None:
        """Return None: the caller says how large batches are."""
        return None


class CheckedBatches:
    """The caller's batches of indices into range(count), pass by pass.

    Guarantee: no record takes part twice in one pass; `DuplicateRecordError` comes before the second time.
    """

    def __init__(self, batches: Batches, count: int) -> None:
        self.count = whole_number("count", count, minimum=1)
        self._batches = batches

    def one_pass(self, steps: int, first_step: int) -> Iterator[tuple[int, ...]]:
        """Yield the caller's batches in the caller's order; the number and the numbers of the steps do not matter.

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
                        "the sampler gave one record twice in one pass over the data, which would be charged once",
                        cure="Use a sampler without replacement, or poisson_sampling=True",
                    )
                seen[index] = True
            yield indices

    def _whole_indices(self, batch: Sequence[int]) -> tuple[int, ...]:
        try:
            indices = tuple(operator.index(index) for index in batch)
        except TypeError:
            raise UnsupportedSamplerError(
                "a batch of the sampler must be a sequence of whole numbers", cure="Give indices into the dataset"
            ) from None
        # A negative index would be another name for a record that was seen already.
        if any(not 0 <= index < self.count for index in indices):
            raise UnsupportedSamplerError(
                f"the sampler gave an index outside [0, {self.count}), the length of the dataset",
                cure="Give indices into the dataset that the loader reads",
            )
        return indices
