"""How commands print: one JSON object for programs, or aligned text for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import click


def print_json(value: Mapping[str, Any]) -> None:
    """Print `value` as one line of valid JSON. JSON has no infinity: an infinite number is the string "inf"."""
    plain = {key: "inf" if isinstance(item, float) and math.isinf(item) else item for key, item in value.items()}
    click.echo(json.dumps(plain, allow_nan=False, ensure_ascii=False))


def print_facts(facts: Mapping[str, object], sentence: str) -> None:
    """Print `facts` as an aligned table and `sentence` wrapped below it."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        click.echo(f"{name.replace('_', ' '):<{width}}  {shown}")
    if sentence:
        click.echo()
        click.echo(click.wrap_text(sentence, width=100))


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print `rows` under `heads`, each column as wide as its widest cell; the last column is not padded."""
    widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
    for row in (heads, ["-" * width for width in widths], *rows):
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
