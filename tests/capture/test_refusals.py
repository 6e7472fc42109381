"""Programs whose per-example gradients cannot be seen are refused; those beside them are exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from attached import Attached, B, Model, X, assert_same, losses, refused, wanted
from torch import Tensor, nn

from hushgrad.errors import (
    CrossSampleLeakError,
    HushgradError,
    PrivacyUnitError,
    PrivateBufferError,
    SparseGradientError,
    UnsupportedModelError,
)

LAYERS: dict[str, tuple[type[HushgradError], nn.Module, Tensor]] = {
    "batch norm": (CrossSampleLeakError, nn.BatchNorm1d(4), X),
    "batch norm without affine": (CrossSampleLeakError, nn.BatchNorm1d(4, affine=False), X),
    "instance norm": (PrivateBufferError, nn.InstanceNorm1d(3, track_running_stats=True), torch.randn(B, 3, 4)),
    "max_norm": (UnsupportedModelError, nn.Embedding(9, 4, max_norm=1.0), torch.arange(B)),
    "scale_grad_by_freq": (CrossSampleLeakError, nn.Embedding(9, 4, scale_grad_by_freq=True), torch.arange(B)),
    "sparse": (SparseGradientError, nn.Embedding(9, 4, sparse=True), torch.arange(B)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_mixes_examples_or_shows_them_is_refused(name: str) -> None:
    error, layer, x = LAYERS[name]
    head = nn.Parameter(torch.ones(()))
    refused(error, error.code, lambda m, x: m.layer(x) * m.head, x, layer=layer, head=head)


MIXING: dict[str, Callable[[Model, Tensor], Tensor]] = {
    "mean over the batch": lambda m, x: m.layer(x - x.mean(0)),
    "softmax over the batch": lambda m, x: m.layer(x.softmax(0)),
    "flipped and back": lambda m, x: m.layer(m.layer(x).flip(0)).flip(0),
    "permuted": lambda m, x: m.layer(m.layer(x)[torch.randperm(B)]),
    "rolled": lambda m, x: m.layer(x.roll(1, 0)),
    "attention across the batch": lambda m, x: m.layer(x @ x.T @ x),
    "rows that are not the batch": lambda m, x: m.layer(x.reshape(2, -1)[:, :4]),
    "one row": lambda m, x: m.layer(x.sum(0, keepdim=True)).expand(B, -1),
    "transposed to the wrong place": lambda m, x: m.layer(F.pad(x, (0, 1)).T[:4].T[:, :4].reshape(-1).view(4, B).T),
    "sorted over the batch": lambda m, x: m.layer(x.sort(0).values),
    "doubled rows, paired wrongly": lambda m, x: m.layer(torch.cat([x, x])).view(B, 2, 4).sum(1),
    "pairs": lambda m, x: m.layer(x[:, None] - x[None]).sum(1),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_parameter_used_where_examples_cannot_be_told_apart_is_refused(name: str) -> None:
    refused(PrivacyUnitError, "told apart|rows", MIXING[name], torch.randn(B, 4), layer=nn.Linear(4, 4))


@pytest.mark.parametrize("steps", [3, B])
def test_time_and_batch_may_change_places_also_where_they_are_equally_many(steps: int) -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        h = m.a(x.transpose(0, 1)) + m.places[:, None]
        h = m.norm(h).tanh().permute(1, 2, 0)
        return m.b(h.movedim(2, 0)).sum(0)

    model = Model(
        forward, a=nn.Linear(4, 4), norm=nn.LayerNorm(4), b=nn.Linear(4, 3), places=nn.Parameter(torch.randn(steps, 4))
    ).double()
    attached = Attached(model)
    x = torch.randn(B, steps, 4, dtype=torch.float64)
    losses(model(x)).sum().backward()
    assert_same(attached.sums(), wanted(model, lambda m, i: losses(m(x[i : i + 1])).sum()))
    attached.scope.detach()
