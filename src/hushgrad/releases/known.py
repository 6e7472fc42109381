"""Which queries there are: a record's part in each is bounded by code of this folder."""

from __future__ import annotations

from typing import Any

from hushgrad.errors import InvalidArgumentError
from hushgrad.releases.accuracy import Accuracy
from hushgrad.releases.histogram import Histogram
from hushgrad.releases.least_squares import LeastSquares
from hushgrad.releases.normalisation import Normalisation
from hushgrad.releases.query import Query
from hushgrad.releases.sums import Count, Mean, Sum
from hushgrad.releases.tally import Tally

OWN: tuple[type[Query], ...] = (
    Count,
    Sum,
    Mean,
    Histogram,
    Tally,
    Normalisation,
    Accuracy,
    LeastSquares,
)


def require_query(query: Any) -> Query:
    """Return `query` if it is one of hushgrad's kinds, none derived from them.

    Raises `InvalidArgumentError`: another class could add more of a record than its sensitivity says.
    """
    if type(query) not in OWN:
        names = ", ".join(kind.__name__ for kind in OWN)
        raise InvalidArgumentError(
            f"must be one of {names}, got {type(query).__name__}",
            where="query",
            cure="For another statistic pass Sum(size, clip_norm, of=...) with a function of one record",
        )
    found: Query = query
    return found
