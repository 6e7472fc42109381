"""What a notebook shows of a result: small pieces of HTML, with every text escaped."""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Mapping, Sequence

GOOD, BAD = "#1a7f37", "#cf222e"


def escaped(text: object) -> str:
    """Return a text as HTML shows it."""
    return html.escape(str(text))


def headline(text: str, *, good: bool) -> str:
    """Return the line that matters most, green or red."""
    return f'<p style="font-weight:600;color:{GOOD if good else BAD}">{escaped(text)}</p>'


def paragraphs(sentences: Iterable[str]) -> str:
    """Return a paragraph for each text."""
    return "".join(f"<p>{escaped(sentence)}</p>" for sentence in sentences)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], right: Collection[str] = ()) -> str:
    """Return rows under heads; columns named in `right` hold numbers."""
    sides = ["right" if head in right else "left" for head in heads]

    def row(tag: str, cells: Sequence[object]) -> str:
        shown = zip(cells, sides, strict=True)
        return "".join(f'<{tag} style="text-align:{side}">{escaped(cell)}</{tag}>' for cell, side in shown)

    body = "".join(f"<tr>{row('td', cells)}</tr>" for cells in rows)
    return f"<table><thead><tr>{row('th', heads)}</tr></thead><tbody>{body}</tbody></table>"


def facts(title: str, values: Mapping[str, object]) -> str:
    """Return names and values, one pair a row; those that are None are left out."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escaped(name)}</th><td style="text-align:left">{escaped(value)}</td></tr>'
        for name, value in values.items()
        if value is not None
    )
    return f"<b>{escaped(title)}</b><table>{rows}</table>"
