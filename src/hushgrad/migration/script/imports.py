"""The imports of a file: Opacus' names make room for those that took their place."""

from __future__ import annotations

import ast

from hushgrad.migration.script.draft import Draft
from hushgrad.migration.script.models import LAYERS
from hushgrad.migration.script.source import Change

GONE = {"ModuleValidator", "BatchMemoryManager", *LAYERS}
"""Names of Opacus that no longer occur once every use of them is rewritten."""


def rewrite(draft: Draft) -> None:
    """Rewrite every import of Opacus whose names are no longer used, after all other rules."""
    left = {name for node in _uses(draft) if (name := draft.names.of_opacus(node)) is not None}
    for node in draft.nodes():
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "opacus":
            _from(draft, node, left)
        elif isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "opacus" for alias in node.names):
            _whole(draft, node)


def _uses(draft: Draft) -> list[ast.AST]:
    """Return the uses of Opacus' names that no rule has dealt with."""
    return [node for node in draft.nodes() if isinstance(node, ast.Name | ast.Attribute) and not draft.is_handled(node)]


def _from(draft: Draft, node: ast.ImportFrom, left: set[str]) -> None:
    kept, lines = [], []
    shared = _shared(draft)
    for alias in node.names:
        written = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
        if alias.name == "PrivacyEngine":
            together = [written, *_ours(draft)] if node is shared else [written]
            lines.append(f"from hushgrad import {', '.join(together)}")
        elif (
            alias.name in GONE and alias.name not in left and (alias.asname or alias.name) not in draft.names.ambiguous
        ):
            ours = sorted(draft.needed.get(alias.name, set()) - {"torch.nn"})
            if ours and (shared is None or draft.source.scope(node) is not draft.source.tree):
                lines.append(f"from hushgrad import {', '.join(ours)}")
            if "torch.nn" in draft.needed.get(alias.name, set()):
                lines.append("from torch import nn")
        else:
            kept.append(written)
    if len(kept) == len(node.names):
        return
    if kept:
        lines.append(f"from {node.module} import {', '.join(kept)}")
    lines = list(dict.fromkeys(lines))
    if not lines:
        draft.remove_statement(node)
        return
    indent = draft.source.indent(node)
    draft.replace(node, f"{draft.source.newline}{indent}".join(lines))


def _shared(draft: Draft) -> ast.ImportFrom | None:
    """Return the one import of PrivacyEngine of the module, under its own name: it takes our other names, too."""
    found = [
        node
        for node in draft.source.tree.body
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").split(".")[0] == "opacus"
        and any(alias.name == "PrivacyEngine" and alias.asname is None for alias in node.names)
    ]
    return found[0] if len(found) == 1 else None


def _ours(draft: Draft) -> list[str]:
    """Return the names of hushgrad that take the place of names that the module imports from Opacus."""
    gone = {
        alias.name
        for node in draft.source.tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "opacus"
        for alias in node.names
    }
    return sorted({ours for name in gone for ours in draft.needed.get(name, set())} - {"torch.nn"})


def _whole(draft: Draft, node: ast.Import) -> None:
    """Rewrite `import opacus`: its uses by attributes are rewritten in place."""
    for use in _uses(draft):
        full = draft.names.full(use)
        if isinstance(use, ast.Attribute) and full in ("opacus.PrivacyEngine", "opacus.privacy_engine.PrivacyEngine"):
            draft.replace(use, "hushgrad.PrivacyEngine")
    bound = {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    still = [use for use in _uses(draft) if isinstance(use, ast.Name) and use.id in bound and _is_opacus(draft, use)]
    if len(node.names) > 1 or node.names[0].asname is not None or still:
        draft.note(
            node,
            "this import of opacus is still needed for what is named below, or is one of several",
            "import hushgrad, and take the import of opacus away once nothing uses it",
            by_hand=True,
        )
        start = draft.source.span(node)[0]
        joint = f"import hushgrad{draft.source.newline}{draft.source.indent(node)}"
        draft.changes.append(Change(start, start, joint))
        return
    draft.changes.append(Change(*draft.source.span(node), "import hushgrad"))
    draft.handled.add(node)


def _is_opacus(draft: Draft, name: ast.Name) -> bool:
    """Return whether a name stands for Opacus itself or a part of it."""
    return (draft.names.full(name) or "").partition(".")[0] == "opacus"
