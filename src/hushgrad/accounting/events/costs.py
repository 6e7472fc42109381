"""What a composition costs one record, added up event by event.

The costs that accountants know are few: Gaussian releases, with or without one of four kinds of sampling. An event
says in its `add_to` which of these it is; `hushgrad.accounting.composition` makes the normal form of the sum.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from hushgrad.arguments import whole_number
from hushgrad.errors import AccountingError

LEAST_SAMPLED_NOISE = 1e-3
"""A sampled step with a smaller noise multiplier (an ε beyond 10⁵) counts as unsampled, which is an upper bound."""

LEAST_ALLOCATED_NOISE = 0.1
"""A pass of random batches with a smaller noise multiplier (an ε beyond 50) is charged without amplification."""

_ALMOST_ONE = 1 - 1e-9


class FilterRule(NamedTuple):
    """A budget that was fixed before the first step: divergences of Rényi order `order` that imply (epsilon, delta)."""

    order: int
    epsilon: float
    delta: float


def counts_as_unsampled(sampling_rate: float, noise_multiplier: float) -> bool:
    """Return whether a step is charged as if it were over all records: no accountant can tell it from that."""
    return sampling_rate > _ALMOST_ONE or noise_multiplier < LEAST_SAMPLED_NOISE


class Costs:
    """The sum so far. `count` is how often the same step ran, at least once.

    Guarantee: what no accountant can charge is refused, whichever kind of event adds it.

    Each method names the pair of distributions that neighbours differ by, under the event's own relation. That the step
    costs a record no more than that pair is the promise of the event that calls it.
    """

    def __init__(self) -> None:
        self.releases: Counter[float] = Counter()
        self.sampled: Counter[tuple[float, float]] = Counter()
        self.truncated: Counter[tuple[float, float, int, int]] = Counter()
        self.fixed_size: Counter[tuple[float, float]] = Counter()
        self.weakest_of_pass: dict[tuple[str, int], float] = {}
        self.weakest_of_allocation: dict[tuple[int, int, int], float] = {}
        self.filters: list[FilterRule] = []

    def add_release(self, noise_multiplier: float, count: int) -> None:
        """Add Gaussian releases that every record takes part in; 0 is no noise at all, and no privacy."""
        _require_noise(noise_multiplier, least=0.0)
        self.releases[noise_multiplier] += _times(count)

    def add_sampled(self, sampling_rate: float, noise_multiplier: float, count: int) -> None:
        """Add Gaussian releases that a record takes part in with probability `sampling_rate`, independently of all."""
        _require_rate(sampling_rate)
        _require_noise(noise_multiplier, least=LEAST_SAMPLED_NOISE)
        self.sampled[sampling_rate, noise_multiplier] += _times(count)

    def add_truncated(
        self, sampling_rate: float, noise_multiplier: float, population: int, max_batch_size: int, count: int
    ) -> None:
        """Add releases as `add_sampled`, cut at random to `max_batch_size` of at most `population` records."""
        _require_rate(sampling_rate)
        _require_noise(noise_multiplier, least=LEAST_SAMPLED_NOISE)
        self.truncated[sampling_rate, noise_multiplier, population, max_batch_size] += _times(count)

    def add_fixed_size(self, fraction: float, noise_multiplier: float, count: int) -> None:
        """Add releases over a random subset of fixed size, under replace-one.

        `fraction` is that of all records, and `noise_multiplier` is over the sensitivity 2C of a replacement.
        """
        _require_rate(fraction, most=1.0)
        _require_noise(noise_multiplier, least=LEAST_SAMPLED_NOISE / 2)
        self.fixed_size[fraction, noise_multiplier] += _times(count)

    def add_step_of_pass(self, kind: str, index: int, noise_multiplier: float) -> None:
        """Add a step of pass `index`, of which a record takes part in one step: the pass costs its weakest step."""
        _require_noise(noise_multiplier, least=0.0)
        key = (kind, index)
        self.weakest_of_pass[key] = min(noise_multiplier, self.weakest_of_pass.get(key, math.inf))

    def add_step_of_allocation(self, bins: int, participations: int, index: int, noise_multiplier: float) -> None:
        """Add a step of pass `index`, of whose `bins` steps a record takes part in a random `participations`.

        All sets of that many steps are equally likely, secret, and independent of other records and passes. The pass is
        whole with its first step, and costs what its weakest step would in all of them.
        """
        _require_noise(noise_multiplier, least=0.0)
        if not 1 <= participations <= bins:
            raise AccountingError(
                f"an event charges {participations} of {bins} steps of a pass",
                where="random allocation",
                cure="Charge from 1 up to all of them",
            )
        key = (whole_number("bins", bins, minimum=1), whole_number("participations", participations, minimum=1), index)
        self.weakest_of_allocation[key] = min(noise_multiplier, self.weakest_of_allocation.get(key, math.inf))

    def add_filter(self, rule: FilterRule, count: int) -> None:
        """Make `rule` that of the account: its ε is that of the rule's budget, whatever else is added."""
        self.filters += [rule] * _times(count)
        if len(self.filters) > 1:
            raise AccountingError(
                "two filters cannot rule one account: each holds for what it has charged from its first step on",
                where="fully adaptive composition",
                cure="Ask for the epsilon of each account by itself, and add them up (deltas too)",
            )


def _times(count: int) -> int:
    return whole_number("count", count, minimum=1)


def _require_noise(noise_multiplier: float, *, least: float) -> None:
    if not least <= noise_multiplier < math.inf:
        raise AccountingError(
            f"an event charges a noise multiplier of {noise_multiplier}; this cost is known from {least:g} up to, but "
            f"not including, infinity",
            where="noise multiplier",
            cure="Let the event's kind charge less noise than that as a release without sampling (Costs.add_release)",
        )


def _require_rate(rate: float, *, most: float = _ALMOST_ONE) -> None:
    if not 0 < rate <= most:
        raise AccountingError(
            f"an event charges a sampling rate of {rate}; this cost is known above 0 and up to {most:.10g}",
            where="sampling rate",
            cure="Let the event's kind add nothing for 0, and a release without sampling for 1 (Costs.add_release)",
        )
