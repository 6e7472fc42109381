"""Convolutions of every padding, and of images that are folded into the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_exact, assert_use_is_exact
from torch import Tensor, nn

B = 4


@pytest.mark.parametrize("padding", ["valid", "same", 1, (2, 0)], ids=str)
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4)], ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_every_padding_is_exact(padding: Any, kernel: tuple[int, int]) -> None:
    assert_exact(nn.Conv2d(2, 3, kernel, padding=padding), torch.randn(B, 2, 6, 5))


@pytest.mark.parametrize("extra", [0, 1])
def test_a_transposed_convolution_with_output_padding_as_long_as_a_step_is_exact(extra: int) -> None:
    layer = nn.ConvTranspose1d(2, 4, 3, stride=1 + extra, padding=1, output_padding=extra, dilation=2, groups=2)
    assert_exact(layer, torch.randn(B, 2, 5))


def test_images_folded_into_the_batch_are_summed_within_their_example() -> None:
    def use(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv2d(x.flatten(0, 1), w, b).view(x.shape[0], -1)

    assert_use_is_exact(use, torch.randn(B, 3, 2, 4, 4), w=(2, 2, 3, 3), b=(2,))


def test_arguments_by_name_are_exact() -> None:
    assert_use_is_exact(
        lambda x, w: F.conv1d(input=x, weight=w, stride=2, dilation=2), torch.randn(B, 2, 9), w=(3, 2, 2)
    )
