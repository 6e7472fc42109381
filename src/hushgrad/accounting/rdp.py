"""Rényi differential privacy: a looser bound than privacy loss distributions, at any delta.

The Rényi divergence of the Poisson-sampled Gaussian is that of Mironov, Talwar & Zhang (2019, arXiv:1908.10530), by
`dp_accounting`; so is the conversion to (ε, δ), that of Canonne, Kamath & Steinke (2020, arXiv:2004.00010).

`dp_accounting` loses small divergences to rounding: they come out as 0 or less, and ε with them. Where a step's
divergence is small, it is therefore computed for whole orders as a sum of positive terms (`renyi`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np

from hushgrad.accounting.composition import NormalForm, Sampled, pooled
from hushgrad.accounting.renyi import ORDERS, divergences
from hushgrad.extras import needs_extra

with needs_extra("cross-check", "accountant 'rdp'"):
    from dp_accounting import (
        GaussianDpEvent,
        NeighboringRelation,
        PoissonSampledDpEvent,
        SampledWithoutReplacementDpEvent,
    )
    from dp_accounting.rdp import RdpAccountant
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

MOST_GROUPS = 64

_SMALL_DIVERGENCE = 1e-6
_LARGEST_NOISE_MULTIPLIER = 1e6


def rdp_epsilon(form: NormalForm, delta: float) -> float:
    """Return an upper bound on ε at `delta` for what `form` releases, from Rényi divergences of many orders.

    Guarantee: an upper bound at every delta in (0, 1), also where a step's divergence is below the rounding of 1. More
    than `MOST_GROUPS` different sampled events are pooled on the private side, and passes over random batches (balls in
    bins) are charged without amplification.
    """
    form = form.without_allocation()
    if form.noiseless or math.isinf(form.gaussian_precision):
        return math.inf
    if form.empty:
        return 0.0

    if form.fixed_size:
        return _epsilon_of_fixed_size(form, delta)
    # Less noise than was drawn is an upper bound; beyond this range no digit that matters changes.
    sampled = tuple((rate, min(noise, _LARGEST_NOISE_MULTIPLIER), count) for rate, noise, count in form.sampled)
    precision = max(form.gaussian_precision, _LARGEST_NOISE_MULTIPLIER**-2) if form.gaussian_precision else 0.0
    return _epsilon(pooled(sampled, MOST_GROUPS), precision, delta)


@lru_cache(maxsize=256)
def _epsilon(sampled: tuple[Sampled, ...], precision: float, delta: float) -> float:
    small = [divergences(rate, noise, (2,))[0] < _SMALL_DIVERGENCE for rate, noise, _ in sampled]
    if any(small):
        total = np.array(ORDERS) * precision / 2
        for rate, noise, count in sampled:
            total += count * divergences(rate, noise, ORDERS)
        return max(0.0, float(compute_epsilon(ORDERS, total, delta)[0]))
    accountant = RdpAccountant()
    with without_warnings():
        if precision:
            accountant.compose(GaussianDpEvent(1 / math.sqrt(precision)))
        for rate, noise, count in sampled:
            accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), count)
        return max(0.0, float(accountant.get_epsilon(delta)))


def _epsilon_of_fixed_size(form: NormalForm, delta: float) -> float:
    """By Wang, Balle & Kasiviswanathan (2019, arXiv:1808.00087), as `dp_accounting` has it."""
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    with without_warnings():
        if form.gaussian_precision:
            accountant.compose(GaussianDpEvent(1 / math.sqrt(form.gaussian_precision)))
        for rate, noise, count in pooled(form.fixed_size, MOST_GROUPS):
            # Only the ratio of the two sizes matters; the rate is rounded up.
            drawn = SampledWithoutReplacementDpEvent(10**12, math.ceil(rate * 10**12), GaussianDpEvent(noise))
            accountant.compose(drawn, count)
        return max(0.0, float(accountant.get_epsilon(delta)))


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence dp_accounting about orders that it leaves out."""

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
