"""A statistic that is released beside the steps, in the session's own ledger."""

from __future__ import annotations

from typing import Any

from hushgrad.accounting.ledger.contract import ONE_RECORD
from hushgrad.errors import ContractChangedError, InvalidArgumentError, UnsupportedModelError
from hushgrad.randomness import KeyStream
from hushgrad.releases.query import Query
from hushgrad.releases.reading import sum_over
from hushgrad.releases.released import Released
from hushgrad.releases.releasing import Asked
from hushgrad.session.parts import Parts


def released_beside(
    parts: Parts,
    query: Query,
    data: Any,
    *,
    noise_multiplier: float | None,
    epsilon: float | None,
    delta: float | None,
) -> Released:
    """Return what `Session.release` says; the sum comes first, then the charge, then noise."""
    if not parts.world.is_alone:
        raise UnsupportedModelError(
            "a release in several processes is not supported: each has a copy of the records",
            where="session.release",
            cure="Release in one process, before or after training: hushgrad.release(query, data, ledger=path)",
        )
    if data is None:
        raise InvalidArgumentError(
            "this session has no loader, so the records are not known", where="data", cure="Pass the dataset"
        )
    if parts.spending.unit != ONE_RECORD:
        raise ContractChangedError(
            f"the session protects {parts.spending.unit}, and a release bounds what one record adds",
            where="session.release",
            cure="Release nothing here",
        )
    adjacency = parts.mechanism.at(0).event().adjacency
    asked = Asked.of(query, data, adjacency, noise_multiplier, epsilon, delta)
    total = sum_over(asked.query, data)
    parts.spending.release(asked.event)
    own = KeyStream.from_operating_system()
    number = sum(count for event, count in parts.spending.events() if event.is_release and not event.is_step)
    stream = own if parts.draws.is_secret else parts.draws.fork(f"release {number}")
    return asked.released(total, stream)
