"""Rényi differential privacy, by `dp_accounting`: a looser bound than privacy loss distributions, at any delta.

The Rényi divergence of the Poisson-sampled Gaussian is that of Mironov, Talwar & Zhang (2019, arXiv:1908.10530); the
conversion to (ε, δ) is that of Canonne, Kamath & Steinke (2020, arXiv:2004.00010, proposition 12).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant

from hushgrad.accounting.composition import NormalForm, pooled

MOST_GROUPS = 64


def rdp_epsilon(form: NormalForm, delta: float) -> float:
    """Return an upper bound on ε at `delta` for what `form` releases, from Rényi divergences of many orders.

    Guarantee: an upper bound at every delta in (0, 1). More than `MOST_GROUPS` different sampled events are pooled on
    the private side.
    """
    if form.noiseless or math.isinf(form.gaussian_precision):
        return math.inf
    if form.empty:
        return 0.0
    return _epsilon(form, delta)


@lru_cache(maxsize=256)
def _epsilon(form: NormalForm, delta: float) -> float:
    accountant = RdpAccountant()
    with _without_warnings():
        if form.gaussian_precision:
            accountant.compose(GaussianDpEvent(1 / math.sqrt(form.gaussian_precision)))
        for rate, noise_multiplier, count in pooled(form.sampled, MOST_GROUPS):
            accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise_multiplier)), count)
        return max(0.0, float(accountant.get_epsilon(delta)))


@contextmanager
def _without_warnings() -> Iterator[None]:
    # dp_accounting warns, once for each, of orders whose series does not converge and leaves them out: a looser bound
    # and still a bound.
    def refuse(record: logging.LogRecord) -> bool:
        return "Excluding this order" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(refuse)
    try:
        yield
    finally:
        logger.removeFilter(refuse)
