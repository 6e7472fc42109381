"""Everything hushgrad knows of torch's sharded models: `fully_shard` and the tensors of `torch.distributed.tensor`.

The second file to open when a new torch breaks something, beside `torch_internals`. A model that `fully_shard` made has
two sets of parameters: at rest those that hold this process's shards, which the optimizer has; and in a forward or a
backward whole ones in their place, filled by messages between the processes. Nothing here is imported before a model
needs it: torch.distributed.tensor takes a second.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hushgrad.torch_internals import function_of, parameters_of, unseen

STATE_CLASS = "torch.distributed.fsdp._fully_shard._fsdp_state.FSDPState"
"""What keeps what `fully_shard` knows of a module: it runs the program, and is no state of a model."""


# Tensors -------------------------------------------------------------------------------------------------------------


def is_one_of_many() -> bool:
    """Return whether `torch.distributed` joins this process to others."""
    group = torch.distributed
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1


def is_distributed(tensor: Tensor) -> bool:
    """Return whether a tensor lies on several processes, and an operation on it may be a message between them."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def distributed_among(tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """Return the names of those that lie on several processes: for many tensors, one call in place of one for each."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        return frozenset()
    return frozenset([name for name, tensor in tensors.items() if isinstance(tensor, module.DTensor)])


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
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    is_of_all = mesh.size() == torch.distributed.get_world_size()
    return f"{tensor.placements} on {mesh.mesh.tolist() if is_of_all else list(mesh.mesh.shape)}"  # type: ignore[attr-defined]


def part_that_others_have(tensor: Any) -> str:
    """Return the name of this process's part of a distributed tensor; "" where no other process has the same part."""
    mesh, placements = tensor.device_mesh, tensor.placements
    if mesh.size() == torch.distributed.get_world_size() and not any(part.is_replicate() for part in placements):
        return ""
    cuts = [
        f"part {mesh.get_local_rank(axis)} of {mesh.size(axis)} by dimension {placement.dim}"
        for axis, placement in enumerate(placements)
        if not placement.is_replicate()
    ]
    return ", ".join(cuts) or "all of it"


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, in every process: all of them call it."""
    return tensor.full_tensor() if is_distributed(tensor) else tensor  # type: ignore[attr-defined]


def cut(parameter: Tensor, value: Tensor) -> Tensor:
    """Return of a whole tensor the part of this process, as its part of a parameter is cut out. No message is sent."""
    if not is_distributed(parameter):
        return value
    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    for axis in reversed(range(mesh.ndim)):  # tensor parallel, the last axis, has cut before `fully_shard` did
        value = part_of(value, placements[axis], mesh.size(axis), mesh.get_local_rank(axis))
    return value


def is_plain(placement: Any) -> bool:
    """Return whether a placement cuts along a dimension, one part after another, or has all of it everywhere."""
    return bool(placement.is_shard() or placement.is_replicate())


def part_of(value: Tensor, placement: Any, count: int, place: int) -> Tensor:
    """Return one of the parts that a placement cuts a tensor into; torch's last ones of a small tensor are empty."""
    if placement.is_replicate():
        return value
    chunks = torch.chunk(value, count, placement.dim)
    return chunks[place] if place < len(chunks) else value.narrow(placement.dim, 0, 0)


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
    if any(parameter.mesh_info.is_spmd_mesh for parameter in group.fsdp_params):
        yield "dp_mesh_dims is set"


def parallel_meshes(model: nn.Module) -> dict[str, Any]:
    """Return over which meshes parameters and buffers are split beside `fully_shard`, by name: tensor parallel ones.

    Of one that `fully_shard` has split again it is the mesh of its whole form.
    """
    sharded = {
        id(parameter.sharded_param): parameter
        for group in groups_of(fully_sharded(model))
        for parameter in group.fsdp_params
    }
    found: dict[str, Any] = {}
    for name, tensor in (*at_rest(model), *model.named_buffers()):
        twice = sharded.get(id(tensor))
        if twice is not None:
            if twice.is_dtensor:
                found[name] = twice._unsharded_dtensor_spec.mesh
        elif is_distributed(tensor):
            found[name] = tensor.device_mesh  # type: ignore[attr-defined]
    return found


def is_split(model: nn.Module) -> bool:
    """Return whether no process has all of a model, as `fully_shard` or `parallelize_module` left it."""
    return bool(fully_sharded(model)) or bool(parallel_meshes(model))


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


def is_of_distributed_torch(function: type) -> bool:
    """Return whether a custom autograd function is one of FSDP's hooks on a module, or one of distributed tensors."""
    return function.__module__.startswith(("torch.distributed.fsdp.", "torch.distributed.tensor."))


def is_hook_of_fsdp(hook: Any) -> bool:
    """Return whether a hook on a tensor is one by which FSDP prepares the backward of a module."""
    kind = type(getattr(hook, "__self__", None))
    return f"{kind.__module__}.{kind.__qualname__}" == STATE_CLASS


# Between a tensor on several processes and its part in this one -------------------------------------------------------


class Conversion(NamedTuple):
    """A distributed tensor and how it lies, or comes to lie, on the processes of a mesh."""

    tensor: Tensor
    mesh: Any
    placements: Sequence[Any]


def conversion_of(tensor: Any) -> Conversion:
    """Return how a distributed tensor lies on the processes."""
    return Conversion(tensor, tensor.device_mesh, tensor.placements)


def running_conversion() -> Conversion | None:
    """Return the conversion of a distributed tensor that runs now: to its part here, or to another layout.

    Each is the forward of an autograd function of torch. What it is made of looks like any other calls.
    """
    module = sys.modules.get("torch.distributed.tensor._api")
    if module is None:
        return None
    to_local, to_layout = module._ToTorchTensor.forward.__code__, module.Redistribute.forward.__code__
    frame: FrameType | None = sys._getframe(1)
    for _ in range(FRAMES_OF_CONVERSION):
        if frame is None:
            return None
        if frame.f_code is to_local:
            return conversion_of(frame.f_locals["input"])
        if frame.f_code is to_layout:
            kept = frame.f_locals
            return Conversion(kept["input"], kept["device_mesh"], kept["placements"])
        frame = frame.f_back
    return None


FRAMES_OF_CONVERSION = 40
"""How many calls deep torch is inside of a conversion, at most."""


def is_part(tensor: Tensor) -> bool:
    """Return whether a tensor is distributed, or is the part of one that other processes have other parts of."""
    if is_distributed(tensor):
        return True
    with unseen():  # capture takes it for the loop's that reads a node
        node: Any = tensor.grad_fn
    module = sys.modules.get("torch.distributed.tensor._api")
    if node is None or module is None or function_of(node) is not module._ToTorchTensor:
        return False
    return not all(placement.is_replicate() for placement in node.dtensor_spec.placements)


def laid_out(tensor: Tensor, mesh: Any, placements: Sequence[Any]) -> Tensor:
    """Return the part of this process of a tensor as it lies by `placements`: all processes of the mesh call it.

    A tensor that is not distributed is one that all of them have whole.
    """
    api: Any = sys.modules["torch.distributed.tensor"]
    if not is_distributed(tensor):
        whole_everywhere = [api.Replicate()] * mesh.ndim
        tensor = api.DTensor.from_local(arrived(tensor), mesh, whole_everywhere, run_check=False)
    return arrived(tensor.redistribute(mesh, placements).to_local())  # type: ignore[attr-defined]


def laid_out_as(parameter: Any, tensor: Tensor) -> Tensor:
    """Return the part of this process of a tensor, cut as a parameter is: all processes that have parts call it."""
    return laid_out(tensor, parameter.device_mesh, parameter.placements) if is_distributed(parameter) else tensor


def arrived(tensor: Tensor) -> Tensor:
    """Return a tensor that a message brings once it is there; any other as it is."""
    module = sys.modules.get("torch.distributed._functional_collectives")
    if module is not None and isinstance(tensor, module.AsyncCollectiveTensor):
        found: Tensor = tensor.wait()
        return found
    return tensor


def whole_on(mesh: Any) -> list[Any]:
    """Return the placements of a tensor that all processes of a mesh have whole."""
    return [sys.modules["torch.distributed.tensor"].Replicate()] * mesh.ndim


def cut_along(dim: int) -> Any:
    """Return the placement of a tensor that is cut along a dimension, one part after another."""
    return sys.modules["torch.distributed.tensor"].Shard(dim)
