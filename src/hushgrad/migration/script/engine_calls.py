"""Calls of Opacus' engine: its making, `make_private`, its epsilon and its checkpoints."""

from __future__ import annotations

import ast

from hushgrad.migration.script.draft import Draft
from hushgrad.migration.script.moving import MAKERS, physical_batch
from hushgrad.migration.script.names import is_call_of
from hushgrad.migration.script.source import Change

_KEPT = {
    *("module", "optimizer", "data_loader", "noise_multiplier", "max_grad_norm", "loss_reduction", "poisson_sampling"),
    *("target_epsilon", "target_delta", "epochs", "clipping"),
}
_DROPPED = {
    "criterion": "",
    "grad_sample_mode": "",
    "wrap_model": "",
    "strict": "",
    "batch_first": "batch_first is dropped: where the batch lies is followed through the model",
    "rand_on_empty": "rand_on_empty is dropped: an empty draw is a step of noise alone, and your loop sees one record "
    "of weight 0",
    "noise_generator": "noise_generator is dropped: noise comes from the system's secure source and no seed reaches it "
    "(for tests: PrivacyEngine(test_key=...), which says NOT PRIVATE)",
}
_OWN_BATCHES = (
    "poisson_sampling=False stays, and epsilon rises: Opacus charged these batches as if records had been drawn by "
    "Poisson sampling, which they were not; here each pass is charged in full, under zero-out neighbours"
)


def rewrite(draft: Draft) -> None:
    """Rewrite every call of an engine in the file."""
    for call in draft.calls(lambda node: draft.names.of_opacus(node.func) == "PrivacyEngine"):
        _engine(draft, call)
    for call in draft.calls(lambda node: any(is_call_of(node, name) for name in MAKERS)):
        _make_private(draft, call)
    for call in draft.calls(lambda node: is_call_of(node, "get_epsilon")):
        _epsilon(draft, call)
    for call in draft.calls(lambda node: is_call_of(node, "save_checkpoint") or is_call_of(node, "load_checkpoint")):
        _checkpoint(draft, call)
    _history(draft)
    _passed_on(draft)


def _engine(draft: Draft, call: ast.Call) -> None:
    dropped = []
    for keyword in call.keywords:
        if keyword.arg == "secure_mode":
            dropped.append(keyword)
            draft.note(call, "secure_mode is dropped: noise always comes from the system's secure source")
        elif keyword.arg == "accountant":
            name = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if name in ("prv", "gdp"):
                dropped.append(keyword)
                why = (
                    "is an approximation that can state too small an epsilon" if name == "gdp" else "is one of Opacus'"
                )
                draft.note(call, f"accountant={name!r} is dropped: it {why}; the default here has an error bound")
            elif name != "rdp":
                draft.note(
                    call,
                    "which accountant this is cannot be read here",
                    'leave accountant= out, or pass "saddle-point", "pld" or "rdp"',
                    by_hand=True,
                )
        else:
            draft.note(
                call,
                f"{keyword.arg or '**'} is no argument of hushgrad's PrivacyEngine (Opacus before 1.0 had others)",
                "make PrivacyEngine(), and pass what belongs to training to make_private",
                by_hand=True,
            )
    if call.args:
        draft.note(
            call,
            "this is how an engine was made before Opacus 1.0",
            "make PrivacyEngine(), and pass module, optimizer and data_loader to make_private",
            by_hand=True,
        )
    draft.drop_arguments(call, dropped)


def _make_private(draft: Draft, call: ast.Call) -> None:
    dropped = [keyword for keyword in call.keywords if keyword.arg in _DROPPED]
    criterion = next((keyword for keyword in dropped if keyword.arg == "criterion"), None)
    if not _four_values(draft, call, criterion) and criterion is not None:
        draft.note(
            call,
            "make_private takes no criterion and always returns three values",
            "take three values, and make the criterion with engine.per_example(criterion)",
            by_hand=True,
        )
    for keyword in call.keywords:
        _keyword(draft, call, keyword)
    draft.drop_arguments(call, dropped, physical_batch(draft, call))


def _keyword(draft: Draft, call: ast.Call, keyword: ast.keyword) -> None:
    name = keyword.arg
    if name in _DROPPED:
        if _DROPPED[name]:
            draft.note(keyword, _DROPPED[name])
    elif name is None or name not in _KEPT:
        draft.note(
            keyword,
            f"{name or '**'} is no argument of hushgrad's make_private",
            "leave it out, or see the docstring of make_private for what does the same",
            by_hand=True,
        )
    elif name == "poisson_sampling":
        if not (isinstance(keyword.value, ast.Constant) and keyword.value.value is True):
            draft.note(keyword, _OWN_BATCHES)
    elif name == "clipping" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value == "flat"):
        draft.note(
            keyword,
            "clipping other than 'flat' has other names and one max_grad_norm here, of all groups together",
            "leave clipping= out for flat clipping; per_layer is GroupwiseClipping(by='parameter', norms=...), and "
            "adaptive is QuantileClipping, whose count is charged (docs/clipping.md)",
            by_hand=True,
        )
    elif name == "epochs":
        draft.note(keyword, "epochs is a limit here: a step beyond them raises BudgetExhaustedError")


def _four_values(draft: Draft, call: ast.Call, criterion: ast.keyword | None) -> bool:
    """Make three values of the four of ghost mode, and the criterion from the engine."""
    parent = draft.source.parents[call]
    target = parent.targets[0] if isinstance(parent, ast.Assign) and len(parent.targets) == 1 else None
    if not (isinstance(target, ast.Tuple) and isinstance(parent, ast.Assign) and len(target.elts) == 4):
        return False
    if criterion is None or not draft.source.stands_alone(parent) or not isinstance(call.func, ast.Attribute):
        return False
    third, fourth = target.elts[2], target.elts[3]
    draft.changes.append(Change(draft.source.span(third)[0], draft.source.span(fourth)[0], ""))
    engine, name = draft.source.of(call.func.value), draft.source.of(third)
    draft.insert_after(parent, f"{name} = {engine}.per_example({draft.source.of(criterion.value)})")
    return True


def _epsilon(draft: Draft, call: ast.Call) -> None:
    assert isinstance(call.func, ast.Attribute)
    owner = call.func.value
    if isinstance(owner, ast.Attribute) and owner.attr == "accountant":
        draft.changes.append(Change(draft.source.span(owner.value)[1], draft.source.span(owner)[1], ""))
        draft.handled.add(owner)
    further = [keyword for keyword in call.keywords if keyword.arg != "delta"]
    if further:
        named = ", ".join(keyword.arg or "**" for keyword in further)
        draft.note(call, f"{named} of get_epsilon is dropped: the accountant chooses its own precision, and bounds it")
        draft.drop_arguments(call, further)


def _checkpoint(draft: Draft, call: ast.Call) -> None:
    given = {keyword.arg for keyword in call.keywords}
    if not {"path", "module"} <= given:
        return  # it is none of Opacus' engine
    assert isinstance(call.func, ast.Attribute)
    draft.drop_arguments(call, [keyword for keyword in call.keywords if keyword.arg in ("module", "optimizer")])
    if call.func.attr == "load_checkpoint":
        draft.note(
            call,
            "a file that Opacus wrote is not read by this",
            "read it once with hushgrad.migration.opacus.read_checkpoint (docs/coming-from-opacus.md)",
            by_hand=True,
        )
    else:
        draft.note(
            call,
            "a checkpoint holds model, optimizer and a receipt of the ledger; to go on from it the ledger must be a "
            "file: PrivacyEngine(ledger=path)",
        )
    others = sorted(str(name) for name in given - {"path", "module", "optimizer"})
    if others:
        draft.note(
            call,
            f"{', '.join(others)} is no argument of this method here",
            "pass schedulers=[...] and extra=... in its place",
            by_hand=True,
        )


def _history(draft: Draft) -> None:
    for node in draft.nodes(ast.Attribute):
        assert isinstance(node, ast.Attribute)
        inner = node.value
        if node.attr == "history" and isinstance(inner, ast.Attribute) and inner.attr == "accountant":
            start, end = draft.source.span(inner.value)[1], draft.source.span(node)[1]
            draft.changes.append(Change(start, end, ".session.charged"))
            draft.handled.add(inner)
            draft.note(node, "the history is a list of (event, count) here, with event.noise_multiplier")


def _passed_on(draft: Draft) -> None:
    """Tell where the engine's class, or a call that makes training private, is handed on: `partial`, an alias, a base.

    What it is called with is written elsewhere, in a form that no rule reads.
    """
    types = {id(part) for node in draft.nodes() for kind in _annotations(node) for part in ast.walk(kind)}
    for node in draft.nodes():
        if not isinstance(node, ast.Name | ast.Attribute) or id(node) in types:
            continue
        is_class = draft.names.of_opacus(node) == "PrivacyEngine"
        name = node.attr if isinstance(node, ast.Attribute) else node.id
        if not is_class and not (isinstance(node, ast.Attribute) and name in MAKERS):
            continue
        parent = draft.source.parents[node]
        if isinstance(parent, ast.Attribute) or (isinstance(parent, ast.Call) and _is_plain(parent, node)):
            continue
        draft.note(
            node,
            f"{'PrivacyEngine' if is_class else name} is handed on without a call, so what it is called with is "
            f"not rewritten",
            "call it by its own name, or take arguments that are Opacus' alone (secure_mode, accountant='prv' or "
            "'gdp', grad_sample_mode, noise_generator) out by hand",
            by_hand=True,
        )


def _annotations(node: ast.AST) -> list[ast.AST]:
    found = [getattr(node, "annotation", None), getattr(node, "returns", None)]
    return [kind for kind in found if isinstance(kind, ast.AST)]


def _is_plain(call: ast.Call, node: ast.AST) -> bool:
    """Return whether a node is what is called, or only asked about."""
    return call.func is node or (isinstance(call.func, ast.Name) and call.func.id in ("isinstance", "issubclass"))
