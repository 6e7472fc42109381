"""The most records in memory: from BatchMemoryManager to make_private, where it means the same there."""

from __future__ import annotations

import ast

from hushgrad.migration.script.draft import Draft
from hushgrad.migration.script.names import is_call_of

MAKERS = ("make_private", "make_private_with_epsilon")

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def physical_batch(draft: Draft, call: ast.Call) -> str:
    """Return the argument that takes the place of BatchMemoryManager; "" where there is none, or it cannot be moved."""
    makers = draft.calls(lambda node: any(is_call_of(node, name) for name in MAKERS))
    managers = draft.calls(lambda node: draft.names.of_opacus(node.func) == "BatchMemoryManager")
    sizes = {
        draft.source.of(keyword.value): keyword.value
        for manager in managers
        for keyword in manager.keywords
        if keyword.arg == "max_physical_batch_size"
    }
    if not sizes:
        return ""
    text, value = next(iter(sizes.items()))
    if len(makers) == 1 and len(sizes) == 1 and _is_known_at(draft, value, managers[0], call):
        return f"max_physical_batch_size={text}"
    draft.note(
        call,
        f"the most records in memory ({', '.join(sizes)}) cannot be moved here: it may stand for something else",
        f"pass max_physical_batch_size={text} to make_private",
        by_hand=True,
    )
    return ""


def _is_known_at(draft: Draft, value: ast.expr, used: ast.AST, place: ast.AST) -> bool:
    """Return whether an expression means the same at a place: constants, and names that are bound once."""
    if any(isinstance(node, ast.Call) for node in ast.walk(value)):
        return False
    names = {node.id for node in ast.walk(value) if isinstance(node, ast.Name)}
    here, there = draft.source.scope(used), draft.source.scope(place)
    return all(
        _is_bound_once(draft, name, there, place)
        and (here is there or not _binds(draft, here, name) or _is_handed_on(draft, here, name, there))
        for name in names
    )


def _bindings(draft: Draft, name: str) -> list[ast.AST]:
    found: list[ast.AST] = []
    for node in draft.nodes():
        is_name = isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Load)
        if is_name or (isinstance(node, ast.arg) and node.arg == name):
            found.append(node)
    return found


def _binds(draft: Draft, scope: ast.AST, name: str) -> bool:
    return any(draft.source.scope(node) is scope for node in _bindings(draft, name))


def _is_bound_once(draft: Draft, name: str, scope: ast.AST, place: ast.AST) -> bool:
    """Return whether a name is bound once in a scope, before `place`, or else once in the module."""
    own = [node for node in _bindings(draft, name) if draft.source.scope(node) is scope]
    if own:
        return len(own) == 1 and getattr(own[0], "lineno", 0) < getattr(place, "lineno", 0)
    return sum(draft.source.scope(node) is draft.source.tree for node in _bindings(draft, name)) == 1


def _is_handed_on(draft: Draft, function: ast.AST, name: str, scope: ast.AST) -> bool:
    """Return whether a function gets a value from `scope` under the same name, in every call of it in the file."""
    if (
        not isinstance(function, _Function)
        or len([a for a in _bindings(draft, name) if draft.source.scope(a) is function]) > 1
    ):
        return False
    parameters = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    if name not in parameters:
        return False
    calls = draft.calls(lambda call: isinstance(call.func, ast.Name) and call.func.id == function.name)
    return bool(calls) and all(
        draft.source.scope(call) is scope and _argument(call, name, parameters.index(name)) == name for call in calls
    )


def _argument(call: ast.Call, name: str, index: int) -> str | None:
    """Return the name that a call gives to a parameter; None for anything else."""
    if any(isinstance(given, ast.Starred) for given in call.args):
        return None
    named = [keyword.value for keyword in call.keywords if keyword.arg == name]
    value = call.args[index] if index < len(call.args) else named[0] if named else None
    return value.id if isinstance(value, ast.Name) else None
