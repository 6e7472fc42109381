"""What processes tell each other where each has a part of every example's gradient, in tensor parallel models."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Across(Protocol):
    """The processes that have the parts. All of them make the same calls."""

    def has(self, name: str) -> bool:
        """Return whether this process's part counts: of a parameter that all of them have whole, one process's does."""

    def added(self, squares: Tensor) -> Tensor:
        """Return squared norms, added up over all parts: the same bits in every process."""

    def least(self, number: int) -> int:
        """Return the least of the numbers that the processes give."""

    def agree_on(self, number: int) -> bool:
        """Return whether all of them give this number, at most 2**56."""


class _Nowhere:
    """One process has all of it."""

    def has(self, name: str) -> bool:
        return True

    def added(self, squares: Tensor) -> Tensor:
        return squares

    def least(self, number: int) -> int:
        return number

    def agree_on(self, number: int) -> bool:
        return True


NOWHERE: Across = _Nowhere()
"""Nothing lies in another process."""
