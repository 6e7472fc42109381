"""A document as a self-contained page and as a section of a model card in Markdown.

Names of runs, columns and classes come from strangers, so they are treated as text everywhere: they are escaped on the
page and in Markdown, and the page's policy forbids scripts and all requests.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from hushgrad.extras import needs_extra
from hushgrad.printable import printable
from hushgrad.study.report.document import CONTRADICTION, Document, TextTable

with needs_extra("report", "a report"):
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

LONGEST = 2000
# A hyphen or a plus inside of a word or a number means nothing: 1e-05 and (ε, δ)-private are left as they are.
_SPECIAL = re.compile(r"([\\`*_{}\[\]#!|~$@]|(?<![\w)])[-+]|[-+](?!\w))")
_OPTION = re.compile(r"((?<![\w\\`-])--[a-z][a-z-]*[a-z](?![\w-]))")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("hushgrad.study.report"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode("ascii")
    return environment


@cache
def _style() -> str:
    return (resources.files("hushgrad.study.report") / "templates" / "page.css").read_text(encoding="utf-8")


def policy() -> str:
    """Return the page's content security policy: its own style sheet, pictures inside the page, nothing else."""
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode("ascii")
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def html(document: Document) -> str:
    """Return the page.

    Guarantee: no name, label or sentence of a report can become markup or script of its page.
    """
    template = _environment().get_template("page.html")
    # The style sheet is the package's own file; everything else is escaped.
    return template.render(document=document, contradiction=CONTRADICTION, style=Markup(_style()), policy=policy())


def markdown(document: Document) -> str:
    """Return a section for a model card, without pictures. Every text is escaped."""
    lines = [f"## Privacy: {escaped(document.title)}", ""]
    if document.contradictions:
        lines += [f"**{CONTRADICTION}**", "", *(f"- {escaped(sentence)}" for sentence in document.contradictions), ""]
    elif not document.private:
        lines += [f"**{document.badge}**", ""]
    lines += [f"- **{escaped(value)}** {escaped(what)}" for value, what in document.figures]
    lines += [line for sentence in document.notices for line in ("", f"{escaped(sentence)}.")]
    lines += [line for sentence in document.lead for line in ("", escaped(sentence))]
    for section in [section for section in document.sections if section.on_card]:
        lines += ["", f"### {escaped(section.heading)}", ""]
        for paragraph in section.text:
            lines += [escaped(paragraph), ""]
        for command, what in section.commands:
            lines += [f"{_code(command)} {escaped(what)}", ""]
        lines += [f"- {escaped(name)}: {escaped(value)}" for name, value in section.facts]
        if section.table is not None:
            lines += [*([""] if section.facts else []), *_table(section.table)]
        lines += [f"- {escaped(point)}" for point in section.points]
    return "\n".join(lines).rstrip() + "\n"


def _table(table: TextTable) -> list[str]:
    rows = [table.columns, tuple("---" for _ in table.columns)]
    shown = ["| " + " | ".join(cell if cell == "---" else escaped(cell) for cell in row) + " |" for row in rows]
    return [*shown, *("| " + " | ".join(map(escaped, row)) + " |" for row in table.rows)]


def escaped(text: str) -> str:
    """Return text on one line in which nothing is Markdown or HTML, but for the names of options, which are code."""
    parts = _OPTION.split(_on_one_line(text))
    escaped = [_SPECIAL.sub(r"\\\1", part).translate(_ENTITIES) for part in parts[::2]]
    options = [*map(_code, parts[1::2]), ""]
    return "".join(part + option for part, option in zip(escaped, options, strict=True))


def _code(text: str) -> str:
    """Return text as code, in which Markdown is not read; the quotation mark that ends code becomes another one."""
    return f"`{_on_one_line(text).replace('`', chr(39))}`"


def _on_one_line(text: str) -> str:
    return printable(text.replace("\n", " "), limit=LONGEST)
