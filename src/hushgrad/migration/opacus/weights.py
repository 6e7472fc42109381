"""The weights of a checkpoint under the names of a model that is written with torch's own layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hushgrad.errors import CheckpointError, UnsupportedModelError
from hushgrad.migration.opacus.attention import OpacusAttention
from hushgrad.migration.opacus.file import Stored
from hushgrad.migration.opacus.renaming import sources

_MOST_NAMES = 5


def weights_for(stored: Stored, model: nn.Module, *, attention_as_torch: bool) -> dict[str, Tensor]:
    """Return the weights (see `OpacusCheckpoint.weights_for`)."""
    made_of = sources(model, stored.weights)
    _require_same_function(stored, model, attention_as_torch)
    expected = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    _require_same_names(set(expected), set(made_of))
    found = {}
    for name, parts in made_of.items():
        value = stored.weights[parts[0]] if len(parts) == 1 else torch.cat([stored.weights[part] for part in parts])
        if value.shape != expected[name].shape and value.numel() == expected[name].numel() and "bias_" in name:
            value = value.reshape(expected[name].shape)  # a bias of the sequence: [d] there, [1, 1, d] in torch
        if value.shape != expected[name].shape:
            raise CheckpointError(
                f"it is {tuple(value.shape)} in the checkpoint and {tuple(expected[name].shape)} in the model",
                where=name,
                cure="Build the model as it was built for Opacus, with torch's own layers",
            )
        found[name] = value
    return found


def _require_same_names(expected: set[str], given: set[str]) -> None:
    missing, unknown = sorted(expected - given), sorted(given - expected)
    if not missing and not unknown:
        return
    parts = [
        f"{len(names)} {what} ({', '.join(names[:_MOST_NAMES])}{', ...' if len(names) > _MOST_NAMES else ''})"
        for names, what in (
            (missing, "of the model's tensors are not in it"),
            (unknown, "of its tensors have no place"),
        )
        if names
    ]
    raise CheckpointError(
        f"its model is another one: {'; '.join(parts)}",
        where="the checkpoint",
        cure="Build the model that was trained. What ModuleValidator.fix exchanged (BatchNorm for GroupNorm) must be "
        "so in it, too; nn.LSTM, nn.GRU, nn.RNN and nn.MultiheadAttention stand for Opacus' layers",
    )


def _require_same_function(stored: Stored, model: nn.Module, attention_as_torch: bool) -> None:
    """Refuse attention that computed something else in Opacus, unless that is asked for."""
    differing = [
        name or type(part).__name__
        for name, part in model.named_modules()
        if isinstance(part, nn.MultiheadAttention)
        and not isinstance(part, OpacusAttention)
        and part.batch_first
        and f"{name}.qlinear.weight".removeprefix(".") in stored.weights
    ]
    if not differing or attention_as_torch:
        return
    older = (
        " Opacus 1.4 had no batch_first: its ModuleValidator.fix made layers that attend from one record to the "
        "others, for which no epsilon of Opacus holds."
        if stored.is_of_1_4_or_1_5
        else ""
    )
    raise UnsupportedModelError(
        "Opacus' DPMultiheadAttention(batch_first=True) joins the outputs of its heads in the wrong order (heads and "
        f"positions change places), so torch's layer computes something else with the same weights.{older}",
        where=", ".join(differing),
        cure="Call hushgrad.migration.opacus.reproduce_attention(model) first, which computes what Opacus computed, or "
        "pass attention_as_torch=True and train on: the outputs are others at first",
    )
