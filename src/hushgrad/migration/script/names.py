"""What the names of a file stand for, as far as its imports say."""

from __future__ import annotations

import ast

from hushgrad.migration.script.source import Source


class Names:
    """The full names that imported ones stand for. A name that the file also assigns to stands for nothing here."""

    def __init__(self, source: Source) -> None:
        """Read the imports of a file, wherever they stand."""
        self._full: dict[str, str] = {}
        assigned = set()
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    name = alias.asname or alias.name.partition(".")[0]
                    self._full[name] = alias.name if alias.asname else name
            elif isinstance(node, ast.ImportFrom) and not node.level:
                for alias in node.names:
                    self._full[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                assigned.add(node.id)
            elif isinstance(node, ast.arg):
                assigned.add(node.arg)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                assigned.add(node.name)
        self.ambiguous = {name for name in assigned & set(self._full) if self._full[name].startswith("opacus")}
        for name in assigned:
            self._full.pop(name, None)

    def full(self, node: ast.AST) -> str | None:
        """Return the full name of what a name or a chain of attributes stands for; None where no import says."""
        if isinstance(node, ast.Name):
            return self._full.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.full(node.value)
            return None if owner is None else f"{owner}.{node.attr}"
        return None

    def of_opacus(self, node: ast.AST) -> str | None:
        """Return the last part of the full name of something of Opacus; None for all else."""
        full = self.full(node)
        return full.rpartition(".")[2] if full is not None and full.startswith("opacus.") else None

    def local(self, full: str) -> str | None:
        """Return how the file writes a full name, "torch.nn" for instance; None where it imports no part of it."""
        for name, known in self._full.items():
            if full == known:
                return name
        owner, _, last = full.rpartition(".")
        inner = self.local(owner) if owner else None
        return None if inner is None else f"{inner}.{last}"


def is_call_of(node: ast.AST, method: str) -> bool:
    """Return whether a node is a call of a method of that name."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method
