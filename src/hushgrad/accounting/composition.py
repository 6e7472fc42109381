"""A composition of events in the normal form that accountants read.

Equal events are pooled, Gaussian events become one Gaussian, passes over disjoint batches become one Gaussian per
pass, and what costs nothing is dropped. What an event costs it says itself (`Event.add_to`). All accountants start
here, so that none of them can forget one of these.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from hushgrad.accounting.events.costs import LEAST_ALLOCATED_NOISE, Costs, FilterRule
from hushgrad.accounting.events.event import ADD_REMOVE_ONE, Event
from hushgrad.arguments import whole_number
from hushgrad.errors import AccountingError, NotEstablishedError

Composition: TypeAlias = Sequence[tuple[Event, int]]
"""Events with how often each ran, in order: `Ledger.events()` has this form."""


Sampled: TypeAlias = tuple[float, float, int]
"""`(sampling_rate, noise_multiplier, count)`."""

Truncated: TypeAlias = tuple[float, float, int, int, int]
"""`(sampling_rate, noise_multiplier, population, max_batch_size, count)`."""


Allocated: TypeAlias = tuple[int, int, float, int]
"""`(bins, participations, noise_multiplier, count)`: `count` passes."""


@dataclass(frozen=True, slots=True)
class NormalForm:
    """What a composition costs one record.

    `gaussian_precision` (no unit) is the sum of 1/noise_multiplier² over all unsampled Gaussian releases. `sampled`
    holds `(sampling_rate, noise_multiplier, count)`, sorted, with rates strictly between 0 and 1 and noise multipliers
    of at least 1e-3; steps with less noise (an ε beyond 10⁵) or with a rate within 1e-9 of 1 count as unsampled, which
    is an upper bound. `noiseless` says that some release had no noise at all. `truncated` holds Poisson-sampled steps
    that may be cut to a size, and `fixed_size` steps of a fixed size (batch_size / population, the noise multiplier
    over the *replace-one* sensitivity 2C, count); only what `hushgrad.accounting.truncation` and the accountants that
    know them have seen to may be read from a form that has some. `allocated` holds passes of random allocation, with
    at least two bins, fewer participations than bins, and noise multipliers of at least 0.1. `filter` is the rule of a
    fully adaptive account, whose ε is that of the filter and of no accountant.
    """

    adjacency: str
    gaussian_precision: float
    sampled: tuple[Sampled, ...]
    noiseless: bool
    truncated: tuple[Truncated, ...] = ()
    fixed_size: tuple[Sampled, ...] = ()
    filter: FilterRule | None = None
    allocated: tuple[Allocated, ...] = ()

    @property
    def is_sampled(self) -> bool:
        """Whether any step drew its records by chance."""
        return bool(self.sampled or self.truncated or self.fixed_size or self.allocated)

    def require_plain(self, what: str) -> None:
        """Refuse what `what` is not computed for: steps of truncated or fixed size, random batches, a filter."""
        if self.filter is not None:
            raise AccountingError(
                f"{what} is not computed for an account under a filter: its steps may have been chosen by results",
                cure="Ask for epsilon, which is that of the filter's budget",
            )
        if self.allocated:
            raise AccountingError(
                f"{what} is not computed for passes over random batches (balls in bins)",
                cure="Ask for epsilon or delta, under add/remove-one or zero-out of one record, which are",
            )
        if self.truncated or self.fixed_size:
            raise AccountingError(
                f"{what} is not computed for truncated Poisson or fixed-size sampling",
                cure="Ask for epsilon, which is computed for both",
            )

    @property
    def unsampled_precision(self) -> float:
        """Σ 1/σ² of all plain releases, and of those that a record takes part in for certain where steps are counted.

        Without amplification by sampling: a step as if it took all records, a pass as if a record's steps were known.
        """
        sampled = (count / noise**2 for _, noise, count in (*self.sampled, *self.fixed_size))
        passes = (count * participations / noise**2 for _, participations, noise, count in self.allocated)
        return self.gaussian_precision + math.fsum((*sampled, *passes))

    def without_allocation(self) -> NormalForm:
        """Return an upper bound on it: passes as if it were known which steps of them a record is in."""
        known = math.fsum(count * participations / noise**2 for _, participations, noise, count in self.allocated)
        return replace(self, gaussian_precision=self.gaussian_precision + known, allocated=())

    def as_if_independent(self) -> NormalForm:
        """Return about the same: as if a record took part in each step independently of all. No bound."""
        steps: Counter[tuple[float, float]] = Counter()
        for rate, noise, count in (*self.sampled, *self.fixed_size):
            steps[rate, noise] += count
        for bins, participations, noise, count in self.allocated:
            steps[participations / bins, noise] += bins * count
        sampled = tuple(sorted((rate, noise, count) for (rate, noise), count in steps.items()))
        return replace(self, sampled=sampled, allocated=(), fixed_size=())

    @property
    def empty(self) -> bool:
        """Whether nothing was released."""
        return not (self.noiseless or self.is_sampled or self.gaussian_precision)


def releases_of(composition: Composition) -> list[tuple[Event, int]]:
    """Return what a composition released: all of it but findings and the rule of a filter."""
    return [(event, count) for event, count in composition if event.is_release]


def steps_of(composition: Composition) -> list[tuple[Event, int]]:
    """Return the steps of a composition: what it released but for statistics beside training."""
    return [(event, count) for event, count in composition if event.is_step]


def count_steps(composition: Composition) -> int:
    """Return how many steps a composition has; a finding is none."""
    return sum(count for _, count in steps_of(composition))


def next_pass(composition: Composition) -> int:
    """Return the number of the next pass over the data: how many were begun."""
    return max((event.data_pass for event, _ in composition if event.data_pass is not None), default=-1) + 1


def next_block(composition: Composition) -> int:
    """Return the number of the next block of steps."""
    return max((event.in_block for event, _ in composition if event.in_block is not None), default=-1) + 1


def of_accounts(accounts: Iterable[Composition]) -> Composition:
    """Return the composition of several accounts on the same records: runs, each with a ledger of its own.

    Guarantee: a pass or a block of one account is never taken for one of another account with the same number.

    Raises `AccountingError` for a kind of event that does not say how it is numbered (`Event.later`).
    """
    found: list[tuple[Event, int]] = []
    by = 0
    for account in accounts:
        found += [(event.later(by), count) for event, count in account]
        by += max(next_pass(account), next_block(account))
    return found


def is_numbered(event: Event) -> bool:
    """Return whether an event belongs to a pass or to a block, of which an account may have several."""
    return event.data_pass is not None or event.in_block is not None


def costs_no_more(composition: Composition, plan: Composition) -> bool:
    """Return whether no cost of a composition is above that of a plan, each kind of cost by itself.

    True says that its ε is not above the plan's at any δ. False may be said of one that is below it all the same.
    """
    one, other = normal_form(composition), normal_form(plan)
    if one.empty:
        return True
    allowed = {(rate, noise): count for rate, noise, count in other.sampled}
    return (
        one.adjacency == other.adjacency
        and not (one.truncated or one.fixed_size or one.allocated or one.filter or other.filter)
        and (other.noiseless or not one.noiseless)
        and one.gaussian_precision <= other.gaussian_precision * (1 + 1e-12)
        and all(count <= allowed.get((rate, noise), 0) for rate, noise, count in one.sampled)
    )


def finding_of(composition: Composition) -> str | None:
    """Return what was found after which nothing of the composition is established; None where nothing was."""
    return next((event.finding for event, count in composition if count and event.finding is not None), None)


def require_established(composition: Composition) -> None:
    """Refuse to add to an account after a finding. Raises `NotEstablishedError`."""
    found = finding_of(composition)
    if found is not None:
        raise NotEstablishedError(
            f"after {count_steps(composition)} steps it was found that earlier ones may have leaked, so epsilon is "
            f"infinite for all of them and nothing is released any more; found was {found}",
            cure="Keep what was trained to yourself, mend what was found, and train a new model with a new ledger",
        )


def adjacency_of(events: Iterable[Event]) -> str:
    """Return the neighbouring relation of all `events` (add/remove-one if there are none).

    Raises `AccountingError` where they have different relations: one epsilon cannot speak of two.
    """
    relations = sorted({event.adjacency for event in events if event.is_release})
    if len(relations) > 1:
        raise AccountingError(
            f"the composition mixes the neighbouring relations {' and '.join(relations)}, and one epsilon cannot hold "
            f"for both",
            cure="Keep a ledger for each relation, and report both figures",
        )
    return relations[0] if relations else ADD_REMOVE_ONE


def normal_form(composition: Composition) -> NormalForm:
    """Return `composition` in the form that accountants read.

    Guarantee: the order of events, and how equal ones are grouped, make no difference.

    Raises `AccountingError` for mixed neighbouring relations and `InvalidArgumentError` for a count that is not a whole
    number >= 0.
    """
    counts: Counter[Event] = Counter()
    for event, count in composition:
        counts[event] += whole_number("count", count, minimum=0)
    live = {event: count for event, count in counts.items() if count}
    adjacency = adjacency_of(live)

    costs = Costs()
    for event, count in live.items():
        event.add_to(costs, count)
    releases = costs.releases + Counter(costs.weakest_of_pass.values())
    allocated: Counter[tuple[int, int, float]] = Counter()
    for (bins, participations, _), noise in costs.weakest_of_allocation.items():
        if participations == bins or noise < LEAST_ALLOCATED_NOISE:
            releases[noise] += participations
        else:
            allocated[bins, participations, noise] += 1
    rule = costs.filters[0] if costs.filters else None
    if 0.0 in releases:
        return NormalForm(adjacency, 0.0, (), True, filter=rule)
    precision = math.fsum(_precision(noise_multiplier, count) for noise_multiplier, count in releases.items())
    return NormalForm(
        adjacency,
        precision,
        tuple(sorted((rate, noise, count) for (rate, noise), count in costs.sampled.items())),
        False,
        tuple(sorted((*key, count) for key, count in costs.truncated.items())),
        tuple(sorted((rate, noise, count) for (rate, noise), count in costs.fixed_size.items())),
        rule,
        tuple(sorted((*key, count) for key, count in allocated.items())),
    )


def _precision(noise_multiplier: float, count: int) -> float:
    # Division in this order: a noise multiplier of 1e-200 squares to 0, and 1/0 is an error rather than a number.
    inverse = 1 / noise_multiplier
    return inverse * inverse * count


def pooled(sampled: tuple[Sampled, ...], most: int) -> tuple[Sampled, ...]:
    """Return `sampled` with neighbours pooled until at most `most` different events are left.

    Guarantee: pooling never lowers ε: a group has its largest sampling rate and its smallest noise multiplier, and the
    privacy loss of a Poisson-sampled Gaussian grows with the one and falls with the other.
    """
    bits = 40
    result = sampled
    while len(result) > most:
        bits -= 1
        groups: dict[tuple[int, int], Sampled] = {}
        for rate, noise, count in sampled:
            key = (_bucket(rate, bits), _bucket(noise, bits))
            old_rate, old_noise, old_count = groups.get(key, (0.0, math.inf, 0))
            groups[key] = (max(rate, old_rate), min(noise, old_noise), count + old_count)
        result = tuple(sorted(groups.values()))
    return result


def _bucket(value: float, bits: int) -> int:
    # Buckets of ratio 2^(1/2^bits), then of ever larger powers of two as `bits` falls below 0.
    return math.floor(math.log2(value) * 2.0**bits)
