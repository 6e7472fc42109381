"""A decoder in the shape of Llama 3.2 1B, in plain torch modules: rotary positions, grouped queries, gated MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupedAttention(nn.Module):
    """Causal self-attention in which several query heads share one head of keys and values."""

    def __init__(self, width: int, heads: int, shared_heads: int) -> None:
        super().__init__()
        self.heads, self.shared_heads, self.size = heads, shared_heads, width // heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, shared_heads * self.size, bias=False)
        self.value = nn.Linear(width, shared_heads * self.size, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BTd: Tensor) -> Tensor:
        batch, positions, width = x_BTd.shape
        query = rotated(self.query(x_BTd).view(batch, positions, self.heads, self.size).transpose(1, 2))
        key = rotated(self.key(x_BTd).view(batch, positions, self.shared_heads, self.size).transpose(1, 2))
        value = self.value(x_BTd).view(batch, positions, self.shared_heads, self.size).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, positions, width))  # type: ignore[no-any-return]


def rotated(x_BHTs: Tensor, base: float = 500_000.0) -> Tensor:
    """Return the vectors turned by angles that grow with their position (rotary embedding, halves paired)."""
    half = x_BHTs.shape[3] // 2
    rates = base ** (-torch.arange(half, device=x_BHTs.device, dtype=torch.float32) / half)
    angles_Th = torch.arange(x_BHTs.shape[2], device=x_BHTs.device, dtype=torch.float32)[:, None] * rates
    cosine, sine = angles_Th.cos().to(x_BHTs.dtype), angles_Th.sin().to(x_BHTs.dtype)
    first, second = x_BHTs[..., :half], x_BHTs[..., half:]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class LlamaBlock(nn.Module):
    """Attention and a gated MLP, each behind a root-mean-square norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, shared_heads: int, inner: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(width), GroupedAttention(width, heads, shared_heads)
        self.norm = nn.RMSNorm(width)
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x_BTd: Tensor) -> Tensor:
        x_BTd = x_BTd + self.attention(self.attention_norm(x_BTd))
        normed = self.norm(x_BTd)
        return x_BTd + self.down(F.silu(self.gate(normed)) * self.up(normed))  # type: ignore[no-any-return]


class Llama(nn.Module):
    """Token ids `[B, T]` to logits `[B, T, vocabulary]`; the head is tied to the embedding."""

    def __init__(self, *, vocabulary: int, width: int, depth: int, heads: int, shared_heads: int, inner: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*[LlamaBlock(width, heads, shared_heads, inner) for _ in range(depth)])
        self.norm = nn.RMSNorm(width)

    def forward(self, ids_BT: Tensor) -> Tensor:
        return F.linear(self.norm(self.blocks(self.tokens(ids_BT))), self.tokens.weight)
