"""Bounds on a figure of privacy: the truth lies between them, and the upper one is what is quoted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EpsilonBounds:
    """`lower` <= ε <= `upper`."""

    lower: float
    upper: float

    @property
    def error(self) -> float:
        """How far the quoted ε may lie above the true one; 0 where both are infinite."""
        return 0.0 if self.lower == self.upper else self.upper - self.lower


@dataclass(frozen=True, slots=True)
class DeltaBounds:
    """`lower` <= δ(ε) <= `upper`, each in [0, 1]."""

    lower: float
    upper: float

    @property
    def error(self) -> float:
        """How far the quoted δ may lie above the true one."""
        return self.upper - self.lower
