"""A report as a document: sections of sentences, facts, tables and pictures, for any form of page."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from hushgrad.accounting.guarantee import round_up

CONTRADICTION = "FILES CONTRADICT EACH OTHER"
PRIVATE = "Differentially private"
NOT_PRIVATE = "NOT PRIVATE"
NO_RUN = "NO RUN WAS COMPLETED"


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table: its columns and its rows of text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Image:
    """A picture as SVG, with the words that stand for it."""

    svg: bytes
    words: str


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with what is under it, in this order: text, commands, facts (name, value), table, list, pictures.

    A command comes with what it does. hushgrad writes it: no name of a stranger's stands in it. `kind` is how the page
    shows it; a section that is no part of a model card, which goes with the model, is not `on_card`.
    """

    heading: str
    text: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    table: TextTable | None = None
    points: tuple[str, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    images: tuple[Image, ...] = field(default=(), repr=False)
    kind: str = ""
    on_card: bool = True


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report. `figures` are the few numbers that come first, as (value, what it is).

    `badge` says under the title what it is: PRIVATE, NOT_PRIVATE or NO_RUN. `contradictions` come before everything, as
    an alarm in the badge's place, `notices` after the figures, and then `lead`: what the figures mean.
    """

    title: str
    badge: str
    figures: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    contradictions: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    lead: tuple[str, ...] = ()

    @property
    def private(self) -> bool:
        """Is it of something that has a guarantee?"""
        return self.badge == PRIVATE


def up(value: Any) -> str:
    """Return a figure of privacy rounded up to four digits; "∞" for infinity, "–" for none."""
    if value is None:
        return "–"
    number = float(value)
    return "∞" if math.isinf(number) else round_up(number)


def percent(value: Any) -> str:
    """Return a fraction as a percentage."""
    return "–" if value is None else f"{float(value):.1%}"


def plain(value: Any) -> str:
    """Return any other value as text."""
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
