"""Models in the forms in which `parallelize_module` splits them, over two processes that have the same records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from sharded_models import CLASSES, WORDS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTH, HEAD = 16, 4

Plan = Mapping[str, Any]


class Columns(nn.Module):
    """Two layers on the mean of some words, which every process has."""

    def __init__(self, words: int = WORDS) -> None:
        super().__init__()
        self.token = nn.Embedding(words, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.token(ids).mean(1))))


class Sequence(nn.Module):
    """A normalisation between layers, at each position."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.norm = nn.Embedding(WORDS, WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.down(torch.relu(self.up(self.norm(self.token(ids))))).mean(1))


class Heads(nn.Module):
    """A block of a transformer, which takes the number of heads from what its layers return."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        q, k, v = (layer(h).unflatten(-1, (-1, HEAD)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Language(nn.Module):
    """An embedding, two blocks and a head on the mean over positions."""

    def __init__(self, width: int = WIDTH, classes: int = CLASSES) -> None:
        super().__init__()
        self.token = nn.Embedding(WORDS, width)
        self.blocks = nn.ModuleList(Heads(width) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def through(self, block: nn.Module, x: Tensor) -> Tensor:
        return block(x)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids)
        for block in self.blocks:
            x = self.through(block, x)
        return self.head(self.norm(x).mean(1))


class Checkpointed(Language):
    """Computes each block again in the backward."""

    def through(self, block: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=False)


class Frozen(Language):
    """Trains queries and norms alone."""

    def __init__(self) -> None:
        super().__init__()
        frozen(self)


def frozen(model: nn.Module) -> nn.Module:
    """Again after parallelize_module, too: SequenceParallel makes trainable parameters of frozen ones."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".q." in name or "norm" in name or "first" in name)
    return model


class Tied(Language):
    """An embedding that is also the head, cut by words."""

    def __init__(self) -> None:
        super().__init__(classes=WORDS)
        self.head.bias = None
        self.head.weight = self.token.weight


class Normed(Columns):
    """A layer whose weight is made of two parameters, in every process."""

    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.down)


def styles() -> Any:
    import torch.distributed.tensor.parallel as parallel

    return parallel


def in_rows(plan: Callable[[], Plan], shape: tuple[int, ...] = (), sharded: bool = False) -> Any:
    """Return what splits a model by a plan, over all processes or rows of a mesh, and shards it over the columns."""

    def split(model: nn.Module) -> nn.Module:
        from torch.distributed.fsdp import fully_shard

        mesh = mesh_of(shape or (torch.distributed.get_world_size(),))
        model = styles().parallelize_module(model, mesh["tp"], dict(plan()))
        if not sharded:
            return model
        of_columns = mesh[mesh.mesh_dim_names[:-1]]
        for block in model.blocks:
            fully_shard(block, mesh=of_columns)
        return fully_shard(model, mesh=of_columns)

    return split


def mesh_of(shape: tuple[int, ...]) -> Any:
    """Return a mesh whose last dimension is that of the rows."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", shape, mesh_dim_names=("copies", "dp", "tp")[-len(shape) :])


def columns_and_rows() -> Plan:
    of = styles()
    return {"up": of.ColwiseParallel(), "down": of.RowwiseParallel()}


def words() -> Plan:
    from torch.distributed.tensor import Replicate

    return {"token": styles().RowwiseParallel(input_layouts=Replicate())}


def features() -> Plan:
    from torch.distributed.tensor import Replicate

    return {"token": styles().ColwiseParallel(output_layouts=Replicate()), **columns_and_rows()}


def sequence() -> Plan:
    from torch.distributed.tensor import Replicate, Shard

    of = styles()
    return {
        "token": of.RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": of.SequenceParallel(),
        "up": of.ColwiseParallel(input_layouts=Shard(1)),
        "down": of.RowwiseParallel(output_layouts=Replicate()),
    }


def blocks() -> Plan:
    of = styles()
    names = {"q": of.ColwiseParallel(), "k": of.ColwiseParallel(), "v": of.ColwiseParallel(), "o": of.RowwiseParallel()}
    return {f"blocks.*.{name}": style for name, style in {**names, **columns_and_rows()}.items()}


def everything() -> Plan:
    """Each kind of style in one model: norms by positions, words and heads by rows."""
    from torch.distributed.tensor import Replicate, Shard

    of = styles()
    block = {
        "": of.PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Shard(1),), use_local_output=True),
        "first": of.SequenceParallel(use_local_output=True),
        "second": of.SequenceParallel(use_local_output=True),
        **{name: of.ColwiseParallel(input_layouts=Shard(1)) for name in ("q", "k", "v", "up")},
        **{name: of.RowwiseParallel(output_layouts=Shard(1)) for name in ("o", "down")},
    }
    del block[""]
    return {
        "token": of.RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        **{f"blocks.*.{name}": style for name, style in block.items()},
        "norm": of.PrepareModuleInput(
            input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),), use_local_output=True
        ),
        "head": of.ColwiseParallel(output_layouts=Replicate()),
    }


def one_block() -> Plan:
    return {f"blocks.0.{name}": style for name, style in columns_and_rows().items()}


def tied() -> Plan:
    from torch.distributed.tensor import Replicate

    of = styles()
    return {
        "token": of.RowwiseParallel(input_layouts=Replicate()),
        "head": of.ColwiseParallel(output_layouts=Replicate()),
    }


def tied_again(model: nn.Module) -> nn.Module:
    """parallelize_module makes two parameters of one."""
    model = in_rows(tied)(model)
    model.head.weight = model.token.weight
    return model


def first_layer() -> Plan:
    from torch.distributed.tensor import Replicate

    return {"up": styles().ColwiseParallel(output_layouts=Replicate())}


Form = tuple[Callable[[], nn.Module], Callable[[nn.Module], nn.Module]]

ROWS: dict[str, Form] = {
    "columns and rows": (Columns, in_rows(columns_and_rows)),
    "features": (Columns, in_rows(features)),
    "words": (Columns, in_rows(words)),
    "positions": (Sequence, in_rows(sequence)),
    "heads": (Language, in_rows(blocks)),
    "all styles": (Language, in_rows(everything)),
    "uneven words": (lambda: Columns(words=43), in_rows(words)),
    "tied words": (Tied, tied_again),
    "checkpointed rows": (Checkpointed, in_rows(everything)),
    "frozen but for queries": (Frozen, lambda model: frozen(in_rows(everything)(model))),
    "norm of weights": (Normed, in_rows(first_layer)),
    "large rows": (lambda: Language(96), in_rows(everything)),
    "large whole": (lambda: Language(96), in_rows(one_block)),
    "copies of rows": (Language, in_rows(everything, (2, 2))),
    "sharded columns": (Language, in_rows(everything, (2, 2), sharded=True)),
    "sharded heads": (Language, in_rows(blocks, (2, 2), sharded=True)),
    "large sharded columns": (lambda: Language(96), in_rows(everything, (2, 2), sharded=True)),
    "rows of two of three dimensions": (Language, in_rows(everything, (1, 2, 2), sharded=True)),
}
