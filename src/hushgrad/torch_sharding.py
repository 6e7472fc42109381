"""Everything hushgrad knows of torch's sharded models: `fully_shard` and the tensors of `torch.distributed.tensor`.

The second file to open when a new torch breaks something, beside `torch_internals`. A model that `fully_shard` made has
two sets of parameters: at rest those that hold this process's shards, which the optimizer has; and in a forward or a
backward whole ones in their place, filled by messages between the processes. Nothing here is imported before a model
needs it: torch.distributed.tensor takes a second.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hushgrad.torch_internals import parameters_of

STATE_CLASS = "torch.distributed.fsdp._fully_shard._fsdp_state.FSDPState"
"""What keeps what `fully_shard` knows of a module: it runs the program, and is no state of a model."""


# Tensors -------------------------------------------------------------------------------------------------------------


def is_distributed(tensor: Tensor) -> bool:
    """Return whether a tensor lies on several processes, and an operation on it may be a message between them."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that lies in this process, in its own memory: of most tensors all of it."""
    return tensor._local_tensor if is_distributed(tensor) else tensor  # type: ignore[attr-defined]


def like(parameter: Tensor, local: Tensor) -> Tensor:
    """Return a tensor that lies as a parameter does, of which this process has `local`; any other as it is."""
    if not is_distributed(parameter):
        return local
    made: Any = sys.modules["torch.distributed.tensor"].DTensor.from_local(
        local,
        parameter.device_mesh,  # type: ignore[attr-defined]
        parameter.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return made  # type: ignore[no-any-return]


def device_of(parameter: Tensor) -> torch.device:
    """Return the device that a parameter on several processes is computed with, wherever it rests."""
    return torch.device(parameter.device_mesh.device_type)  # type: ignore[attr-defined]


def placed(tensor: Tensor) -> str:
    """Return, in words that are the same in all of them, how a tensor lies on the processes."""
    if not is_distributed(tensor):
        return "whole"
    return f"{tensor.placements} on {tensor.device_mesh.mesh.tolist()}"  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, in every process: all of them call it."""
    return tensor.full_tensor() if is_distributed(tensor) else tensor  # type: ignore[attr-defined]


# Modules -------------------------------------------------------------------------------------------------------------


def fully_sharded(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the modules that `fully_shard` was called on, each before those inside it."""
    module = sys.modules.get("torch.distributed.fsdp")
    return () if module is None else tuple(part for part in model.modules() if isinstance(part, module.FSDPModule))


def groups_of(parts: Iterable[nn.Module]) -> list[Any]:
    """Return torch's groups of parameters of such modules, each once."""
    return [group for state in _states(parts) for group in state._fsdp_param_groups]


def options_set(group: Any) -> Iterator[str]:
    """Yield what was set on a group of parameters that changes what its whole parameters or its gradients are."""
    if group._use_post_forward_mesh:
        yield "reshard_after_forward is a number, so that parameters lie on a part of the processes after a forward"
    if group._all_reduce_hook is not None:
        yield "a hook would run on the gradients of replicas, of which there are none"
    own = "torch.distributed.fsdp."
    if not all(type(part).__module__.startswith(own) for part in (group._all_gather_comm, group._reduce_scatter_comm)):
        yield "somebody else's code sends its parameters or gradients"
    if not group.unshard_in_backward:
        yield "unshard_in_backward is off, so that a backward would run on memory that is free"
    if any(parameter.is_dtensor for parameter in group.fsdp_params):
        yield "its parameters were split by parallelize_module or distribute_module before"


def companions(part: nn.Module) -> Sequence[nn.Module]:
    """Return the modules whose parameters are swapped in together with those of a module, itself among them."""
    [state] = _states([part])
    return state._modules  # type: ignore[no-any-return]


def _states(parts: Iterable[nn.Module]) -> list[Any]:
    found = [part._get_fsdp_state() for part in parts]  # type: ignore[operator]
    return list({id(state): state for state in found}.values())


def at_rest(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters by name, tied ones by each: those of at rest, whichever are in place now."""
    resting = {
        id(parameter._unsharded_param): parameter.sharded_param
        for group in groups_of(fully_sharded(model))
        for parameter in group.fsdp_params
        if hasattr(parameter, "_unsharded_param")
    }
    named = model.named_parameters(remove_duplicate=False)
    return [(name, resting.get(id(parameter), parameter)) for name, parameter in named]


def places_of_swapped(model: nn.Module) -> set[int]:
    """Return the ids of the dictionaries in which FSDP puts parameters in each other's place."""
    return {
        id(parameters_of(module))
        for group in groups_of(fully_sharded(model))
        for parameter in group.fsdp_params
        for module in (parameter._module_info.module, *parameter._module_info.shared_modules)
    }


def settle(parts: Iterable[nn.Module]) -> None:
    """Put the parameters of at rest in place. A forward without a backward (an evaluation) leaves some others there.

    Without it an evaluation between a backward and the step would have the next forward run on the weights of before.
    No message is sent.
    """
    for part in parts:
        part.reshard()  # type: ignore[operator]


def recover(parts: Sequence[nn.Module]) -> None:
    """The same after a forward or a backward that was left by an exception."""
    for part in parts:
        [state] = _states([part])
        if state._is_root is not False:
            part.reset_iter_state()  # type: ignore[operator]
    settle(parts)


@contextmanager
def whole_parameters(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, all parameters are whole, and forwards and backwards send no messages. All processes enter it.

    How many forwards and backwards run inside may differ from process to process.
    """
    if not parts:
        yield
        return
    try:
        for part in parts:
            part.unshard()  # type: ignore[operator]
        with without_messages(parts):
            yield
    finally:
        settle(parts)


@contextmanager
def without_messages(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, a gradient that comes to a sharded module's outputs sends no message.

    FSDP takes each of its modules for one in whose backward a block is computed again, which has its parameters.
    """
    if not parts:
        yield
        return
    states = _states(parts)
    kept = [
        (holder, name, getattr(holder, name))
        for state in states
        for holder, name in (
            (state, "_training_state"),
            (state, "_states_to_backward_prefetch"),
            (state._state_ctx, "post_backward_final_callback_queued"),
            *((group, "_training_state") for group in state._fsdp_param_groups),
        )
    ]
    try:
        for holder, name, value in kept:
            if name == "_training_state":
                setattr(holder, name, type(value).PRE_BACKWARD)
            else:
                setattr(holder, name, [] if name == "_states_to_backward_prefetch" else True)
        yield
    finally:
        for holder, name, value in reversed(kept):
            setattr(holder, name, value)


def runs_hooks_of_fsdp(function: type) -> bool:
    """Return whether a custom autograd function is one by which FSDP is told that a backward has left a module."""
    return function.__module__.startswith("torch.distributed.fsdp.")


def is_hook_of_fsdp(hook: Any) -> bool:
    """Return whether a hook on a tensor is one by which FSDP prepares the backward of a module."""
    kind = type(getattr(hook, "__self__", None))
    return f"{kind.__module__}.{kind.__qualname__}" == STATE_CLASS
