"""Opacus' layers, its validator and its wrapper: torch's own layers, and the model itself."""

from __future__ import annotations

import ast

from hushgrad.migration.script.draft import Draft
from hushgrad.migration.script.source import Change

LAYERS = {
    "DPLSTM": "LSTM",
    "DPGRU": "GRU",
    "DPRNN": "RNN",
    "DPMultiheadAttention": "MultiheadAttention",
}
"""What of `opacus.layers` is torch's own here."""


def rewrite(draft: Draft) -> None:
    """Rewrite every use of a layer, of the validator and of the wrapped model."""
    for node in draft.nodes():
        name = draft.names.of_opacus(node)
        if name in LAYERS and isinstance(node, ast.Name | ast.Attribute):
            _layer(draft, node, name)
    for call in draft.calls(lambda node: draft.names.of_opacus(getattr(node.func, "value", node)) == "ModuleValidator"):
        _validator(draft, call)
    for node in draft.nodes(ast.Attribute):
        if isinstance(node, ast.Attribute) and node.attr == "_module":
            draft.changes.append(Change(draft.source.span(node.value)[1], draft.source.span(node)[1], ""))


def _layer(draft: Draft, node: ast.Name | ast.Attribute, name: str) -> None:
    owner = draft.names.local("torch.nn")
    if owner is None:
        owner = "nn"
        draft.need(name, "torch.nn")
    draft.replace(node, f"{owner}.{LAYERS[name]}")
    call = draft.source.parents.get(node)
    given = {keyword.arg for keyword in call.keywords} if isinstance(call, ast.Call) and call.func is node else set()
    if name == "DPMultiheadAttention":
        draft.note(
            node,
            "nn.MultiheadAttention computes what its paper says; Opacus' layer with batch_first=True joins its heads "
            "in another order, so a model that was trained with it is another function",
            "for weights of such a model: hushgrad.migration.opacus.reproduce_attention(model)",
        )
    elif "dropout" in given:
        draft.note(
            node,
            f"dropout: torch's layer drops between its layers, {name} also inside of each and after the last one, so "
            f"it regularises less",
        )


def _validator(draft: Draft, call: ast.Call) -> None:
    assert isinstance(call.func, ast.Attribute)
    method, statement = call.func.attr, draft.source.statement(call)
    if not call.args or method not in ("fix", "fix_and_validate", "validate", "is_valid"):
        return  # told as something that is left
    whole = draft.names.local("opacus")
    prefix = "" if whole is None else "hushgrad."
    draft.handled.add(call.func)
    model = draft.source.of(call.args[0])
    start, end = draft.source.span(call)
    inner = draft.source.span(call.args[0])
    if method.startswith("fix"):
        is_plain = isinstance(statement, ast.Assign) and statement.value is call and len(statement.targets) == 1
        if not is_plain or not draft.source.stands_alone(statement):
            draft.note(
                call,
                "ModuleValidator.fix is not needed: only BatchNorm and the like must go, in place",
                "write hushgrad.make_private_ready(model) on a line of its own, before the optimizer is made",
                by_hand=True,
            )
            return
        assert isinstance(statement, ast.Assign)
        ready = f"{prefix}{draft.need('ModuleValidator', 'make_private_ready')}"
        target = draft.source.of(statement.targets[0])
        if target == model:
            draft.changes.append(Change(*draft.source.span(statement), f"{ready}({target})"))
        else:
            draft.changes += [Change(start, inner[0], ""), Change(inner[1], end, "")]
            draft.insert_after(statement, f"{ready}({target})")
        draft.note(call, "recurrent layers and attention stay torch's own; BatchNorm becomes GroupNorm, as Opacus did")
    elif method == "validate" and isinstance(statement, ast.Expr):
        draft.remove_statement(statement)
    else:
        looked = f"{prefix}{draft.need('ModuleValidator', 'doctor')}"
        text = f"{looked}({model}).is_ready" if method == "is_valid" else f"list({looked}({model}).problems)"
        draft.changes.append(Change(start, end, text))
