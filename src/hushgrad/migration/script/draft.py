"""What the rules of a migration write into: changes of the text, notes, and what is left to be looked at."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from hushgrad.migration.script.names import Names
from hushgrad.migration.script.source import Change, Source


@dataclass(frozen=True, slots=True, order=True)
class Note:
    """Something to know about a line (from 1): `by_hand` where the diff does not do it."""

    line: int
    what: str
    cure: str
    by_hand: bool


@dataclass
class Draft:
    """A migration in work. `handled` are the nodes that a rule has dealt with, with all that is inside of them."""

    source: Source
    names: Names
    changes: list[Change] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    handled: set[ast.AST] = field(default_factory=set)
    needed: dict[str, set[str]] = field(default_factory=dict)
    """For names of Opacus: those of hushgrad that take their place."""

    def nodes(self, kind: type[ast.AST] = ast.AST) -> list[ast.AST]:
        """Return all nodes of a kind, in the order of the text."""
        found = [node for node in ast.walk(self.source.tree) if isinstance(node, kind)]
        return sorted(found, key=lambda node: (getattr(node, "lineno", 0), getattr(node, "col_offset", 0)))

    def calls(self, is_meant: Callable[[ast.Call], bool]) -> list[ast.Call]:
        """Return the calls that are meant, in the order of the text."""
        return [node for node in self.nodes(ast.Call) if isinstance(node, ast.Call) and is_meant(node)]

    def replace(self, node: ast.expr | ast.stmt, text: str) -> None:
        """Write `text` in the place of a node."""
        self.changes.append(Change(*self.source.span(node), text))
        self.handled.add(node)

    def remove_statement(self, node: ast.stmt) -> None:
        """Take a statement away with its line; the only one of a block becomes `pass`."""
        parent = self.source.parents[node]
        blocks = [value for _, value in ast.iter_fields(parent) if isinstance(value, list) and node in value]
        if (len(blocks[0]) == 1 and not isinstance(parent, ast.Module)) or not self.source.stands_alone(node):
            self.replace(node, "pass")
            return
        start, end = self.source.span(node)
        self.changes.append(Change(self.source.line_start(start), self.source.line_end(end), ""))
        self.handled.add(node)

    def drop_arguments(self, call: ast.Call, dropped: Collection[ast.keyword], added: str = "") -> None:
        """Take keyword arguments out of a call, and add one at its end."""
        source = self.source
        if dropped and not added and len(dropped) == len(call.args) + len(call.keywords):
            start = source.text.index("(", source.span(call.func)[1]) + 1
            self.changes.append(Change(start, source.span(call)[1] - 1, ""))
            return
        given: list[ast.expr | ast.keyword] = sorted([*call.args, *call.keywords], key=lambda one: source.span(one))
        kept = [one for one in given if one not in dropped]
        last = max((given.index(one) for one in kept), default=-1)
        trailing = [one for one in given[last + 1 :] if isinstance(one, ast.keyword)]
        lines = [one for one in given if isinstance(one, ast.keyword) and one in dropped and source.stands_alone(one)]
        for index, one in enumerate(given):
            if one not in dropped:
                continue
            start, end = source.span(one)
            if one in lines:
                self.changes.append(Change(source.line_start(start), source.line_end(end), ""))
            elif one not in trailing:
                self.changes.append(Change(start, source.span(given[index + 1])[0], ""))
        if trailing and not any(one in lines for one in trailing):
            start = source.span(given[last])[1] if last >= 0 else source.span(trailing[0])[0]
            end = source.span(trailing[-1])[1]
            if last < 0 and source.text[end] == ",":
                end += 1
            self.changes.append(Change(start, end, ""))
        if added:
            self._add_argument(call, kept, added)

    def _add_argument(self, call: ast.Call, kept: list[ast.expr | ast.keyword], added: str) -> None:
        source = self.source
        if not kept:
            place = source.span(call)[1] - 1
            self.changes.append(Change(place, place, added))
            return
        start, end = source.span(kept[-1])
        before = source.text[source.line_start(start) : start]
        joint = f",{source.newline}{before}" if not before.strip() else ", "
        self.changes.append(Change(end, end, f"{joint}{added}"))

    def insert_after(self, node: ast.stmt, text: str) -> None:
        """Write a statement on a line of its own after another one."""
        end = self.source.span(node)[1]
        place = self.source.line_end(end)
        ended = self.source.text[:place].endswith("\n")
        line = f"{self.source.indent(node)}{text}"
        whole = f"{line}{self.source.newline}" if ended else f"{self.source.newline}{line}"
        self.changes.append(Change(place, place, whole))

    def note(self, node: ast.AST, what: str, cure: str = "", *, by_hand: bool = False) -> None:
        """Tell something about the line of a node."""
        self.notes.append(Note(getattr(node, "lineno", 1), what, cure, by_hand))

    def need(self, opacus: str, hushgrad: str) -> str:
        """Say that a name of hushgrad takes the place of one of Opacus; return how it is written."""
        self.needed.setdefault(opacus, set()).add(hushgrad)
        return hushgrad

    def is_handled(self, node: ast.AST) -> bool:
        """Return whether a rule has dealt with a node, or with one that it stands in."""
        while True:
            if node in self.handled:
                return True
            if node not in self.source.parents:
                return False
            node = self.source.parents[node]
