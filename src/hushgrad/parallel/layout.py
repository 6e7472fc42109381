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
        elif is_sharded(part):
            yield UnsupportedModelError(
                f"{type(part).__name__} is sharded, and a shard sees only part of an example's gradient",
                where=where,
                cure="Train the whole module, plain or in DistributedDataParallel",
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


def is_sharded(part: nn.Module) -> bool:
    """Whether a module is one that FSDP made, of either kind."""
    return any(base.__module__.startswith("torch.distributed.fsdp") for base in type(part).__mro__)


def is_replica_or_shard(part: nn.Module) -> bool:
    """Whether a module is one of torch's wrappers, or one that `fully_shard` made."""
    return isinstance(part, (nn.DataParallel, DistributedDataParallel)) or is_sharded(part)
