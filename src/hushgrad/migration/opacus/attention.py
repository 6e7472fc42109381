"""Attention as Opacus' `DPMultiheadAttention(batch_first=True)` computes it, for models that were trained with it.

Opacus reshapes what its heads put out, `[B · h, T, d]`, straight to `[B, T, h · d]`. That interleaves heads and
positions. Examples stay apart, so it is no leak, but it is another function than `nn.MultiheadAttention`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hushgrad.errors import UnsupportedModelError


class OpacusAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention(batch_first=True)` with the output that Opacus' layer of that name has.

    Parameters and their names are those of `nn.MultiheadAttention`. Inputs are `[B, T, E]`; masks as there, without
    causal hints. Raises `UnsupportedModelError` for a layer that Opacus' is not (extra biases, time first).
    """

    def __init__(self, like: nn.MultiheadAttention) -> None:
        """Make one of the parameters of `like`: the same objects, so that an optimizer that holds them stays valid."""
        if not like.batch_first or like.bias_k is not None or like.add_zero_attn:
            raise UnsupportedModelError(
                "only attention with batch_first=True, without add_bias_kv and add_zero_attn, was computed in another "
                "way by Opacus",
                where=type(like).__name__,
                cure="Keep nn.MultiheadAttention here",
            )
        super().__init__(
            like.embed_dim,
            like.num_heads,
            like.dropout,
            bias=like.in_proj_bias is not None,
            kdim=like.kdim,
            vdim=like.vdim,
            batch_first=True,
            device="meta",
        )
        for name, parameter in like.named_parameters(recurse=False):
            setattr(self, name, parameter)
        self.out_proj = like.out_proj
        self._qkv_same_embed_dim = False  # else a TransformerEncoderLayer in eval() would run torch's own formula
        self.train(like.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output `[B, T, E]` and, where asked for, the weights `[B, T, S]`, the mean over the heads."""
        (batch, length, _), heads, width = query.shape, self.num_heads, self.head_dim
        if self.in_proj_weight is not None:
            projections = self.in_proj_weight.chunk(3)
        else:
            projections = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(given, weight, bias).reshape(batch, -1, heads, width).transpose(1, 2)
            for given, weight, bias in zip((query, key, value), projections, biases, strict=True)
        )
        scores = (q / math.sqrt(width)) @ k.transpose(-1, -2)  # [B, h, T, S]
        if attn_mask is not None:
            mask = attn_mask if attn_mask.dim() == 2 else attn_mask.reshape(batch, heads, length, -1)
            scores = scores.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        if key_padding_mask is not None:
            mask = key_padding_mask[:, None, None, :]
            scores = scores.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        mixed = (weights @ v).reshape(batch, length, heads * width)  # Opacus' order: the heads are not moved back
        output = self.out_proj(mixed)
        if not need_weights:
            return output, None
        return output, weights.mean(1) if average_attn_weights else weights


def reproduce_attention(model: nn.Module) -> list[str]:
    """Put `OpacusAttention` in the place of every `nn.MultiheadAttention(batch_first=True)` of a model; return where.

    For models that were trained with Opacus, so that they stay the functions that they are. Parameters are the same
    objects as before. Raises `UnsupportedModelError` for a model that is such a layer itself.
    """
    if isinstance(model, nn.MultiheadAttention):
        raise UnsupportedModelError(
            "the model is an attention layer itself, and cannot be put in its own place",
            where=type(model).__name__,
            cure="Make OpacusAttention(model)",
        )
    exchanged = []
    for prefix, part in list(model.named_modules()):
        for name, child in list(part.named_children()):
            is_one = isinstance(child, nn.MultiheadAttention) and not isinstance(child, OpacusAttention)
            if is_one and child.batch_first:
                setattr(part, name, OpacusAttention(child))
                exchanged.append(f"{prefix}.{name}".removeprefix("."))
    return exchanged
