"""Models of which only the head is trained, on features that a fixed part computes.

What is fixed need not be computed in every step: the features of all examples are computed once, before training, and
the head is trained on them. It is the same training, because the fixed part has no parameters, no state and no random
numbers, and because the features of an example depend on that example alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hushgrad.study.tasks import Task

EXAMPLES_AT_ONCE = 256
MOST_FEATURE_BYTES = 4 << 30
"""Of the features of all examples together; where they are more, each step computes those of its own batch."""


class OnFeatures(nn.Module):
    """`head(features(inputs))`, where `features` is fixed: it has no parameters."""

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits [B, classes] for `[B, *input_shape]`."""
        logits: Tensor = self.head(self.features(inputs))
        return logits


def with_features_computed_once(
    model: nn.Module, task: Task, device: str, *, views: int = 0
) -> tuple[nn.Module, Task, Callable[[nn.Module], nn.Module]]:
    """Return what is to be trained, the task that it is trained on, and what makes a whole model of what was trained.

    They are the model and the task themselves where nothing of the model is fixed, where each step draws `views` of its
    examples, or where the features of all examples would take more than MOST_FEATURE_BYTES.

    Guarantee: features that are computed once equal those that are computed in the step.
    """
    if not isinstance(model, OnFeatures) or views:
        return model, task, lambda trained: trained
    fixed = model.features
    example = _features_of(fixed, task.train.tensors[0][:1], device)
    if example.nbytes * (len(task.train) + len(task.test)) > MOST_FEATURE_BYTES:
        return model, task, lambda trained: trained
    train, test = (
        TensorDataset(_features_of(fixed, examples.tensors[0], device), examples.tensors[1])
        for examples in (task.train, task.test)
    )
    return model.head, replace(task, train=train, test=test), lambda trained: OnFeatures(fixed, trained)


@torch.no_grad()
def _features_of(fixed: nn.Module, inputs: Tensor, device: str) -> Tensor:
    """Return the features of all inputs, [N, …], on the CPU, where data sets lie."""
    return torch.cat([fixed(part.to(device)).cpu() for part in torch.split(inputs, EXAMPLES_AT_ONCE)])
