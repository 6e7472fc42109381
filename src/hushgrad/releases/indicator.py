"""Queries that ask of how many records something is true."""

from __future__ import annotations

from torch import Tensor

from hushgrad.releases.query import Query


class Indicator(Query):
    """One or zero of each record, so that one record more or less moves their number by one."""

    @property
    def width(self) -> int:
        """One."""
        return 1

    @property
    def sensitivity(self) -> float:
        """One."""
        return 1.0

    def total(self, rows: Tensor) -> Tensor:
        """Return of how many it is true."""
        return (rows > 0).sum(0).double()
