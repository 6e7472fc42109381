"""Which of Opacus' tensors each tensor of a model written with torch's own layers is made of.

The same answer serves the weights and the state of the optimizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

_CELL = re.compile(r"l(\d+)(_reverse)?\.(ih|hh)\.(weight|bias)")
_OWN_ATTENTION = ("qlinear.weight", "klinear.weight", "vlinear.weight")


def sources(model: nn.Module, stored: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return for each name of `model` the stored names that it is made of, joined along axis 0 where they are several.

    Opacus' layers store some tensors twice, under their own names and under torch's; each is taken once, and the rest
    keeps its name. The order is that in which the tensors are stored.
    """
    names = list(stored)
    pieces: dict[str, tuple[str, ...]] = {}  # what Opacus' own names become
    doubles: set[str] = set()  # torch's names of what stands there under Opacus' own names, too
    for prefix, part in model.named_modules():
        at = f"{prefix}." if prefix else ""
        if isinstance(part, nn.MultiheadAttention) and f"{at}{_OWN_ATTENTION[0]}" in names:
            made = _attention(at, part)
            pieces |= made
            doubles |= set(made)
        elif isinstance(part, nn.RNNBase):
            cells = _cells(at, names)
            doubles |= set(cells)
            pieces |= cells
    owner = {name: target for target, parts in pieces.items() for name in parts}
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        if name in owner:
            target = owner[name]
            parts = tuple(part for part in pieces[target] if part in names)
            found.setdefault(target, parts)
        elif name in doubles:
            found.setdefault(name, tuple(part for part in pieces[name] if part in names))
        else:
            found.setdefault(name, (name,))
    return found


def _attention(at: str, part: nn.MultiheadAttention) -> dict[str, tuple[str, ...]]:
    whole = part.in_proj_weight is not None
    weights = (
        {"in_proj_weight": ("qlinear.weight", "klinear.weight", "vlinear.weight")}
        if whole
        else {f"{name}_proj_weight": (f"{name}linear.weight",) for name in "qkv"}
    )
    made = {
        **weights,
        "in_proj_bias": ("qlinear.bias", "klinear.bias", "vlinear.bias"),
        "bias_k": ("seq_bias_k.bias",),
        "bias_v": ("seq_bias_v.bias",),
    }
    return {f"{at}{name}": tuple(f"{at}{part}" for part in parts) for name, parts in made.items()}


def _cells(at: str, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    made: dict[str, tuple[str, ...]] = {}
    for name in names:
        match = _CELL.fullmatch(name.removeprefix(at)) if name.startswith(at) else None
        if match is not None:
            layer, reverse, gate, kind = match.groups()
            made[f"{at}{kind}_{gate}_l{layer}{reverse or ''}"] = (name,)
    return made
