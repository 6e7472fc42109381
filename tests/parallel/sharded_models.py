"""A small transformer in the forms in which `fully_shard` is called on models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

N, CLASSES, WORDS, LONG = 96, 5, 40, 6


class Block(nn.Module):
    """Attention over one head, and two layers."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(d), nn.LayerNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        scores = self.q(h) @ self.k(h).transpose(1, 2) / h.shape[-1] ** 0.5
        x = x + self.o(scores.softmax(-1) @ self.v(h))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    """An embedding, some blocks, and a head on the mean over positions."""

    def __init__(self, d: int = 16, words: int = WORDS, classes: int = CLASSES, layers: int = 2) -> None:
        super().__init__()
        self.token = nn.Embedding(words, d)
        self.blocks = nn.ModuleList(Block(d) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, classes)

    def through(self, block: nn.Module, x: Tensor) -> Tensor:
        return block(x)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids)
        for block in self.blocks:
            x = self.through(block, x)
        return self.head(self.norm(x).mean(1))


class Checkpointed(Transformer):
    """Computes each block again in the backward."""

    def through(self, block: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=False)


class Nested(Transformer):
    """The same by backwards inside the backward."""

    def through(self, block: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=True)


class Frozen(Transformer):
    """Trains a part of each block alone."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)
        for block in self.blocks:
            block.q.requires_grad_()
            block.down.requires_grad_()


class Tied(Transformer):
    """An embedding that is also the head."""

    def __init__(self) -> None:
        super().__init__(classes=WORDS)
        self.head.weight = self.token.weight


class Bare(Transformer):
    """Uses the weight of a module without calling it."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x).mean(1), self.head.weight, self.head.bias) + x.mean(1) @ self.head.weight.T


class View(nn.Module):
    """Returns a view of what a block returns."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x).view(x.shape)


class Views(Transformer):
    """Blocks that return views."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(View(block) for block in self.blocks)


class Derived(Transformer):
    """A block of which a weight is made of two parameters."""

    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.blocks[0].up)


def sharded(model: nn.Module, **options: Any) -> nn.Module:
    """Shard each block, and the rest with the root."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    options.setdefault("mesh", init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
    for block in model.blocks:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def nested(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(block.up)
    return sharded(model)


def root_alone(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model)


def blocks_alone(model: nn.Module) -> nn.Module:
    """The rest is whole in every process."""
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(block)
    return model


def in_groups(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    fully_shard(list(model.blocks))
    fully_shard([model.norm, model.head])
    return fully_shard(model)


def in_bfloat16(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return sharded(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16))


def by_columns(model: nn.Module) -> nn.Module:
    from torch.distributed.tensor import Shard

    return sharded(model, shard_placement_fn=lambda parameter: Shard(parameter.ndim - 1))


def in_another_order(model: nn.Module) -> nn.Module:
    """The last process has the first part."""
    from torch.distributed.device_mesh import DeviceMesh

    return sharded(model, mesh=DeviceMesh("cpu", list(range(torch.distributed.get_world_size()))[::-1]))


def offloaded(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import CPUOffloadPolicy

    return sharded(model, offload_policy=CPUOffloadPolicy(pin_memory=False))


def with_copies(model: nn.Module) -> nn.Module:
    """Two copies of a model that lies on two processes each."""
    from torch.distributed.device_mesh import init_device_mesh

    return sharded(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))


FORMS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], nn.Module]]] = {
    "blocks": (Transformer, sharded),
    "kept after a forward": (Transformer, lambda model: sharded(model, reshard_after_forward=False)),
    "given back after a forward": (Transformer, lambda model: sharded(model, reshard_after_forward=True)),
    "root alone": (Transformer, root_alone),
    "blocks alone": (Transformer, blocks_alone),
    "nested": (Transformer, nested),
    "in groups": (Transformer, in_groups),
    "uneven": (lambda: Transformer(d=9, words=43, classes=CLASSES), sharded),
    "tied": (Tied, sharded),
    "bare weight": (Bare, sharded),
    "views": (Views, sharded),
    "derived": (Derived, sharded),
    "checkpointed": (Checkpointed, sharded),
    "checkpointed by backwards": (Nested, sharded),
    "frozen in part": (Frozen, sharded),
    "by columns": (lambda: Transformer(classes=6), by_columns),
    "in another order": (Transformer, in_another_order),
    "offloaded": (Transformer, offloaded),
    "bfloat16": (Transformer, in_bfloat16),
    "copies": (Transformer, with_copies),
    "uneven copies": (lambda: Transformer(d=9, words=43, classes=CLASSES), with_copies),
    "whole": (Transformer, lambda model: model),
    "large": (lambda: Transformer(d=96), sharded),
    "large copies": (lambda: Transformer(d=96), with_copies),
}


def data_of(model: nn.Module) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randint(0, WORDS, (N, LONG)), torch.randint(0, CLASSES, (N,))
