"""A Python file as text with its syntax tree, and changes that leave the rest of it as it is."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

from hushgrad.errors import HushgradError, InvalidArgumentError

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|$)")


@dataclass(frozen=True, slots=True)
class Change:
    """What stands from `start` to `end` of the text (in characters) becomes `text`."""

    start: int
    end: int
    text: str

    def is_inside(self, other: Change) -> bool:
        """Return whether it stands inside of another, larger one; what is put in at its borders does not."""
        if self.start == self.end:
            return other.start < self.start < other.end
        is_smaller = self.end - self.start < other.end - other.start
        return other.start <= self.start and self.end <= other.end and is_smaller


class Source:
    """The text of a file, its tree, and where a node stands in it. `newline` is what its lines end with."""

    def __init__(self, text: str) -> None:
        """Read a text. Raises `InvalidArgumentError` for one that this Python does not read."""
        if re.search(r"\r(?!\n)", text):
            raise InvalidArgumentError(
                "its lines end with carriage returns alone", where="FILE", cure="Save it with ordinary line ends"
            )
        try:
            self.tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            raise InvalidArgumentError(
                f"it is no Python that this version reads{f' (line {line})' if line else ''}",
                where="FILE",
                cure="Give a Python file; of a notebook, export the code first (jupyter nbconvert --to script)",
            ) from None
        self.text = text
        self.newline = "\r\n" if "\r\n" in text else "\n"
        self._lines = [match[0] for match in _LINE.finditer(text)]
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))
        self.parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def place(self, line: int, column: int) -> int:
        """Return where a line (from 1) and a column (in bytes of UTF-8, as the tree has it) stand in the text."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

    def span(self, node: ast.expr | ast.stmt | ast.keyword | ast.alias) -> tuple[int, int]:
        """Return where a node begins and ends."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.place(node.lineno, node.col_offset), self.place(node.end_lineno, node.end_col_offset)

    def of(self, node: ast.expr | ast.stmt | ast.keyword) -> str:
        """Return the text of a node."""
        start, end = self.span(node)
        return self.text[start:end]

    def line_start(self, place: int) -> int:
        """Return where the line of a place begins."""
        return self.text.rfind("\n", 0, place) + 1

    def line_end(self, place: int) -> int:
        """Return where the line of a place ends, its line end included."""
        found = self.text.find("\n", place)
        return len(self.text) if found < 0 else found + 1

    def indent(self, node: ast.stmt) -> str:
        """Return the white space before a statement that begins its line."""
        start = self.span(node)[0]
        before = self.text[self.line_start(start) : start]
        return before[: len(before) - len(before.lstrip())]

    def stands_alone(self, node: ast.stmt | ast.keyword) -> bool:
        """Return whether a node has its lines for itself, but for a comma and a comment after it."""
        start, end = self.span(node)
        before, after = self.text[self.line_start(start) : start], self.text[end : self.line_end(end)]
        return not before.strip() and re.fullmatch(r"\s*[,;]?\s*(#.*)?\s*", after) is not None

    def scope(self, node: ast.AST) -> ast.AST:
        """Return the function, class or module that a node stands in."""
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
                return node
        return node

    def statement(self, node: ast.AST) -> ast.stmt:
        """Return the statement that an expression belongs to."""
        while not isinstance(node, ast.stmt):
            node = self.parents[node]
        return node

    def lines_inside_text(self) -> set[int]:
        """Return the lines (from 1) that begin inside of a text of several lines: their white space is part of it."""
        inside: set[int] = set()
        for token in _tokens(self.text):
            if token.type == tokenize.STRING or tokenize.tok_name[token.type].startswith("FSTRING"):
                inside |= set(range(token.start[0] + 1, token.end[0] + 1))
        return inside

    def end_of_body(self, last: int, indent: int) -> int:
        """Return the last line (from 1) of a block that ends with line `last`, comments after its last statement in."""
        end = last
        for number in range(last + 1, len(self._lines) + 1):
            line = self._lines[number - 1]
            if not line.strip():
                continue
            if not line.lstrip().startswith("#") or len(line) - len(line.lstrip(" \t")) < indent:
                break
            end = number
        return end

    def dedented(self, first: int, last: int, by: int) -> list[Change]:
        """Return the changes that move lines `first` to `last` (from 1) to the left by `by` characters."""
        inside = self.lines_inside_text()
        changes = []
        for line in range(first, last + 1):
            text = self._lines[line - 1]
            room = len(text) - len(text.lstrip(" \t"))
            if line not in inside and text.strip():
                start = self._starts[line - 1]
                changes.append(Change(start, start + min(by, room), ""))
        return changes

    def with_changes(self, changes: list[Change]) -> str:
        """Return the text with all changes made; a change inside of what is exchanged goes with it.

        Raises `HushgradError` where two changes overlap in another way.
        """
        once = list(dict.fromkeys(changes))
        made = [change for change in once if not any(change.is_inside(other) for other in once)]
        text, before = self.text, len(self.text) + 1
        for change in sorted(made, key=lambda change: (change.start, change.end), reverse=True):
            if change.end > before:
                raise HushgradError(
                    "two changes meet in one place",
                    where=f"FILE, line {self.text.count(self.newline, 0, change.start) + 1}",
                    cure="Rewrite it by hand (docs/coming-from-opacus.md), and report the file",
                )
            before = change.start
            text = text[: change.start] + change.text + text[change.end :]
        return text


def _tokens(text: str) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(text, newline="").readline)
