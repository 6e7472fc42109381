"""Normalisation: what each example's own statistics allow is exact, what the batch's would need is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from attached import Attached, Model, assert_same, losses, wanted
from attached import B as BATCH
from oracle import assert_exact, assert_use_is_exact
from torch import nn

from hushgrad.errors import CrossSampleLeakError, PrivateBufferError

B, C, S = 4, 6, 5


@pytest.mark.parametrize(
    "layer",
    [
        nn.GroupNorm(3, C),
        nn.InstanceNorm1d(C, affine=True),
        nn.BatchNorm1d(C).eval(),
        nn.InstanceNorm1d(C, affine=True, track_running_stats=True).eval(),
    ],
    ids=lambda layer: type(layer).__name__ + ("" if layer.training else " frozen"),
)
def test_scale_and_shift_per_channel_are_exact(layer: nn.Module) -> None:
    assert_exact(layer, torch.randn(B, C, S))


def test_one_place_whose_channels_seem_to_lie_last_is_exact() -> None:
    """What a pooling to one place gives. torch's own kernels read outside of their memory there."""
    plain = torch.randn(BATCH, C, 1, 1, dtype=torch.float64)
    x = plain.as_strided(plain.shape, (C, 1, C, C))
    assert x.is_contiguous(memory_format=torch.channels_last)
    attached = Attached(Model(lambda m, x: m.norm(x).flatten(1), norm=nn.GroupNorm(3, C)).double())
    losses(attached.model(x)).sum().backward()
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m.norm(plain[i : i + 1]).flatten(1)).sum()))
    attached.scope.detach()


@pytest.mark.parametrize("norm", [F.layer_norm, F.rms_norm], ids=lambda norm: norm.__name__)
def test_a_batch_on_another_axis_is_exact(norm: object) -> None:
    def use(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return norm(x.transpose(0, 1), [C], w).transpose(0, 1)  # type: ignore[operator]

    assert_use_is_exact(use, torch.randn(B, S, C), w=(C,))


@pytest.mark.parametrize(
    ("layer", "error", "cure"),
    [
        (nn.BatchNorm1d(C), CrossSampleLeakError, "GroupNorm"),
        (nn.BatchNorm1d(C, affine=False), CrossSampleLeakError, "GroupNorm"),
        (nn.InstanceNorm1d(C, track_running_stats=True), PrivateBufferError, "track_running_stats=False"),
    ],
)
def test_statistics_of_the_batch_are_refused_with_or_without_parameters(
    layer: nn.Module, error: type[Exception], cure: str
) -> None:
    attached = Attached(Model(lambda m, x: m.layer(m.first(x)), first=nn.Conv1d(C, C, 1), layer=layer), B)
    with pytest.raises(error) as raised:
        attached.model(torch.randn(B, C, S))
    assert cure in raised.value.cure  # type: ignore[attr-defined]
    attached.scope.detach()
