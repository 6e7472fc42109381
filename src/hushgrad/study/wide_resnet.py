"""Wide residual networks that are trained from scratch with noise: group normalisation and standardised weights.

As in De et al. 2022 ("Unlocking high-accuracy differentially private image classification through scale", §3), after
Zagoruyko & Komodakis 2016: three stages of residual blocks, 16, 32 and 64 times `width` channels. Both normalisations
work within one example or within the parameters; batch normalisation would mix examples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from hushgrad.arguments import whole_number
from hushgrad.errors import InvalidArgumentError

STAGES = (16, 32, 64)
GROUPS = 16
EPSILON = 1e-4


class StandardisedConv(nn.Conv2d):
    """A convolution whose weights have mean 0 and variance 1/fan-in in each output channel, times a learned gain.

    Source: Qiao et al. 2019, "Weight standardization"; with the gain of Brock et al. 2021 (arXiv:2101.08692).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, padding=kernel // 2)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return [B, outputs, H/stride, W/stride] for [B, inputs, H, W]."""
        mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
        variance = (self.weight - mean).square().mean(dim=(1, 2, 3), keepdim=True)
        scale = self.gain * torch.rsqrt(variance * self.weight[0].numel() + EPSILON)
        return functional.conv2d(images_BCHW, (self.weight - mean) * scale, self.bias, self.stride, self.padding)


class WideBlock(nn.Module):
    """Two 3×3 convolutions, each after group normalisation and activation, added to their input."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.GroupNorm(GROUPS, inputs), activation())
        self.change = nn.Sequential(
            StandardisedConv(inputs, outputs, 3, stride=stride),
            nn.GroupNorm(GROUPS, outputs),
            activation(),
            StandardisedConv(outputs, outputs, 3),
        )
        self.shortcut = None if inputs == outputs else StandardisedConv(inputs, outputs, 1, stride=stride)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return [B, outputs, H/stride, W/stride] for [B, inputs, H, W]."""
        ready = self.before(images_BCHW)
        kept = images_BCHW if self.shortcut is None else self.shortcut(ready)
        return torch.add(self.change(ready), kept)


def require_sizes(depth: int, width: int) -> None:
    """Raise InvalidArgumentError unless a network has this depth, 6n + 4 layers, and this width."""
    whole_number("width", width, minimum=1)
    if whole_number("depth", depth, minimum=10) % 6 != 4:
        raise InvalidArgumentError(
            f"a wide residual network has 6n + 4 layers, got {depth}", where="depth", cure="Choose 10, 16, 22, 28 or 40"
        )


def wide_resnet(
    channels: int, num_classes: int, *, depth: int, width: int, activation: Callable[[], nn.Module]
) -> nn.Sequential:
    """Return WRN-`depth`-`width`: logits [B, classes] for images [B, channels, H, W]. Raises InvalidArgumentError."""
    require_sizes(depth, width)
    blocks: list[nn.Module] = []
    inputs = STAGES[0]
    for stage, base in enumerate(STAGES):
        for number in range((depth - 4) // 6):
            stride = 2 if stage and not number else 1
            blocks.append(WideBlock(inputs, base * width, stride, activation))
            inputs = base * width
    return nn.Sequential(
        StandardisedConv(channels, STAGES[0], 3),
        *blocks,
        nn.GroupNorm(GROUPS, inputs),
        activation(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(inputs, num_classes),
    )
