"""`with BatchMemoryManager(...)`: the loader of make_private cuts its batches itself, so the block goes."""

from __future__ import annotations

import ast

from hushgrad.migration.script.draft import Draft
from hushgrad.migration.script.source import Change


def rewrite(draft: Draft) -> None:
    """Take the blocks of BatchMemoryManager away; their bodies stay."""
    for node in draft.nodes(ast.With):
        assert isinstance(node, ast.With)
        managers = [item for item in node.items if _is_manager(draft, item)]
        if managers:
            _block(draft, node, managers[0])


def _is_manager(draft: Draft, item: ast.withitem) -> bool:
    call = item.context_expr
    return isinstance(call, ast.Call) and draft.names.of_opacus(call.func) == "BatchMemoryManager"


def _block(draft: Draft, node: ast.With, item: ast.withitem) -> None:
    source, call = draft.source, item.context_expr
    assert isinstance(call, ast.Call)
    loader = next((keyword.value for keyword in call.keywords if keyword.arg == "data_loader"), None)
    first = node.body[0]
    if len(node.items) > 1 or loader is None or first.lineno == node.lineno:
        draft.note(
            node,
            "BatchMemoryManager is not needed: make_private(max_physical_batch_size=...) cuts batches",
            "use the loader of make_private itself in this block",
            by_hand=True,
        )
        draft.handled.add(call)
        return
    indent = source.indent(node)
    name = None if item.optional_vars is None else source.of(item.optional_vars)
    start = source.span(node)[0]
    body = source.line_start(source.span(first)[0])
    draft.handled.add(call)
    if name is None or name == source.of(loader):
        draft.changes.append(Change(source.line_start(start), _after_header(draft, node), ""))
    else:
        header_end = _after_header(draft, node)
        draft.changes.append(Change(start, header_end, f"{name} = {source.of(loader)}{source.newline}"))
    inner = len(source.text[body : source.span(first)[0]])
    assert node.end_lineno is not None
    begins = source.text.count("\n", 0, _after_header(draft, node)) + 1
    draft.changes += source.dedented(begins, source.end_of_body(node.end_lineno, inner), inner - len(indent))
    draft.note(
        node,
        "the loader of make_private gives items of at most max_physical_batch_size records; optimizer.step() after "
        "each item updates once for each logical batch. Count steps with engine.session.last_step_updated",
    )


def _after_header(draft: Draft, node: ast.With) -> int:
    """Return where the line after the colon of a block begins; comments before its body belong to it."""
    item = node.items[-1]
    last = item.context_expr if item.optional_vars is None else item.optional_vars
    end = draft.source.span(last)[1]
    colon = draft.source.text.index(":", end)
    return draft.source.line_end(colon)
