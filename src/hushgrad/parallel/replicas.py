"""Whether the replicas of a model, and what trains them, are the same in all processes.

All processes get the same bits of each update, and begin with the same bits. Processors of unlike kinds may round what
the optimizer makes of them otherwise in the last place, which adds up and is no difference of what is trained: replicas
as near as that take over the first one's values. Others end training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from hushgrad.errors import DesyncError
from hushgrad.joined_optimizer import parts_of
from hushgrad.parallel.messages import exchanged, unreachable
from hushgrad.parallel.world import World
from hushgrad.torch_sharding import is_distributed

EVERY = 100
"""Replicas are compared as wholes before the first step, and each time so many steps were taken."""

SAMPLE = 4096
"""In every other step so many values of one parameter are, another one each time."""


def digest(tensors: Iterable[Tensor]) -> str:
    """Return a digest of the values of tensors, in their order; equal values on any device have the same one.

    Those that are split over the processes are left out: no two processes have the same part.
    """
    state = hashlib.sha256()
    for value in tensors:
        if is_distributed(value):
            continue
        flat = value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).cpu()
        state.update(flat.numpy().data)
    return state.hexdigest()


def due(parameters: Mapping[str, Tensor], steps: int) -> dict[str, Tensor]:
    """Return what is compared after so many steps, by name; parts of a parameter are as they lie in memory.

    Of parameters that are split over the processes nothing is: no two of them have the same part.
    """
    if is_whole(steps):
        return {name: parameter.detach() for name, parameter in parameters.items() if not is_distributed(parameter)}
    name = list(parameters)[steps % len(parameters)]  # another one in each step, so that most differences show soon
    return {} if is_distributed(parameters[name]) else {name: parameters[name].detach().reshape(-1)[:SAMPLE]}


def is_whole(steps: int) -> bool:
    """Return whether replicas are compared as wholes after so many steps."""
    return steps % EVERY == 0


def require_near(world: World, steps: int, own: Mapping[str, Tensor], *, takes_over: bool) -> None:
    """Refuse values that differ by more than rounding; all processes have to call it, and each gives its own.

    Args:
        world: several processes.
        steps: how many were taken, for the message.
        own: tensors by name, in the same order everywhere.
        takes_over: whether the values of the first process are written into them.

    Raises:
        DesyncError: naming a tensor and the ranks that differ.
        PeerFailedError: a process is gone.
    """
    firsts = {name: value.clone() for name, value in own.items()}
    try:
        for value in firsts.values():
            dist.broadcast(value, 0, group=world.data)
    except RuntimeError as error:
        raise unreachable(f"the replicas could not be compared ({type(error).__name__})") from error
    far = [name for name, value in firsts.items() if not _is_near(own[name], value)]
    everybody = [name for _, name in exchanged(world, "comparison of replicas", far[0] if far else None)]
    if any(everybody):
        ranks = [rank for rank, name in enumerate(everybody) if name]
        raise DesyncError(
            f"rank {', '.join(map(str, ranks))} came to the release of step {steps} with other values of "
            f"{everybody[ranks[0]]} than rank 0",
            cure="Load weights in all processes, or in none; write to them and to the optimizer alike in all",
        )
    if takes_over:
        for name, value in firsts.items():
            own[name].copy_(value)


def _is_near(own: Tensor, first: Tensor) -> bool:
    """Return whether two tensors differ by what unlike rounding makes of them in the steps between two comparisons."""
    rounding = min(10 * EVERY * torch.finfo(first.dtype).eps, 2.0**-8)
    distance = torch.linalg.vector_norm(own.double() - first.double())
    return bool(distance <= rounding * torch.linalg.vector_norm(first.double()))


def options_of(optimizer: Optimizer) -> list[dict[str, str]]:
    """Return the options of an optimizer's groups that it was made with: learning rates, momenta and the like."""
    return [
        {name: _text(group[name]) for name in sorted(part.defaults) if name in group}
        for part in parts_of(optimizer)
        for group in part.param_groups
    ]


def _text(value: object) -> str:
    return repr(value.tolist()) if isinstance(value, Tensor) else repr(value)


def state_digest(optimizer: Optimizer) -> str:
    """Return a digest of the tensors in an optimizer's state, in the order of its parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = [optimizer.state.get(parameter, {}) for parameter in parameters]
    return digest(state[name] for state in states for name in sorted(state) if isinstance(state[name], Tensor))
