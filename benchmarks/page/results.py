"""What a run of the page's benchmark found, as one value that is written to JSON and shown on the page."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from benchmarks.machine import Machine
from benchmarks.page.worker import Part

SCHEMA = 1


@dataclass(frozen=True)
class WorkloadFound:
    """A workload under each allocator.

    Attributes:
        parts: from the allocator, "default" or "steady", to what was found under it.
        others: the share of the processors that other programs took meanwhile; None where the system doesn't say.
        error: why it could not be measured, or None.
    """

    title: str
    batch_size: int
    parts: dict[str, Part]
    others: float | None
    error: str | None = None

    @property
    def absent(self) -> dict[str, str]:
        """Who took no part, and why."""
        return {name: why for part in self.parts.values() for name, why in part.absent.items()}


@dataclass(frozen=True)
class GrowthFound:
    """How step time grows: a drawing of each axis as SVG, a table whose first row are its heads, and the figures.

    Attributes:
        error: why it could not be measured, or None.
    """

    drawings: dict[str, str]
    rows: list[list[str]]
    figures: dict[str, Any]
    others: float | None
    error: str | None = None


@dataclass(frozen=True)
class Found:
    """One run.

    Attributes:
        missing: who could not take part at all, and why.
        one_allocator: why there is no second allocator, or None.
        small: whether the networks had the sizes of tests.
    """

    command: str
    began: str
    minutes: float
    took_minutes: float
    machine: Machine
    missing: dict[str, str]
    one_allocator: str | None
    workloads: dict[str, WorkloadFound]
    growth: GrowthFound | None
    small: bool = False
    schema: int = field(default=SCHEMA)

    def to_json(self) -> str:
        """Return the figures as JSON, without the drawings."""
        fields: dict[str, Any] = dataclasses.asdict(self)
        if fields["growth"] is not None:
            del fields["growth"]["drawings"], fields["growth"]["rows"]
        return json.dumps(fields, indent=2) + "\n"
