"""What is of Opacus and no rule has rewritten: each is told with its place and its cure."""

from __future__ import annotations

import ast

from hushgrad.migration.script.draft import Draft

_SCHEDULE = "write the schedule into the mechanism: hushgrad.DPSGD with factors per step (docs/accounting.md)"
_ACCOUNTANT = "use hushgrad.accounting.epsilon on a list of (event, count)"
_NAMES = {
    "get_noise_multiplier": "use hushgrad.accounting.calibrate_noise_multiplier, or make_private_with_epsilon",
    "GradSampleModule": "give the model itself to make_private; per-example gradients are kept nowhere",
    "GradSampleModuleFastGradientClipping": "give the model itself to make_private",
    "DPOptimizer": "give your own optimizer to make_private: it stays the one that steps",
    "DPDataLoader": "give an ordinary DataLoader to make_private, which returns the one that draws",
    "DPLossFastGradientClipping": "make the criterion with engine.per_example(criterion)",
    "UniformWithReplacementSampler": "give an ordinary DataLoader to make_private: it draws Poisson samples itself",
    "wrap_data_loader": "pass max_physical_batch_size= to make_private",
    "BatchMemoryManager": "pass max_physical_batch_size= to make_private, and use its loader",
    "ModuleValidator": "use hushgrad.doctor(model) to look, hushgrad.make_private_ready(model) to change it in place",
    "DifferentiallyPrivateDistributedDataParallel": "torch's DistributedDataParallel, or the plain model in every "
    "process: docs/several-processes.md",
    "RDPAccountant": _ACCOUNTANT,
    "GaussianAccountant": _ACCOUNTANT,
    "PRVAccountant": _ACCOUNTANT,
    "ExponentialNoise": _SCHEDULE,
    "StepNoise": _SCHEDULE,
    "LambdaNoise": _SCHEDULE,
}
_ATTRIBUTES = {
    "grad_sample": "per-example gradients are kept nowhere; session.backward(losses) takes one loss for each",
    "summed_grad": "clipped sums are not handed out before they are noised",
    "signal_skip_step": "take it away: an item that does not end its logical batch updates nothing",
    "virtual_step": "pass max_physical_batch_size= to make_private, and call optimizer.step() after each item",
    "original_optimizer": "the optimizer is your own: take .original_optimizer away",
    "remove_hooks": "call engine.session.close() to have an ordinary model",
    "to_standard_module": "take it away: the model is your own",
    "get_privacy_spent": "use engine.get_epsilon(delta), which returns epsilon alone",
    "accountant": "use engine.get_epsilon(delta), engine.guarantee(delta) or engine.session.charged",
    "attach": "this is Opacus before 1.0 or fastDP: use make_private, which returns model, optimizer and loader",
}
_UNKNOWN = "see docs/coming-from-opacus.md; if nothing there does the same, keep Opacus for this"


def tell(draft: Draft) -> None:
    """Note everything of Opacus that is left."""
    told: set[int] = set()
    for node in draft.nodes():
        if draft.is_handled(node) or id(node) in told:
            continue
        name = draft.names.of_opacus(node) if isinstance(node, ast.Name | ast.Attribute) else None
        if name is not None and name != "PrivacyEngine" and not _is_owner(draft, node):
            draft.note(node, f"{name} of Opacus is left", _NAMES.get(name, _UNKNOWN), by_hand=True)
            told |= {id(part) for part in ast.walk(node)}
        elif isinstance(node, ast.Attribute) and node.attr in _ATTRIBUTES and not _is_owner(draft, node):
            draft.note(node, f".{node.attr} is left", _ATTRIBUTES[node.attr], by_hand=True)
            told |= {id(part) for part in ast.walk(node)}
        elif isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            if (node.module or "").split(".")[0] == "opacus":
                draft.note(
                    node, "what this imports cannot be read", "import each name of opacus by itself", by_hand=True
                )
        elif isinstance(node, ast.Import | ast.ImportFrom) and _is_fast_dp(node):
            draft.note(
                node,
                "fastDP is not rewritten",
                "from hushgrad import PrivacyEngine; make_private(module=, optimizer=, data_loader=, noise_multiplier= "
                "or target_epsilon=, max_grad_norm=) takes the place of PrivacyEngine(model, ...) and "
                "attach(optimizer), with one clip norm in the place of clipping_fn and clipping_style",
                by_hand=True,
            )
    for call in draft.calls(lambda node: draft.names.full(node.func) == "torch.nn.utils.rnn.pad_sequence"):
        draft.note(
            call,
            "pad_sequence pads to the longest record of the batch: a model that lets padding into its outputs (a last "
            "state, a mean) is refused (DP301), as one record then changes what the others give",
            "Mask the padding, or pad every batch to one constant length",
        )
    for name in sorted(draft.names.ambiguous):
        draft.note(draft.source.tree, f"{name} is imported from opacus and also assigned", "rename one", by_hand=True)


def _is_owner(draft: Draft, node: ast.AST) -> bool:
    """Return whether a node is a part of a longer name of Opacus, which is told as a whole."""
    parent = draft.source.parents.get(node)
    if not isinstance(parent, ast.Attribute):
        return False
    return draft.names.of_opacus(parent) is not None or (parent.attr in _ATTRIBUTES and draft.names.full(node) is None)


def _is_fast_dp(node: ast.Import | ast.ImportFrom) -> bool:
    modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    return any(module.split(".")[0] == "fastDP" for module in modules)
