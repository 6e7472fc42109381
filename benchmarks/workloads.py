"""What is trained: a model, a batch of synthetic records and a loss. All of it is fixed by a seed.

A further workload is one more entry of `WORKLOADS`; nothing else has to know about it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Workload:
    """One thing to train.

    Attributes:
        title: how reports call it.
        batch_size: B, records in a step.
        make_model: builds the model under the current global seed.
        make_batch: (B, generator) to inputs `[B, ...]` and targets `[B]`.
        criterion: a loss module with a `reduction` and default reduction "mean".
    """

    title: str
    batch_size: int
    make_model: Callable[[], nn.Module]
    make_batch: Callable[[int, Generator], Batch]
    criterion: Callable[..., nn.Module] = nn.CrossEntropyLoss

    def model(self, seed: int = 0) -> nn.Module:
        """Return a new model; the same seed gives the same parameters. The global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make_model()

    def batch(self, seed: int = 1) -> Batch:
        """Return the batch; the same seed gives the same records."""
        return self.make_batch(self.batch_size, Generator().manual_seed(seed))


def mlp() -> nn.Module:
    """A perceptron 784-1024-1024-10 (1.9 million parameters): few operations for each parameter."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


def cnn() -> nn.Module:
    """The MNIST network of the TensorFlow Privacy tutorial (26,010 parameters): many operations for each parameter."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, stride=2, padding=3),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def digit_images(count: int, generator: Generator) -> Batch:
    """Images `[count, 1, 28, 28]` of normal values, labels `[count]` of ten classes."""
    images = torch.randn(count, 1, 28, 28, generator=generator)
    return images, torch.randint(0, 10, (count,), generator=generator)


WORKLOADS: dict[str, Workload] = {
    "mlp": Workload("MLP 784-1024-1024-10", 256, mlp, digit_images),
    "cnn": Workload("MNIST CNN", 256, cnn, digit_images),
}
