"""The ways in which published models are commonly written are exact and not refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import losses
from measure import captured, clipped, distance, norm_of, reference
from torch import Tensor, nn

from hushgrad.clipping.flat import FlatClipping
from hushgrad.gradients.oracle import clipped_sum_of


class Llama(nn.Module):
    """Rotary positions, grouped queries, a causal mask, SwiGLU, RMS norms."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(9, 8), nn.RMSNorm(8)
        self.q, self.kv, self.out = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.gate_up, self.down = nn.Linear(8, 12), nn.Linear(6, 8)

    def rotated(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1], dtype=x.dtype)
        left, right = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat((-right, left), dim=-1) * angles.sin()

    def forward(self, ids: Tensor) -> Tensor:
        h = self.tokens(ids)
        batch, steps, _ = h.shape
        n = self.norm(h)
        q = self.rotated(self.q(n).view(batch, steps, 2, 4).transpose(1, 2))
        k, v = self.kv(n).view(batch, steps, 2, 1, 4).permute(2, 0, 3, 1, 4)
        k = self.rotated(k)[:, :, None].expand(batch, 1, 2, steps, 4).reshape(batch, 2, steps, 4)
        v = v.repeat_interleave(2, dim=1)
        scores = q @ k.transpose(2, 3) / 2
        mask = torch.full((steps, steps), float("-inf")).triu(1)
        h = h + self.out(((scores + mask).softmax(-1) @ v).transpose(1, 2).contiguous().view(batch, steps, 8))
        gate, up = self.gate_up(h).split(6, dim=-1)
        h = h + self.down(F.silu(gate) * up)
        return F.linear(h[:, -1, :], self.tokens.weight)


class Bert(nn.Module):
    """Padding masks from the ids, relative position biases, a masked mean."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.bias = nn.Embedding(9, 4, padding_idx=0), nn.Embedding(6, 2)
        self.mix, self.norm, self.head = nn.Linear(4, 8), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.tokens(ids)
        steps = ids.size(1)
        keep = (ids != 0).to(h.dtype)
        relative = torch.arange(steps)[:, None] - torch.arange(steps)[None, :]
        bias = self.bias(relative.clamp(-2, 3) + 2).permute([2, 0, 1]).unsqueeze(0)
        scores = torch.einsum("bqd,bkd->bqk", h, h)[:, None] + bias + (1.0 - keep[:, None, None, :]) * -1e4
        values = self.mix(h).view(*ids.shape, 2, 4).permute(0, 2, 1, 3)
        h = self.norm(h + torch.matmul(scores.softmax(dim=-1), values).mean(dim=1))
        return self.head((h * keep.unsqueeze(-1)).sum(1) / keep.sum(1, keepdim=True).clamp(min=1))


class GPT2(nn.Module):
    """`addmm` on flattened inputs, learned positions by slicing, the last token by its index."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(12, 4))
        self.weight, self.shift = nn.Parameter(torch.randn(4, 12)), nn.Parameter(torch.randn(12))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.places[: x.shape[1]]
        out = torch.addmm(self.shift, h.view(-1, h.size(-1)), self.weight).view((*h.size()[:-1], 12))
        q, k, v = out.split(4, dim=2)
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True).squeeze(1)
        last = (x[..., 0] > 0).sum(1).clamp(max=x.shape[1] - 1)
        return self.head(h[torch.arange(h.shape[0]), last])


class ViT(nn.Module):
    """Patches by convolution, a class token, positions, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(2, 4, 2, stride=2), nn.Parameter(torch.zeros(1, 1, 4))
        self.places, self.gamma = nn.Parameter(torch.randn(1, 5, 4)), nn.Parameter(1e-2 * torch.ones(4))
        self.block, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat((self.token.expand(h.shape[0], -1, -1), h), dim=1) + self.places
        return self.head((h + self.gamma * self.block(h))[:, 1:].mean(dim=1))


class ConvNeXt(nn.Module):
    """Depthwise convolution, channels last, squeeze and excitation, a residual that is scaled in place."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.LayerNorm(4)
        self.wide, self.squeeze, self.excite = nn.Linear(4, 8), nn.Linear(8, 2), nn.Conv2d(2, 8, 1)
        self.narrow, self.scale = nn.Conv2d(8, 4, 1), nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = F.gelu(self.wide(h)).permute(0, 3, 1, 2)
        gate = self.squeeze(F.adaptive_avg_pool2d(h, 1).flatten(1)).relu_()
        h = h * torch.sigmoid(self.excite(gate[:, :, None, None]))
        h = self.narrow(h)
        h *= self.scale
        return F.avg_pool2d(x + h, 2)


class UNet(nn.Module):
    """Down, up and a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.out = nn.Conv2d(2, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 2, 2), nn.Conv2d(6, 1, 1)
        self.norm, self.embed = nn.GroupNorm(2, 4), nn.Linear(1, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(self.norm(self.down(x)), 2)
        scale, shift = self.embed(x.mean((1, 2, 3))[:, None]).chunk(2, 1)
        h = h * (1 + scale[..., None, None]) + shift[:, :, None, None]
        up = self.up(h) + F.interpolate(h, scale_factor=2, mode="nearest")
        return self.out(torch.cat([F.pad(up, (0, 0, 0, 0)), x], dim=1))


class LoRA(nn.Module):
    """A frozen layer with low-rank factors, once beside it and once merged into it."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.frozen(x) + F.linear(F.linear(x, self.a), self.b) * 0.5
        return F.linear(h.tanh(), self.frozen.weight + self.b @ self.a, self.frozen.bias)


class Unrolled(nn.Module):
    """A recurrent cell written by hand, its states written into a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.x2h, self.h2h, self.start = nn.Linear(4, 6), nn.Linear(3, 6), nn.Parameter(torch.randn(3))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.start.expand(x.size(0), -1)
        states = torch.zeros(x.size(0), x.size(1), 3, dtype=x.dtype)
        for t in range(x.size(1)):
            gate, new = torch.chunk(self.x2h(x[:, t]) + self.h2h(h), 2, dim=-1)
            h = torch.sigmoid(gate) * h + (1 - gate.sigmoid()) * torch.tanh(new)
            states[:, t] = h
        return self.head(states).flatten(1)


class Fairseq(nn.Module):
    """Time first, heads folded into the batch behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
        self.inner, self.scale = nn.Linear(2, 2), nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        steps, batch, width = x.shape
        q, k, v = (part.reshape(steps, batch * 2, 2) * self.scale for part in self.qkv(x).chunk(3, -1))
        q, k, v = (part.transpose(0, 1) for part in (self.inner(q), k, v))
        h = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        h = h.transpose(0, 1).contiguous().view(steps, batch, width)
        return self.out(h).transpose(0, 1)


IDIOMS: dict[str, tuple[type[nn.Module], tuple[int, ...], int]] = {
    "llama": (Llama, (5,), 9),
    "bert": (Bert, (5,), 9),
    "gpt2": (GPT2, (5, 4), 0),
    "fairseq": (Fairseq, (3, 4), 0),
    "vit": (ViT, (2, 4, 4), 0),
    "convnext": (ConvNeXt, (4, 4, 4), 0),
    "unet": (UNet, (2, 4, 4), 0),
    "lora": (LoRA, (3, 4), 0),
    "unrolled": (Unrolled, (5, 4), 0),
}


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("name", IDIOMS)
def test_a_common_idiom_is_summed_exactly(name: str, size: int) -> None:
    """Also where there are as many examples as time steps, heads or channels."""
    kind, shape, vocabulary = IDIOMS[name]
    model = kind().double()
    batch = torch.randint(1, vocabulary, (size, *shape)) if vocabulary else torch.randn(size, *shape).double()
    per_example = reference(model, batch, losses)
    limit = float(norm_of(per_example).median())
    found = clipped(captured(model, batch, losses), limit)
    assert distance(found, clipped_sum_of(per_example, FlatClipping(limit))) <= 1e-10
