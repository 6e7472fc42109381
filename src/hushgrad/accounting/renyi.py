"""Rényi divergences of the steps that are charged, at whole orders, and what they mean as (ε, δ).

The divergence of the Poisson-sampled Gaussian is that of Mironov, Talwar & Zhang (2019, arXiv:1908.10530), as a sum of
positive terms, so that a small one keeps its digits:

    exp((α−1)·D_α) = 1 + Σ_{k=2..α} C(α,k) q^k (1−q)^{α−k} (exp((k²−k)/(2σ²)) − 1).

The conversion is that of Canonne, Kamath & Steinke (2020, arXiv:2004.00010): (α, ρ) gives (ε, δ) with
ε = ρ + log(1 − 1/α) − (log δ + log α)/(α − 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, logsumexp

from hushgrad.accounting.events.costs import Costs
from hushgrad.accounting.events.event import Event
from hushgrad.errors import AccountingError

ORDERS = (*range(2, 65), *range(68, 257, 4), 288, 320, 384, 448, 512, 640, 768, 1024, 1536, 2048)
"""The whole orders that are tried."""

_ROUNDING = 1e-9
"""What the computation of a divergence may be wrong by, relative; it is added."""


@lru_cache(maxsize=256)
def divergences(rate: float, noise_multiplier: float, orders: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return D_α of one step for each whole order α >= 2 in `orders`; keeps relative precision however small it is.

    `rate` in (0, 1), `noise_multiplier` > 0.
    """
    result = []
    for order in orders:
        k = np.arange(2, order + 1)
        exponent = (k * k - k) / (2 * noise_multiplier**2)
        log_terms = (
            gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
            + k * math.log(rate) + (order - k) * math.log1p(-rate)
            + exponent + np.log(-np.expm1(-exponent))
        )  # fmt: skip
        result.append(float(np.logaddexp(0, logsumexp(log_terms))) / (order - 1))
    return np.array(result)


@lru_cache(maxsize=1024)
def renyi_cost(event: Event, order: int) -> float:
    """Return an upper bound on the Rényi divergence of whole order `order` >= 2 that one step costs; inf without noise.

    Raises `AccountingError` for a step whose cost is no sum of such divergences (one of a pass over the data or of a
    block, of truncated or of fixed size).
    """
    costs = Costs()
    event.add_to(costs, 1)
    together = event.in_block is not None or costs.weakest_of_pass or costs.weakest_of_allocation
    if together or costs.truncated or costs.fixed_size or costs.filters:
        raise AccountingError(
            f"a step of the kind {event.type} is not charged by a filter: Poisson-sampled steps and steps over all "
            f"records are",
            where="fully adaptive composition",
            cure="Train with Poisson sampling, or fix what all phases run beforehand and leave the filter out",
        )
    if 0.0 in costs.releases:
        return math.inf
    parts = [count * order / (2 * noise * noise) for noise, count in costs.releases.items()]
    parts += [count * float(divergences(rate, noise, (order,))[0]) for (rate, noise), count in costs.sampled.items()]
    return math.fsum(parts) * (1 + _ROUNDING)


def epsilon_from_renyi(order: int, divergence: float, delta: float) -> float:
    """Return ε at `delta` of whatever has at most this Rényi divergence of this order, in both directions."""
    gap = math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
    return max(0.0, divergence + gap)


def renyi_budget(order: int, epsilon: float, delta: float) -> float:
    """Return the greatest divergence of this order that implies (ε, δ); 0 or less where none does."""
    gap = math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
    return (epsilon - gap) * (1 - _ROUNDING) if epsilon > gap else 0.0
