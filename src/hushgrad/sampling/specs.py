"""How examples are drawn, as values: what the mechanism is charged for and what a report says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hushgrad.arguments import probability


@dataclass(frozen=True)
class PoissonSampling:
    """Every example takes part in every step independently with probability `rate`.

    The rate is a public constant. The size of a draw is secret and may be 0.

    Raises `InvalidArgumentError` unless 0 < rate <= 1.
    """

    rate: float
    adjacency: ClassVar[str] = "add/remove"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", probability("rate", self.rate))

    def describe(self) -> str:
        """Return what this sampling is, as a sentence for ledgers and reports."""
        return f"Poisson sampling: every example takes part in a step independently with probability {self.rate!r}."


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


Sampling = PoissonSampling | DisjointBatches
