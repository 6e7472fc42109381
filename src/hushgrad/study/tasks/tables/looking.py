"""What a table looks like: types, missing cells, different values. Computed without noise, for whoever owns the data.

Nothing here becomes part of a model: notices are for the screen, and what `hushgrad data` finds is for a schema that
somebody signs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from hushgrad.printable import printable
from hushgrad.study.tasks.table import Table
from hushgrad.study.tasks.tables.column import ANY, DATE, NUMBER, TEXT
from hushgrad.study.tasks.tables.schema import DROP
from hushgrad.study.tasks.tables.spelling import Spelling

NEARLY_ALL = 0.9
MANY = 0.05
FEWEST_ROWS = 20


@dataclass(frozen=True, slots=True)
class Look:
    """What the cells of one column look like; counts are of rows.

    `type` is "any" where some cells are numbers or dates and others are not; `are_whole`: whether all numbers are.
    """

    name: str
    type: str
    rows: int
    missing: int
    different: int
    are_whole: bool

    @property
    def is_constant(self) -> bool:
        """Whether there is nothing to learn from it."""
        return self.different <= 1 and self.missing in (0, self.rows)

    @property
    def could_name(self) -> bool:
        """Whether its cells could be names of something, and are no measurements."""
        return self.rows >= FEWEST_ROWS and (self.type in (TEXT, ANY) or (self.type == NUMBER and self.are_whole))

    @property
    def names_rows(self) -> bool:
        """Whether nearly every row has another value."""
        return self.could_name and self.different >= NEARLY_ALL * self.rows

    @property
    def may_name_people(self) -> bool:
        """Whether it has so many values, which repeat, that they may tell people from each other."""
        return self.could_name and not self.names_rows and self.different >= max(FEWEST_ROWS, MANY * self.rows)

    def proposed(self) -> tuple[str, str]:
        """Return the type to propose in a schema, and why where this is no matter of course."""
        if self.is_constant:
            return DROP, "every row holds the same"
        if self.names_rows:
            return DROP, "nearly every row has another value, as names of rows or people do"
        note = (
            "many values that repeat: does it tell people from each other? (--person)" if self.may_name_people else ""
        )
        return self.type, note


def look_at(table: Table, spelling: Spelling) -> tuple[Look, ...]:
    """Return what each column looks like."""
    return tuple(_look(name, Counter(table.column(name)), len(table.rows), spelling) for name in table.columns)


def notices(looks: Iterable[Look], features: Iterable[str], *, has_people: bool) -> tuple[str, ...]:
    """Return what whoever trains should know of the columns that become features, before they do."""
    wanted = set(features)
    said = []
    missing = []
    for look in looks:
        if look.name not in wanted:
            continue
        where = f"column {printable(look.name)!r}"
        if look.names_rows:
            said.append(
                f"{where} becomes a feature, and nearly every row has another value in it, as names of rows or people "
                "do: leave it out by --drop"
            )
        elif look.may_name_people and not has_people:
            said.append(
                f"{where} has many values that repeat: if it tells people from each other, ε is for one row and not "
                "for one person (--person COLUMN --records-per-person K)"
            )
        elif look.is_constant:
            said.append(f"{where} holds the same in every row: nothing is learned from it")
        if look.missing:
            missing.append(printable(look.name))
    if missing:
        said.append(f"missing cells count as a value of their own in {', '.join(missing)}")
    return tuple(said)


def _look(name: str, cells: Counter[str], rows: int, spelling: Spelling) -> Look:
    missing = 0
    kinds: set[str] = set()
    different, are_whole = 0, True
    for cell, count in cells.items():
        if spelling.is_missing(cell):
            missing += count
            continue
        different += 1
        number = spelling.number(cell)
        if number is not None:
            kinds.add(NUMBER)
            are_whole = are_whole and number.is_integer() and not {".", ","} & set(cell)
        else:
            kinds.add(TEXT if spelling.date(cell) is None else DATE)
    found = kinds.pop() if len(kinds) == 1 else TEXT if not kinds else ANY
    return Look(name, found, rows, missing, different, are_whole)
