"""A release: the sum is made, then charged, then gets noise; in this order."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hushgrad.accounting.calibration import calibrate_noise_multiplier
from hushgrad.accounting.composition import adjacency_of
from hushgrad.accounting.events.event import ADD_REMOVE_ONE, Event
from hushgrad.accounting.events.release import release_under
from hushgrad.accounting.ledger.contract import FIXED_KEY, OBSERVED, ONE_RECORD, OPERATING_SYSTEM, Contract
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.errors import ContractChangedError, InvalidArgumentError
from hushgrad.mechanism.grid import GridNoise
from hushgrad.noise.gaussian import Noised
from hushgrad.randomness import Address, KeyStream
from hushgrad.releases.known import require_query
from hushgrad.releases.query import Query
from hushgrad.releases.reading import error_of_sum, number_of_records, sum_over
from hushgrad.releases.released import Released

PHASE = "releases"
"""The name of the part of an account that begins with a release."""


def release(
    query: Query,
    data: Any,
    *,
    ledger: str | os.PathLike[str],
    noise_multiplier: float | None = None,
    epsilon: float | None = None,
    delta: float | None = None,
    adjacency: str | None = None,
) -> Released:
    """Release a statistic of all records of `data`: clipped, with noise, charged in a ledger.

    Where a session is open, call `session.release`, which has its ledger::

        scale = hushgrad.release(
            releases.Normalisation(low=[0, 0], high=[100, 1e5], of=lambda record: record[0]),
            dataset, ledger="run/ledger.jsonl", epsilon=0.2, delta=1e-6,
        ).answer  # then train in the same account: privatize(..., ledger="run/ledger.jsonl", phase="training")

    Noise is drawn on a grid to which the sum is rounded (docs/floating-point.md).

    Guarantee: one record moves the sum by at most the sensitivity of the query; the noise on it has the standard
    deviation σ · sensitivity · (1 + 2**-12), and is drawn after the charge is on disk.

    Args:
        query: what is asked.
        data: a map-style dataset, a tensor or a list, one entry for each record. Its length is thereby public.
        ledger: the account. A missing file is begun, and one that exists goes on in the part that it is in.
        noise_multiplier: σ > 0; or
        epsilon, delta: what the release may cost by itself.
        adjacency: "add/remove-one" (the default), "zero-out" or "replace-one"; of a ledger that has charges, theirs.

    Raises:
        InvalidArgumentError: no query, or no noise.
        DatasetError: data without a length or a record.
        CrossSampleLeakError: what is read of a record follows from others, too.
        ContractChangedError: the ledger protects another unit than one record, or counts under another relation.
        LedgerError: the ledger cannot be opened or trusted; nothing was released.
    """
    contract, name, found = _account_of(ledger, number_of_records(data))
    if adjacency is not None and found is not None and adjacency != found:
        raise ContractChangedError(
            f"it counts under {found} neighbours, and the release is asked for under {adjacency}",
            where="the ledger",
            cure="Leave adjacency out, or begin another ledger",
        )
    asked = Asked.of(query, data, found or adjacency or ADD_REMOVE_ONE, noise_multiplier, epsilon, delta)
    total = sum_over(asked.query, data)
    with Ledger(ledger, contract=contract, phase=name) as account, account:
        account.charge(asked.event)
        return asked.released(total, KeyStream.from_operating_system())


def _account_of(path: str | os.PathLike[str], population: int) -> tuple[Contract, str | None, str | None]:
    """Return the contract and the name of the part that a ledger is in, and its relation; of a new one, of releases."""
    if not os.path.lexists(path):
        return Contract(OBSERVED, OPERATING_SYSTEM, population=population), PHASE, None
    view = read_ledger(path)
    last = view.phases[-1]
    if last.contract.unit != ONE_RECORD:
        raise ContractChangedError(
            f"its unit is {last.contract.unit}, and a release bounds what one record adds",
            where="the ledger",
            cure="Begin another ledger, and say both",
        )
    if last.contract.noise_source == FIXED_KEY:
        raise ContractChangedError(
            "its noise is from a fixed key, for tests", where="the ledger", cure="Begin another ledger"
        )
    return last.contract, last.name, adjacency_of(event for event, _ in view.events) if view.events else None


@dataclass(frozen=True)
class Asked:
    """A query with its noise and what it is charged as."""

    query: Query
    noise: GridNoise
    population: int
    event: Event

    @classmethod
    def of(
        cls,
        query: Any,
        data: Any,
        adjacency: str,
        noise_multiplier: float | None,
        epsilon: float | None,
        delta: float | None,
    ) -> Asked:
        """Return the query, checked, with the noise that was given or that an ε affords.

        Raises as `release` does.
        """
        known, count = require_query(query), number_of_records(data)
        text = f"{known.describe()}, over {count} records"
        sigma = _noise(noise_multiplier, epsilon, delta, lambda value: release_under(adjacency, value, text))
        noise = GridNoise(sigma)
        rounding = noise.rounding(known.sensitivity, known.width)
        if rounding is None:
            raise InvalidArgumentError("must be above 0", where="noise_multiplier", cure="A release needs noise")
        if error_of_sum(known, count) > rounding.error:
            raise InvalidArgumentError(
                "rounding in float64 may move a sum over so many records by more than the noise is made for",
                where="data",
                cure="Release parts of the records apart",
            )
        return cls(known, noise, count, release_under(adjacency, sigma, text, rounding.distance))

    def released(self, total: Tensor, stream: KeyStream) -> Released:
        """Return the answer from the sum with noise; charge before."""
        sensitivity = self.query.sensitivity
        noised = self.noise.updates(stream, [Noised(total, Address(0))], sensitivity=sensitivity, divisor=1.0)[0]
        std = self.noise.std(sensitivity)
        return Released(self.query.answer(noised, self.population, std), noised, std, self.event)


def _noise(
    noise_multiplier: float | None, epsilon: float | None, delta: float | None, event: Callable[[float], Event]
) -> float:
    if noise_multiplier is not None and epsilon is None and delta is None:
        return noise_multiplier
    if noise_multiplier is None and epsilon is not None and delta is not None:
        return calibrate_noise_multiplier(
            target_epsilon=epsilon, target_delta=delta, composition=lambda value: [(event(value), 1)]
        )
    raise InvalidArgumentError(
        "a release needs its noise: noise_multiplier, or epsilon with delta, and not both",
        where="release",
        cure="Pass epsilon=0.1, delta=1e-6 for instance: what this release may cost by itself",
    )
