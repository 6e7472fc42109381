"""Whether an optimizer's state goes back to the parameters that it came from: their names, in its groups' order.

An optimizer's own state knows parameters by their place alone, so that moments and learning rates of one parameter
would go to another one that stands in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hushgrad.errors import CheckpointError
from hushgrad.joined_optimizer import parts_of


def names_by_group(model: nn.Module, optimizer: Optimizer) -> list[list[str | None]]:
    """Return the model's names of the parameters of each group; None for what is none of the model's."""
    names: dict[int, str] = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names.get(id(parameter)) for parameter in group["params"]] for group in optimizer.param_groups]


def require_same_optimizer(names: Any, state: Mapping[str, Any], model: nn.Module | None, optimizer: Optimizer) -> None:
    """Refuse a state of other parameters, or of the same ones in another order.

    Args:
        names: `names_by_group` of when the state was written; None in files of before they were kept, of which shapes
            alone are compared.
        state: what `optimizer.state_dict()` returned.
        model: of the parameters; None where no names were kept.
        optimizer: that is to take the state.

    Raises `CheckpointError`.
    """
    stored = [len(group["params"]) for group in state["param_groups"]]
    given = [len(group["params"]) for group in optimizer.param_groups]
    if stored != given:
        raise _refusal(f"its optimizer has groups of {stored} parameters, and this one of {given}")
    now = names_by_group(model, optimizer) if model is not None else None
    if names is not None and now is not None and names != now:
        place = next(
            (place for place, (was, is_now) in enumerate(zip(names, now, strict=False)) if was != is_now), len(now)
        )
        raise _refusal(
            f"its optimizer has other parameters in group {place}, or the same ones in another order: their moments "
            f"and learning rates would go to others"
        )
    is_of_shape = names is None or _keeps_shapes(optimizer)
    for place, kept, parameter in _kept(state, optimizer):
        for name, value in kept.items():
            if is_of_shape and isinstance(value, Tensor) and not _fits(value, parameter):
                raise _refusal(
                    f"its optimizer's {name!r} of parameter {place} has the shape {list(value.shape)}, and the "
                    f"parameter in that place has {list(parameter.shape)}"
                )


def _kept(state: Mapping[str, Any], optimizer: Optimizer) -> list[tuple[Any, dict[str, Any], Tensor]]:
    """Return what is kept of each parameter, with its place."""
    values = state.get("state")
    places = [place for group in state["param_groups"] for place in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [
        (place, values[place], parameter)
        for place, parameter in zip(places, parameters, strict=True)
        if isinstance(values, dict) and isinstance(values.get(place), dict)
    ]


def _keeps_shapes(optimizer: Optimizer) -> bool:
    """Return whether each tensor of its state is known to be of its parameter's shape, or a part of that."""
    return all(
        type(part).__module__.startswith("torch.optim.") and not isinstance(part, torch.optim.LBFGS)
        for part in parts_of(optimizer)
    )


def _fits(value: Tensor, parameter: Tensor) -> bool:
    """Return whether a tensor of the state is a number, of the parameter's shape, or factored: without a dimension."""
    if value.numel() == 1 or value.ndim < parameter.ndim:
        return True
    return value.ndim == parameter.ndim and all(
        size in (1, whole) for size, whole in zip(value.shape, parameter.shape, strict=True)
    )


def _refusal(what: str) -> CheckpointError:
    return CheckpointError(
        what, where="the checkpoint", cure="Make the optimizer as it was made when the checkpoint was written"
    )
