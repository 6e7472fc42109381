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
from hushgrad.torch_sharding import fully_sharded, groups_of, is_distributed, options_set

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
    sharded = {id(parameter.sharded_param) for group in groups_of(parts) for parameter in group.fsdp_params}
    for name, parameter in model.named_parameters():
        if not is_distributed(parameter):
            continue
        if id(parameter) not in sharded:
            yield UnsupportedModelError(
                "lies on several processes, and not by fully_shard (tensor parallel, distribute_tensor)",
                where=name,
                cure="Train it whole (plain, or in DistributedDataParallel), or shard it by fully_shard alone",
            )
        elif not _is_of_all(parameter):
            yield UnsupportedModelError(
                "is split over a part of the processes, in another order than theirs, or by a mesh that is not (shard) "
                "or (replicate, shard)",
                where=name,
                cure="Call fully_shard with a mesh of all processes: init_device_mesh(device, (processes,)), or of "
                "two dimensions",
            )


def _is_of_all(parameter: Any) -> bool:
    kinds = [placement.is_shard() for placement in parameter.placements]
    rest = [placement for placement in parameter.placements if not placement.is_shard()]
    is_plain = len(kinds) <= 2 and kinds.count(True) == 1 and all(placement.is_replicate() for placement in rest)
    mesh = parameter.device_mesh
    # Torch numbers the processes of a group by their ranks, and takes the parts of a mesh in its own order.
    in_order = all(mesh.get_local_rank(axis) == dist.get_rank(mesh.get_group(axis)) for axis in range(mesh.ndim))
    return is_plain and in_order and mesh.size() == processes()


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
    """Whether a module is one of torch's wrappers, or holds parts that `fully_shard` made."""
    wrappers = (nn.DataParallel, DistributedDataParallel)
    return isinstance(part, wrappers) or is_sharded_by_wrapping(part) or bool(fully_sharded(part))
