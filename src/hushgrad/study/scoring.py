"""How many examples a model classifies correctly."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

EVALUATION_BATCH = 2048


@torch.no_grad()
def right_on(model: nn.Module, examples: TensorDataset, device: str) -> Tensor:
    """Return for each example whether the model classifies it correctly, [N] bool on the CPU."""
    was_training = model.training
    model.eval()
    inputs, labels = examples.tensors
    chunks = [slice(first, first + EVALUATION_BATCH) for first in range(0, len(labels), EVALUATION_BATCH)]
    right = [model(inputs[chunk].to(device)).argmax(1).cpu() == labels[chunk] for chunk in chunks]
    model.train(was_training)
    return torch.cat(right)


def accuracy(model: nn.Module, examples: TensorDataset, device: str) -> float:
    """Return the share of examples that the model classifies correctly."""
    return float(right_on(model, examples, device).double().mean())
