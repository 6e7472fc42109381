"""The state of a checkpoint's optimizer, in the order that the parameters have in a model of torch's own layers.

State is kept by a parameter's number, so that another order gives one parameter the moments of another, in silence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hushgrad.errors import CheckpointError
from hushgrad.migration.opacus.file import Stored
from hushgrad.migration.opacus.renaming import sources

_FRESH = "Make a new optimizer, which costs no privacy: its moments begin anew"


def optimizer_state(stored: Stored, model: nn.Module) -> dict[str, Any]:
    """Return the state (see `OpacusCheckpoint.optimizer_for`)."""
    if stored.optimizer is None:
        raise _refused("it holds no optimizer: save_checkpoint was not given one")
    groups, states = stored.optimizer.get("param_groups"), stored.optimizer.get("state")
    if not isinstance(groups, list) or not isinstance(states, dict):
        raise _refused("its optimizer's state is none of a torch.optim.Optimizer")
    trained = dict(model.named_parameters())
    made_of = {name: parts for name, parts in sources(model, stored.weights).items() if name in trained}
    if set(made_of) != set(trained):
        raise _refused("its model is another one")
    names = [name for name in stored.weights if any(name in parts for parts in made_of.values())]
    numbers = [number for group in groups for number in group["params"]]
    if len(groups) != 1 or numbers != list(range(len(names))):
        if (
            [*made_of] == [*trained]
            and len(numbers) == len(trained)
            and all(len(part) == 1 for part in made_of.values())
        ):
            return stored.optimizer  # the parameters are the same ones in the same order
        raise _refused("its optimizer has several groups or not all parameters, and which is which cannot be told")
    place = {name: number for number, name in enumerate(names)}
    moved = {}
    for number, name in enumerate(trained):
        parts = [states[place[part]] for part in made_of[name] if place[part] in states]
        if parts and len(parts) == len(made_of[name]):
            shapes = [stored.weights[part].shape for part in made_of[name]]
            moved[number] = _joined(name, parts, shapes)
        elif parts:
            raise _refused(f"of {name} only a part has a state")
    return {"state": moved, "param_groups": [{**groups[0], "params": list(range(len(trained)))}]}


def _joined(name: str, parts: list[dict[str, Any]], shapes: list[torch.Size]) -> dict[str, Any]:
    """Return one state of the states of a parameter's pieces; a single piece must have values of its own shape."""
    for part, shape in zip(parts, shapes, strict=True):
        wrong = [
            key for key, value in part.items() if isinstance(value, Tensor) and value.dim() and value.shape != shape
        ]
        if wrong:
            raise _refused(f"{wrong[0]} of {name} has another shape than the parameter, so its order is unknown")
    if len(parts) == 1:
        return dict(parts[0])
    joined = {}
    for key, first in parts[0].items():
        values: list[Any] = [part.get(key) for part in parts]
        if isinstance(first, Tensor) and first.dim():
            joined[key] = torch.cat(values)
        elif all(type(value) is type(first) and bool(value == first) for value in values):
            joined[key] = first
        else:
            raise _refused(f"{key} differs between the pieces of {name}")
    return joined


def _refused(what: str) -> CheckpointError:
    return CheckpointError(what, where="the checkpoint", cure=_FRESH)
