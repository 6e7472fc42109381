"""The networks that are trained, in plain torch modules.

Positions are an embedding of ids `[B, T]` and not a bare parameter, because Opacus' hooks see modules only.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(width: int = 1024, depth: int = 2) -> nn.Module:
    """A perceptron 784-`width`-...-10 with `depth` hidden layers: few operations for each parameter."""
    layers: list[nn.Module] = [nn.Flatten()]
    for number in range(depth):
        layers += [nn.Linear(width if number else 784, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


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


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, normalised in groups, as in ResNet-18."""

    def __init__(self, channels: int, out_channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False),
            nn.GroupNorm(groups, out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(groups, out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride, bias=False), nn.GroupNorm(groups, out_channels)
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(self.body(x_BCHW) + self.shortcut(x_BCHW))


def resnet_gn(width: int = 64, blocks: int = 2, groups: int = 16) -> nn.Module:
    """ResNet-18 for images `[B, 3, 32, 32]` (a 3×3 stem, no pooling in front), GroupNorm instead of BatchNorm.

    Four stages of `blocks` blocks with `width`, 2·, 4· and 8·`width` channels.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.GroupNorm(groups, width), nn.ReLU()]
    channels = width
    for stage in range(4):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(ResidualBlock(channels, width << stage, stride, groups))
            channels = width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class Attention(nn.Module):
    """Multi-head self-attention with one packed projection."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.packed: nn.Module = nn.Linear(width, 3 * width)
        self.out: nn.Module = nn.Linear(width, width)

    def forward(self, x_BTd: Tensor) -> Tensor:
        batch, positions, width = x_BTd.shape
        packed = self.packed(x_BTd).view(batch, positions, 3, self.heads, width // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(batch, positions, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A transformer block that normalises in front of its two parts; the second is 4·`width` wide."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), Attention(width, heads, causal=causal)
        self.norm = nn.LayerNorm(width)
        self.up: nn.Module = nn.Linear(width, 4 * width)
        self.down: nn.Module = nn.Linear(4 * width, width)

    def forward(self, x_BTd: Tensor) -> Tensor:
        x_BTd = x_BTd + self.attention(self.attention_norm(x_BTd))
        return x_BTd + self.down(F.gelu(self.up(self.norm(x_BTd))))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """An encoder that classifies sequences, or a decoder that predicts each next token; the head is not tied.

    Args:
        vocabulary: number of tokens.
        classes: of the mean over positions for "encoder"; None for "decoder": logits over the vocabulary at each one.
    """

    def __init__(
        self,
        kind: Literal["encoder", "decoder"],
        *,
        vocabulary: int,
        width: int,
        depth: int,
        positions: int,
        heads: int,
        classes: int = 2,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.blocks = nn.Sequential(*[Block(width, heads, causal=kind == "decoder") for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes) if kind == "encoder" else nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids_BT: Tensor) -> Tensor:
        places_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand(ids_BT.shape).contiguous()
        hidden_BTd = self.norm(self.blocks(self.tokens(ids_BT) + self.positions(places_BT)))
        if self.kind == "encoder":
            return self.head(hidden_BTd.mean(1))  # type: ignore[no-any-return]
        return self.head(hidden_BTd)  # type: ignore[no-any-return]


class LoRALinear(nn.Module):
    """A frozen linear layer and beside it a trainable product of two narrow ones (LoRA); at first it adds nothing."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.narrow = nn.Linear(base.in_features, rank, bias=False)
        self.widen = nn.Linear(rank, base.out_features, bias=False)
        self.scale = scale
        nn.init.zeros_(self.widen.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.widen(self.narrow(x))  # type: ignore[no-any-return]


def with_lora(model: Transformer, rank: int = 8, scale: float = 2.0) -> Transformer:
    """Freeze a transformer and give each linear layer of its blocks a LoRA pair; these and the head are trained."""
    model.requires_grad_(False)
    for block in model.blocks.children():
        for owner in (block.get_submodule("attention"), block):
            for name, layer in list(owner.named_children()):
                if isinstance(layer, nn.Linear):
                    owner.set_submodule(name, LoRALinear(layer, rank, scale))
    model.head.requires_grad_(True)
    return model


def linear_stack(width: int = 16, depth: int = 400) -> nn.Module:
    """`depth` layers `Linear(width, width)`: next to no arithmetic, so that the cost of each call is what shows.

    Orthogonal weights keep the size of activations and gradients over any depth.
    """
    layers = [nn.Linear(width, width) for _ in range(depth)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    return nn.Sequential(*layers)


class TokenCrossEntropy(nn.Module):
    """The mean cross-entropy over the positions of a sequence, and over sequences unless reduction is "none"."""

    def __init__(self, reduction: Literal["none", "mean"] = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, logits_BTv: Tensor, targets_BT: Tensor) -> Tensor:
        losses = F.cross_entropy(
            logits_BTv.flatten(0, 1), targets_BT.flatten(), reduction="mean" if self.reduction == "mean" else "none"
        )
        return losses if self.reduction == "mean" else losses.view(targets_BT.shape).mean(1)
