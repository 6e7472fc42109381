"""Names of repeated layers folded into one: `layer.{0…11}.query`, where all else is the same."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from math import prod

NUMBER = re.compile(r"(?<![^.\s])\d+(?![^.,\s])")
HOLE = "\0"


def fold_names(entries: Iterable[tuple[str, Hashable]]) -> list[tuple[str, Hashable, int]]:
    """Return `(name, facts, how many)` with those entries joined that differ in one number of their name only.

    Args:
        entries: dotted names with what is known of each.
    """
    rows: list[tuple[str, Hashable]] = list(entries)
    groups: dict[tuple[str, Hashable], list[list[str]]] = {}
    for name, facts in rows:
        numbers = NUMBER.findall(name)
        groups.setdefault((NUMBER.sub(HOLE, name), facts), []).append(numbers)
    result: list[tuple[str, Hashable, int]] = []
    for (pattern, facts), found in groups.items():
        parts = _spans(found)
        if parts is None:
            result += [(_filled(pattern, numbers), facts, 1) for numbers in found]
        else:
            result.append((_filled(pattern, parts), facts, len(found)))
    return result


def _spans(found: Sequence[Sequence[str]]) -> list[str] | None:
    """Return what to write for each number of the pattern, or None if the names are not all combinations of them."""
    columns = [list(dict.fromkeys(column)) for column in zip(*found, strict=True)]
    # Columns that go together (a parameter's and its module's number, say) count once.
    combinations = prod(len(set(column)) for column in {tuple(column) for column in zip(*found, strict=True)})
    if combinations != len(found) or len({tuple(numbers) for numbers in found}) != len(found):
        return None
    return [_span(column) for column in columns]


def _span(column: Sequence[str]) -> str:
    if len(column) == 1:
        return column[0]
    values = sorted(map(int, column))
    if values == list(range(values[0], values[-1] + 1)) and len(values) > 2:
        return f"{{{values[0]}…{values[-1]}}}"
    return "{" + ",".join(map(str, values)) + "}"


def _filled(pattern: str, parts: Sequence[str]) -> str:
    remaining = iter(parts)
    return re.sub(HOLE, lambda _: next(remaining), pattern)


def short_list(names: Sequence[str]) -> str:
    """Return parameter names with their common beginning said once: `fc.weight, .bias`."""
    first = names[0]
    home = first.rpartition(".")[0]
    return ", ".join([first, *[_after(name, home) for name in names[1:]]])


def _after(name: str, home: str) -> str:
    return name.removeprefix(home) if home and name.startswith(f"{home}.") else name
