"""`migrate`: the text of a script for Opacus, rewritten for hushgrad."""

from __future__ import annotations

import ast
import difflib
from dataclasses import dataclass

from hushgrad.errors import HushgradError
from hushgrad.migration.script import engine_calls, imports, leftovers, loops, models
from hushgrad.migration.script.draft import Draft, Note
from hushgrad.migration.script.names import Names
from hushgrad.migration.script.source import Source

LIBRARIES = ("opacus", "fastDP")


@dataclass(frozen=True, slots=True)
class Migration:
    """A text before and after, and what is to be known about it, by line of the text before.

    Attributes:
        before: the text that was given.
        after: the text with all safe changes.
        notes: what changes its meaning, and what is left to be done by hand.
        uses_opacus: whether the text imports Opacus (or fastDP) at all.
    """

    before: str
    after: str
    notes: tuple[Note, ...]
    uses_opacus: bool

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to be done by hand."""
        return not any(note.by_hand for note in self.notes)

    def diff(self, name: str) -> str:
        """Return the changes as a unified diff of a file called `name`; "" where there are none."""
        lines = difflib.unified_diff(
            self.before.splitlines(keepends=True),
            self.after.splitlines(keepends=True),
            f"a/{name}",
            f"b/{name}",
        )
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def migrate(text: str) -> Migration:
    """Rewrite a script that uses Opacus: its import, its calls, its layers; all else stays as it is, to the letter.

    Guarantee: what cannot be changed safely is left as it is, and told with its line and its cure.

    Nothing of the script is run. Raises `InvalidArgumentError` for a text that is no Python.
    """
    source = Source(text)
    if not _imports_any(source):
        return Migration(text, text, (), uses_opacus=False)
    draft = Draft(source, Names(source))
    for rule in (engine_calls, models, loops, imports):
        rule.rewrite(draft)
    leftovers.tell(draft)
    after = source.with_changes(draft.changes)
    try:
        ast.parse(after)
    except SyntaxError as error:  # every change was meant to keep it whole
        raise HushgradError(
            f"the rewritten text would not be Python (line {error.lineno})",
            where="FILE",
            cure="Rewrite it by hand (docs/coming-from-opacus.md), and report the file",
        ) from None
    return Migration(text, after, tuple(sorted(set(draft.notes))), uses_opacus=True)


def _imports_any(source: Source) -> bool:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] in LIBRARIES for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            return True
    return False
