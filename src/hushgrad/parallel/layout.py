"""How a model lies on the processes, read once from what the caller made of it, never configured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hushgrad.errors import HushgradError, UnsupportedModelError
from hushgrad.parallel.world import processes
from hushgrad.torch_internals import has_communication_hooks
from hushgrad.torch_sharding import at_rest, fully_sharded, groups_of, is_plain, is_split, options_set, parallel_meshes

FSDP_1 = "torch.distributed.fsdp.fully_sharded_data_parallel"
"""The module of FSDP's first kind, which is named and not imported."""


def inner_module(model: nn.Module) -> nn.Module:
    """Return what `DistributedDataParallel` wraps, else the model itself: what is captured, and what is named."""
    return model.module if type(model) is DistributedDataParallel else model


def layout_problems(model: nn.Module) -> Iterator[HushgradError]:
    """Yield why a model cannot be trained as it lies on the processes."""
    for name, part in model.named_modules():
        where = name or "the model itself"
        if isinstance(part, nn.DataParallel):
            yield UnsupportedModelError(
                "DataParallel runs replicas in threads, and each would add its own noise",
                where=where,
                cure="Start one process for each device by torchrun, and wrap the model in DistributedDataParallel",
            )
        elif is_sharded_by_wrapping(part):
            yield UnsupportedModelError(
                "FullyShardedDataParallel flattens parameters, and a piece of a flat one sees only part of an "
                "example's gradient",
                where=where,
                cure="Shard the model by torch.distributed.fsdp.fully_shard instead",
            )
        elif _is_of(part, "deepspeed"):
            yield UnsupportedModelError(
                "DeepSpeed's engine reduces and steps by itself, so that nobody could add noise in between",
                where=where,
                cure="Shard the model by torch.distributed.fsdp.fully_shard, or wrap it in DistributedDataParallel",
            )
        elif isinstance(part, DistributedDataParallel):
            if part is not model or type(part) is not DistributedDataParallel:
                yield UnsupportedModelError(
                    "DistributedDataParallel inside of another module, or a subclass of it, is not recognised",
                    where=where,
                    cure="Wrap the whole model in torch's own DistributedDataParallel, or nothing",
                )
            else:
                yield from _options_refused(part, where)

    yield from _shards_refused(model)


def _shards_refused(model: nn.Module) -> Iterator[HushgradError]:
    """Yield why parameters that lie on several processes cannot be trained."""
    parts = fully_sharded(model)
    if parts and inner_module(model) is not model:
        yield UnsupportedModelError(
            "a model that fully_shard was called on is inside of DistributedDataParallel",
            cure="Leave DistributedDataParallel out; for copies of a sharded model call fully_shard with a mesh of two "
            "dimensions",
        )
        return
    names = {id(part): name for name, part in model.named_modules()}
    for group in groups_of(parts):
        for what in options_set(group):
            yield UnsupportedModelError(
                f"{what}, so this fully_shard is not supported",
                where=names.get(id(group.modules[0])) or "the model itself",
                cure="Call fully_shard(module) with a mesh of all processes, and of its options mp_policy, "
                "offload_policy and reshard_after_forward=True or False",
            )
    yield from _rows_refused(model)
    rows = parallel_meshes(model)
    row = next(iter(rows.values()), None)
    of_column = {id(parameter.sharded_param) for group in groups_of(parts) for parameter in group.fsdp_params}
    for name, parameter in model.named_parameters():
        if id(parameter) in of_column and not _is_of_all(parameter, row, name in rows):
            yield UnsupportedModelError(
                "is split over a part of the processes, in another order than theirs, or by a mesh that is not (shard) "
                "or (replicate, shard)",
                where=name,
                cure="Call fully_shard with a mesh of all processes: init_device_mesh(device, (processes,)), or of "
                'two dimensions; beside parallelize_module with mesh["dp"] of the mesh whose mesh["tp"] that has',
            )


def _rows_refused(model: nn.Module) -> Iterator[HushgradError]:
    """Yield why parameters that lie on several processes beside `fully_shard` cannot be trained."""
    rows = parallel_meshes(model)
    if rows and inner_module(model) is not model:
        yield UnsupportedModelError(
            "a tensor parallel model is inside of DistributedDataParallel",
            cure='Leave DistributedDataParallel out: processes of another mesh["dp"] are its copies; or call '
            'fully_shard(model, mesh=mesh["dp"]) after parallelize_module',
        )
        return
    tensors: dict[str, Any] = {**dict(at_rest(model)), **dict(model.named_buffers())}
    names = {mesh.get_group(0).group_name for mesh in rows.values()}
    for name, mesh in rows.items():
        if mesh.ndim != 1 or len(names) > 1 or not _is_in_order(mesh):
            yield UnsupportedModelError(
                "lies on several processes by a mesh of more than one dimension, by another one than other parameters "
                "do, or in another order than theirs, so which of them have the same examples cannot be told (tensor "
                "parallel beside expert or context parallel, say)",
                where=name,
                cure='Give parallelize_module one mesh of one dimension for the whole model: mesh["tp"] of '
                'init_device_mesh(device, (m, n), mesh_dim_names=("dp", "tp")), or a mesh of all processes',
            )
        elif not is_plain(tensors[name].placements[-1]):
            yield UnsupportedModelError(
                "is neither cut along a dimension nor whole in every process (a partial sum, say)",
                where=name,
                cure="Split parameters by parallelize_module with ColwiseParallel, RowwiseParallel and "
                "SequenceParallel, or by distribute_tensor with Shard or Replicate",
            )


def _is_of_all(parameter: Any, row: Any, is_of_row: bool) -> bool:
    """Whether what `fully_shard` split lies on all processes: with those of a row where its own mesh lacks them."""
    mesh, placements = parameter.device_mesh, parameter.placements
    beside = 1 if row is None or is_of_row else row.size()
    own = placements[:-1] if is_of_row else placements
    kinds = [not placement.is_replicate() for placement in own]
    is_met_once = beside == 1 or set(mesh.mesh.flatten().tolist()) & set(row.mesh.tolist()) == {dist.get_rank()}
    return (
        len(kinds) <= 2
        and kinds.count(True) == 1
        and not any(placement.is_partial() for placement in placements)
        and _is_in_order(mesh)
        and is_met_once
        and mesh.size() * beside == processes()
    )


def _is_in_order(mesh: Any) -> bool:
    """Whether torch numbers the processes of a group by their ranks, and takes the parts of a mesh in its own order."""
    return all(mesh.get_local_rank(axis) == dist.get_rank(mesh.get_group(axis)) for axis in range(mesh.ndim))


def require_layout(model: nn.Module) -> None:
    """Refuse a model that cannot be trained as it lies on the processes. Raises `UnsupportedModelError`."""
    for problem in layout_problems(model):
        raise problem


def _options_refused(model: DistributedDataParallel, where: str) -> Iterator[HushgradError]:
    for what, is_set in (
        ("static_graph=True reduces ordinary gradients, of which there are none", model.static_graph),
        ("mixed_precision would narrow gradients before they are clipped", model.mixed_precision is not None),
        ("a communication hook would run on gradients that there are none of", has_communication_hooks(model)),
        ("a part of the processes", _is_part_of_world(model.process_group)),
    ):
        if is_set:
            yield UnsupportedModelError(
                f"{what}, so this DistributedDataParallel is not supported",
                where=where,
                cure="Make it with its defaults: DistributedDataParallel(model), over all processes. Sums of clipped "
                "gradients are added up by the library, in float32",
            )


def _is_part_of_world(group: Any) -> bool:
    return dist.get_world_size(group) != processes()


def _is_of(part: nn.Module, package: str) -> bool:
    return any(base.__module__.partition(".")[0] == package for base in type(part).__mro__)


def is_sharded_by_wrapping(part: nn.Module) -> bool:
    """Whether a module is one of FSDP's first kind, which wraps it."""
    return any(base.__module__ == FSDP_1 for base in type(part).__mro__)


def is_replica_or_shard(part: nn.Module) -> bool:
    """Whether a module is one of torch's wrappers, or holds parts that lie on several processes."""
    wrappers = (nn.DataParallel, DistributedDataParallel)
    return isinstance(part, wrappers) or is_sharded_by_wrapping(part) or is_split(part)
