"""What one private step without noise sums of a model for classes, against one record at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import hushgrad
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time

CLIP = hushgrad.FlatClipping(0.5)


def assert_sums_are_those_of_one_at_a_time(model: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    """Train one step on records, `[B, ...]` and `[B]`; what is not trained must not move."""

    def loss(row: int) -> Tensor:
        return nn.functional.cross_entropy(model(inputs[row : row + 1]), labels[row : row + 1])

    losses = [lambda row=row: loss(row) for row in range(len(labels))]  # type: ignore[misc]
    expected = clipped_sum_of(one_at_a_time(model, losses), CLIP)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    mechanism = hushgrad.DPSGD(
        noise_multiplier=0.0,
        clipping=CLIP,
        sampling=hushgrad.PoissonSampling(rate=0.5),
        expected_batch_size=len(labels),
        loss_reduction="sum",
    )
    session = hushgrad.privatize(model, optimizer, mechanism)
    session.backward(nn.functional.cross_entropy(model(inputs), labels, reduction="none"))
    optimizer.step()
    session.close()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(expected)
    for name, parameter in model.named_parameters():
        moved = before[name] - parameter.detach()
        torch.testing.assert_close(moved, expected.get(name, torch.zeros_like(moved)), rtol=1e-4, atol=1e-6)
