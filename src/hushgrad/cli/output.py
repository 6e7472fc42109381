"""How commands print: one JSON object for programs, or aligned text for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
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
    click.echo()
    click.echo(click.wrap_text(sentence, width=100))
