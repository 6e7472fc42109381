"""What is declared of a column of a table: its type, public bounds of its numbers, a public list of its values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hushgrad.arguments import one_of, real_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.printable import printable

ANY, NUMBER, TEXT, DATE = "any", "number", "text", "date"
TYPES = (ANY, NUMBER, TEXT, DATE)
_A_DAY = datetime(2024, 5, 31)


@dataclass(frozen=True, slots=True)
class Column:
    """A column that becomes features.

    Attributes:
        name: as the first line of the file has it.
        type: "any": each cell by itself is a number, a date or a text; or what all of its cells are.
        bounds: public lower and upper bound of its numbers; what lies beyond counts as at the bound.
        categories: public list of its texts; all others count as one more.
        date_format: of Python's strptime, where its dates are spelled in another way than those that are found.

    Raises InvalidArgumentError for what does not go together.
    """

    name: str
    type: str = ANY
    bounds: tuple[float, float] | None = None
    categories: tuple[str, ...] | None = None
    date_format: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise InvalidArgumentError("a column's name must be text", where="columns", cure="Write it in quotes")
        where = f"column {printable(self.name)!r}"
        one_of(f"{where}: type", self.type, TYPES)
        for said, given, fits in (
            ("a range", self.bounds, (ANY, NUMBER)),
            ("categories", self.categories, (TEXT,)),
            ("a date format", self.date_format, (DATE,)),
        ):
            if given is not None and self.type not in fits:
                raise InvalidArgumentError(
                    f"{said} is for {fits[-1]}s, and its type is {self.type}",
                    where=where,
                    cure=f"Leave it out, or make the type {fits[-1]}",
                )
        if self.bounds is not None:
            check_bounds(where, self.bounds)
        if self.categories is not None:
            check_categories(where, self.categories)
        if self.date_format is not None:
            _check_format(where, self.date_format)

    def as_json(self) -> dict[str, Any]:
        """Return the column as JSON values, without what was not declared."""
        value = {
            "name": self.name,
            "type": self.type,
            "bounds": self.bounds,
            "categories": self.categories,
            "date_format": self.date_format,
        }
        return {name: inner for name, inner in value.items() if inner is not None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Column:
        """Return what `as_json` wrote. Raises InvalidArgumentError, or TypeError for what is no column at all."""
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in value.items()}
        return cls(**fields)


def check_bounds(where: str, bounds: Any) -> None:
    """Raise InvalidArgumentError unless these are a lower and a greater upper bound."""
    if not isinstance(bounds, tuple) or len(bounds) != 2:
        raise InvalidArgumentError(
            "a range is a lower and an upper bound", where=where, cure="Write two numbers, the smaller one first"
        )
    low, high = bounds
    if not real_number("the lower bound", low) < real_number("the upper bound", high):
        raise InvalidArgumentError(
            f"bounds must be LOW < HIGH, got {low} and {high}", where=where, cure="Give the smaller bound first"
        )


def check_categories(where: str, categories: Any) -> None:
    """Raise InvalidArgumentError unless these are different texts, one at least."""
    is_list = isinstance(categories, tuple) and all(isinstance(name, str) for name in categories)
    if not is_list or not categories or len(set(categories)) != len(categories):
        raise InvalidArgumentError(
            "categories are a list of different texts", where=where, cure='Write such as ["blue", "red"]'
        )


def _check_format(where: str, format: Any) -> None:
    try:
        is_one = isinstance(format, str) and datetime.strptime(_A_DAY.strftime(format), format).date() == _A_DAY.date()
    except ValueError:
        is_one = False
    if not is_one:
        raise InvalidArgumentError(
            "the date format does not say a whole day",
            where=where,
            cure="Write it as Python's strptime does, such as %d/%m/%Y",
        )
