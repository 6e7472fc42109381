"""How commands print: one JSON object for programs, or aligned text for people."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import click

from hushgrad.result_file import write_file
from hushgrad.text_table import text_table, wrapped


class Result(Protocol):
    """What a command ends with: `str()` of it is for people."""

    def as_json(self) -> Mapping[str, Any]:
        """Return it as JSON values."""


INTERRUPTED = 130
"""The exit code of a command that Ctrl-C or SIGTERM ended."""


def program() -> str:
    """Return how hushgrad is started: by its name where the search path leads to this one, elsewhere by its path."""
    called = Path(sys.argv[0])
    started = called if called.name == "hushgrad" else Path(sys.executable).with_name("hushgrad")
    found = shutil.which("hushgrad")
    if not started.is_file() or (found is not None and Path(found).samefile(started)):
        return "hushgrad"
    here = Path.cwd()
    return shlex.quote(str(started.relative_to(here) if started.is_relative_to(here) else started))


def print_json(value: Mapping[str, Any]) -> None:
    """Print `value` as one line of valid JSON. JSON has no infinity: an infinite number is the string "inf"."""
    plain = {key: "inf" if isinstance(item, float) and math.isinf(item) else item for key, item in value.items()}
    click.echo(json.dumps(plain, allow_nan=False))


def print_result(result: Result, out: Path | None, *, as_json: bool) -> None:
    """Write a result to the claimed file `out`, indented, where there is one, and print it as JSON or as text."""
    value = result.as_json()
    if out is not None:
        write_file("--out", out, json.dumps(value, allow_nan=False, indent=2) + "\n")
    click.echo(json.dumps(value, allow_nan=False) if as_json else str(result))


def print_facts(facts: Mapping[str, object], sentence: str) -> None:
    """Print `facts` as an aligned table and `sentence` wrapped below it."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        first, *more = wrapped(shown, max(screen_width() - width - 2, 20)) if on_terminal() else [shown]
        click.echo(f"{name.replace('_', ' '):<{width}}  {first}")
        for line in more:
            click.echo(f"{'':<{width}}  {line}")
    if sentence:
        click.echo()
        say(sentence)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> None:
    """Print `rows` under `heads`, each column as wide as its widest cell, on a terminal no wider than it is.

    Columns named in `right` hold numbers.
    """
    click.echo(text_table(heads, rows, right=right, width=screen_width() if on_terminal() else None))


def say(text: str) -> None:
    """Print sentences in lines of at most 100 characters, fewer on a narrow screen; no word is cut."""
    click.echo("\n".join(wrapped(text, min(screen_width(), 100))))


def print_report(text: str, *, verdict: int, good: bool) -> None:
    """Print a report; its line number `verdict` is green or red on a terminal."""
    lines = text.splitlines()
    lines[verdict] = click.style(lines[verdict], fg="green" if good else "red", bold=True)
    click.echo("\n".join(lines))


def on_terminal() -> bool:
    """Return whether somebody looks at the output while it is written."""
    return sys.stdout.isatty()


def screen_width() -> int:
    """Return how many characters fit in a line; 100 where the output is no terminal."""
    return shutil.get_terminal_size((100, 24)).columns
