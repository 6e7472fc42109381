"""What is trained: a model, a batch of synthetic records and a loss. All of it is fixed by a seed.

Workloads are data. A function of sizes makes one; `WORKLOADS` holds the measured ones and `SMALL` the same networks at
sizes for tests. A further workload is one more entry in both; nothing else has to know about it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from benchmarks import networks

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Workload:
    """One thing to train.

    Attributes:
        title: how reports call it.
        batch_size: B, records in a step.
        make_model: builds the model under the current global seed.
        make_batch: (B, generator) to inputs `[B, ...]` and targets `[B, ...]`.
        criterion: a loss module with a `reduction`, default "mean"; "none" gives losses `[B]`.
        target_time: the step time to reach, as a multiple of the ordinary step's.
        target_memory: the same for peak memory.
    """

    title: str
    batch_size: int
    make_model: Callable[[], nn.Module]
    make_batch: Callable[[int, Generator], Batch]
    criterion: Callable[..., nn.Module] = nn.CrossEntropyLoss
    target_time: float | None = None
    target_memory: float | None = None

    def model(self, seed: int = 0) -> nn.Module:
        """Return a new model; the same seed gives the same parameters. The global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make_model()

    def batch(self, seed: int = 1) -> Batch:
        """Return the batch; the same seed gives the same records."""
        return self.make_batch(self.batch_size, Generator().manual_seed(seed))


def images(channels: int, side: int) -> Callable[[int, Generator], Batch]:
    """Images `[B, channels, side, side]` of normal values, labels `[B]` of ten classes."""

    def make(count: int, generator: Generator) -> Batch:
        records = torch.randn(count, channels, side, side, generator=generator)
        return records, torch.randint(0, 10, (count,), generator=generator)

    return make


def sequences(positions: int, vocabulary: int, classes: int | None) -> Callable[[int, Generator], Batch]:
    """Token ids `[B, positions]`, evenly drawn; labels `[B]` of `classes`, or for None a target `[B, positions]`."""

    def make(count: int, generator: Generator) -> Batch:
        ids = torch.randint(0, vocabulary, (count, positions + 1), generator=generator)
        if classes is None:
            return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        return ids[:, 1:].contiguous(), torch.randint(0, classes, (count,), generator=generator)

    return make


def mlp(batch_size: int = 256, width: int = 1024, depth: int = 2) -> Workload:
    """A perceptron on flat images."""
    layers = "-".join(["784", *[str(width)] * depth, "10"])
    return Workload(
        f"MLP {layers}",
        batch_size,
        lambda: networks.mlp(width, depth),
        images(1, 28),
        target_time=1.2,
        target_memory=1.1,
    )


def cnn(batch_size: int = 256) -> Workload:
    """The MNIST network."""
    return Workload("MNIST CNN", batch_size, networks.cnn, images(1, 28), target_time=1.3, target_memory=1.1)


def resnet_gn(batch_size: int = 16, width: int = 64, blocks: int = 2, groups: int = 16) -> Workload:
    """ResNet-18 with GroupNorm on 32×32."""
    return Workload(
        f"ResNet-GN {'-'.join(str(width << stage) for stage in range(4))}, {blocks} blocks a stage, 32×32",
        batch_size,
        lambda: networks.resnet_gn(width, blocks, groups),
        images(3, 32),
        target_time=1.2,
        target_memory=1.2,
    )


def encoder(
    batch_size: int = 16, positions: int = 128, width: int = 256, depth: int = 4, vocabulary: int = 8192, heads: int = 4
) -> Workload:
    """A transformer that classifies sequences."""

    def model() -> nn.Module:
        return networks.Transformer(
            "encoder", vocabulary=vocabulary, width=width, depth=depth, positions=positions, heads=heads
        )

    title = f"encoder d={width} L={depth} T={positions} vocabulary {vocabulary}"
    batch = sequences(positions, vocabulary, classes=2)
    return Workload(title, batch_size, model, batch, target_time=1.15, target_memory=1.2)


def lora(
    batch_size: int = 16,
    positions: int = 128,
    width: int = 256,
    depth: int = 4,
    vocabulary: int = 8192,
    heads: int = 4,
    rank: int = 8,
) -> Workload:
    """LoRA on the linear layers of the encoder's blocks; embeddings, norms and the layers themselves are frozen."""

    def model() -> nn.Module:
        base = networks.Transformer(
            "encoder", vocabulary=vocabulary, width=width, depth=depth, positions=positions, heads=heads
        )
        return networks.with_lora(base, rank)

    title = f"LoRA r={rank} on the encoder d={width} L={depth} T={positions}"
    batch = sequences(positions, vocabulary, classes=2)
    return Workload(title, batch_size, model, batch, target_time=1.05, target_memory=1.05)


def decoder(
    batch_size: int = 8,
    positions: int = 256,
    width: int = 256,
    depth: int = 4,
    vocabulary: int = 8192,
    heads: int = 4,
    target_time: float = 1.08,
    target_memory: float = 1.15,
) -> Workload:
    """A causal language model; the loss of a record is the mean over its tokens."""

    def model() -> nn.Module:
        return networks.Transformer(
            "decoder", vocabulary=vocabulary, width=width, depth=depth, positions=positions, heads=heads
        )

    return Workload(
        f"decoder d={width} L={depth} T={positions} vocabulary {vocabulary}",
        batch_size,
        model,
        sequences(positions, vocabulary, classes=None),
        networks.TokenCrossEntropy,
        target_time,
        target_memory,
    )


def linear_stack(batch_size: int = 16, width: int = 16, depth: int = 400) -> Workload:
    """Very many very small layers."""

    def batch(count: int, generator: Generator) -> Batch:
        records = torch.randn(count, width, generator=generator)
        return records, torch.randint(0, width, (count,), generator=generator)

    return Workload(f"{depth} Linear({width},{width})", batch_size, lambda: networks.linear_stack(width, depth), batch)


WORKLOADS: dict[str, Workload] = {
    "mlp": mlp(),
    "cnn": cnn(),
    "resnet-gn": resnet_gn(),
    "encoder": encoder(),
    "decoder-256": decoder(),
    "decoder-1024": decoder(4, 1024, depth=2, vocabulary=2048, target_time=1.03, target_memory=1.1),
    "lora": lora(),
    "linear400": linear_stack(),
}

_TINY = {"batch_size": 3, "positions": 6, "width": 8, "depth": 2, "vocabulary": 11, "heads": 2}

SMALL: dict[str, Workload] = {
    "mlp": mlp(batch_size=4, width=32),
    "cnn": cnn(batch_size=4),
    "resnet-gn": resnet_gn(batch_size=3, width=4, blocks=1, groups=2),
    "encoder": encoder(**_TINY),
    "decoder-256": decoder(**_TINY),
    "decoder-1024": decoder(**{**_TINY, "positions": 24}),
    "lora": lora(**_TINY, rank=2),
    "linear400": linear_stack(batch_size=3, width=5, depth=20),
}
