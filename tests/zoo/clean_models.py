"""Clean models as people write them by hand, each with inputs and what the loss sees of its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Clean:
    """A model, its inputs for a number of examples by keyword or by position, and what the loss sees of its output."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    take: Callable[[Any], Tensor] = lambda out: out


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a model on inputs that are a dictionary of keywords, a tuple, or one tensor."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def rows(inputs: Any, part: slice) -> Any:
    """Return some of the examples of a batch of inputs."""
    if isinstance(inputs, dict):
        return {name: value[part] for name, value in inputs.items()}
    return tuple(value[part] for value in inputs) if isinstance(inputs, (tuple, list)) else inputs[part]


def losses(out: Tensor) -> Tensor:
    """One loss for each example, that treats all values of its output differently."""
    flat = out.flatten(1)
    return (flat * torch.linspace(-1, 2, flat.shape[1], dtype=flat.dtype)).sin().mean(1)


def normal(size: int, *shape: int) -> Tensor:
    return torch.randn(size, *shape)


def images(size: int, channels: int, side: int) -> Tensor:
    return normal(size, channels, side, side)


def ids(size: int, length: int, vocabulary: int) -> Tensor:
    return torch.randint(3, vocabulary, (size, length))


def masks(size: int, length: int) -> Tensor:
    """Attention masks of sequences of several lengths, padded on the right."""
    lengths = torch.arange(size) % 3
    return (torch.arange(length) < (length - lengths).unsqueeze(1)).long()


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


class BasicBlock(nn.Module):
    """A block of ResNet-18 with group normalisation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2, self.relu = _norm(outputs), _norm(outputs), nn.ReLU(inplace=True)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), _norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """A block of ResNet-50, its middle convolution in groups as in ResNeXt."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.narrow, self.norm1 = nn.Conv2d(channels, 4, 1, bias=False), _norm(4)
        self.middle, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=False), _norm(4)
        self.widen, self.norm3 = nn.Conv2d(4, channels, 1, bias=False), _norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.narrow(x)), inplace=True)
        out = F.relu(self.norm2(self.middle(out)), inplace=True)
        return F.relu(self.norm3(self.widen(out)) + x)


def resnet18() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 7, 2, 3, bias=False), _norm(4), nn.ReLU(inplace=True)]
    layers.append(nn.MaxPool2d(3, 2, 1))
    for stage, (inputs, outputs) in enumerate([(4, 4), (4, 6), (6, 8), (8, 10)]):
        layers += [BasicBlock(inputs, outputs, 1 if stage == 0 else 2), BasicBlock(outputs, outputs, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 3))


def resnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Bottleneck(8, 2), Bottleneck(8, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip


class DenseBlock(nn.Module):
    """Layers that see all earlier outputs side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4 + 2 * i, 2, 3, padding=1) for i in range(3))
        self.norms = nn.ModuleList(nn.GroupNorm(1, 4 + 2 * i) for i in range(3))
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer, norm in zip(self.layers, self.norms, strict=True):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        return self.head(torch.cat(features, 1).mean((2, 3)))


class InvertedResidual(nn.Module):
    """MobileNet's block with squeeze and excitation, as EfficientNet has it."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze, self.excite, self.project = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1), nn.Conv2d(8, 4, 1)
        self.norm, self.head = _norm(8), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.hardswish(self.norm(self.depthwise(F.relu6(self.expand(x)))))
        h = h * F.hardsigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(h, 1)))))
        return self.head((x + self.project(h)).flatten(2).mean(-1))


class UNet(nn.Module):
    """Two steps down, two up, skip connections, and a time embedding as in diffusion models."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.up2, self.up1 = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(8, 4, 3, padding=1)
        self.out, self.time = nn.Conv2d(4, 2, 1), nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 16))
        self.norm1, self.norm2 = _norm(4), _norm(8)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.exp(-torch.arange(3) / 3.0)
        scale, shift = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1)).chunk(2, dim=1)
        h1 = F.silu(self.norm1(self.down1(x)))
        h2 = F.silu(self.norm2(self.down2(h1)) * (scale[:, :, None, None] + 1) + shift[:, :, None, None])
        up = self.up2(self.middle(h2))
        return self.out(F.silu(self.up1(torch.cat((up, h1), dim=1))))


class LanguageModel(nn.Module):
    """Word embeddings, two LSTM layers and a head that is tied to the embeddings."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(17, 6), kind(6, 6, 2, batch_first=True, **options)
        self.head = nn.Linear(6, 17)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(tokens))[0])


class PackedClassifier(nn.Module):
    """A bidirectional LSTM over packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(17, 5, padding_idx=0), nn.LSTM(5, 4, bidirectional=True, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(tokens), mask.sum(1).cpu(), batch_first=True, enforce_sorted=False
        )
        _, (h, _) = self.rnn(packed)
        return self.head(torch.cat([h[0], h[1]], dim=1))


class CharacterCNN(nn.Module):
    """Kim's convolutions of several widths over words."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(17, 6)
        self.convs = nn.ModuleList(nn.Conv1d(6, 4, width) for width in (2, 3))
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens).transpose(1, 2)
        return self.head(torch.cat([F.relu(conv(h)).max(dim=2)[0] for conv in self.convs], 1))


class FastText(nn.Module):
    """A bag of words."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(17, 6, mode="mean"), nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.bag(tokens))


class TabTransformer(nn.Module):
    """Categories through a transformer, numbers beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.categories = nn.ModuleList(nn.Embedding(5, 8) for _ in range(3))
        self.column = nn.Parameter(torch.randn(3, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(4), nn.Sequential(nn.Linear(28, 8), nn.SELU(), nn.Linear(8, 2))

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        h = torch.stack([embed(categories[:, i]) for i, embed in enumerate(self.categories)], dim=1) + self.column
        return self.head(torch.cat([self.encoder(h).flatten(1), self.norm(numbers)], dim=1))


class FTTransformer(nn.Module):
    """Each number becomes a token by a weight and a bias of its own; a class token is read out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.randn(4, 8))
        self.cls = nn.Parameter(torch.randn(8))
        self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x[:, :, None] * self.weight[None] + self.bias[None]
        h = torch.cat([self.cls.expand(len(x), 1, -1), h], dim=1)
        h = h + self.attention(*[self.norm(h)] * 3, need_weights=False)[0]
        return self.head(h[:, 0])


class DeepFM(nn.Module):
    """Factorisation machines and a deep part on shared embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.factors = nn.Embedding(20, 1), nn.Embedding(20, 4)
        self.deep = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, fields: Tensor) -> Tensor:
        fields = fields + torch.arange(3) * 5
        v = self.factors(fields)
        pairs = 0.5 * (v.sum(1).pow(2) - v.pow(2).sum(1)).sum(1, keepdim=True)
        return self.bias + self.first(fields).sum(1) + pairs + self.deep(v.flatten(start_dim=1))


class MatrixFactorization(nn.Module):
    """Users, items and their biases."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(7, 4), nn.Embedding(9, 4)
        self.user_bias, self.item_bias, self.mean = nn.Embedding(7, 1), nn.Embedding(9, 1), nn.Parameter(torch.zeros(1))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        score = (self.users(user) * self.items(item)).sum(1)
        return (score + self.user_bias(user).squeeze(1) + self.item_bias(item).squeeze(1) + self.mean).unsqueeze(1)


class CrossNetwork(nn.Module):
    """Deep and cross: x0 · (x w) + b + x."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.ParameterList([nn.Parameter(torch.randn(6, 1) / 3) for _ in range(2)])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(6, 1)) for _ in range(2)])
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x0 = xl = x.unsqueeze(2)
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            xl = torch.matmul(x0, torch.tensordot(xl, kernel, dims=([1], [0]))) + bias + xl
        return self.head(xl.squeeze(dim=2))


class MLPMixer(nn.Module):
    """Patches, mixed over positions and over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm1, self.norm2 = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6), nn.LayerNorm(6)
        self.tokens = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.channels = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = h + self.tokens(self.norm1(h).transpose(1, 2)).transpose(1, 2)
        h = h + self.channels(self.norm2(h))
        return self.head(h.mean(1))


class GatedMLP(nn.Module):
    """gMLP: half of the channels gate the others over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(4, 8), nn.LayerNorm(4), nn.Linear(4, 4)
        self.spatial = nn.Conv1d(5, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.up(x)).chunk(2, dim=-1)
        return self.down(u * self.spatial(self.norm(v))) + x


class Seq2Seq(nn.Module):
    """torch's own transformer, encoder and decoder, time first."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(17, 8), nn.Embedding(6, 8)
        self.transformer = nn.Transformer(8, 2, 1, 1, 12, dropout=0.0, batch_first=batch_first)
        self.head, self.batch_first = nn.Linear(8, 17), batch_first

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        steps = target.shape[1]
        a = self.embed(source) + self.places(torch.arange(source.shape[1]))
        b = self.embed(target) + self.places(torch.arange(steps))
        if not self.batch_first:
            a, b = a.transpose(0, 1), b.transpose(0, 1)
        out = self.transformer(a, b, tgt_mask=nn.Transformer.generate_square_subsequent_mask(steps))
        return self.head(out if self.batch_first else out.transpose(0, 1))


class Autoencoder(nn.Module):
    """Tied encoder and decoder: the decoder is the encoder's matrix, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.hidden = nn.Parameter(torch.randn(4, 9) / 3), nn.Parameter(torch.zeros(4))
        self.visible = nn.Parameter(torch.zeros(9))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.sigmoid(F.linear(x, self.weight, self.hidden)), self.weight.t(), self.visible)


class VariationalAutoencoder(nn.Module):
    """Convolutions down and up, and a sample in between when it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(64, 8))
        self.widen = nn.Linear(4, 64)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.ELU(), nn.Conv2d(3, 1, 3, padding=1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        return {"image": self.decoder(self.widen(z).view(-1, 4, 4, 4)), "mean": mean, "log_variance": log_variance}


class WaveNet(nn.Module):
    """Causal dilated convolutions with gates, skips and residuals, weight-normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, 4, 1)
        self.gates = nn.ModuleList(parametrizations.weight_norm(nn.Conv1d(4, 8, 2, dilation=2**i)) for i in range(3))
        self.residuals = nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in range(3))
        self.skips, self.head = nn.ModuleList(nn.Conv1d(4, 3, 1) for _ in range(3)), nn.PReLU(3)

    def forward(self, x: Tensor) -> Tensor:
        h, total = self.start(x), 0
        for i, gate in enumerate(self.gates):
            filtered, opened = gate(F.pad(h, (2**i, 0))).split(4, 1)
            z = torch.tanh(filtered) * torch.sigmoid(opened)
            h, total = h + self.residuals[i](z), total + self.skips[i](z)
        return self.head(total)


class PointNet(nn.Module):
    """A set of points of each example: shared layers, then the largest over points."""

    def __init__(self) -> None:
        super().__init__()
        self.local, self.head = nn.Sequential(nn.Conv1d(3, 6, 1), nn.ReLU(), nn.Conv1d(6, 8, 1)), nn.Linear(8, 3)

    def forward(self, points: Tensor) -> Tensor:
        return self.head(self.local(points.transpose(2, 1)).max(dim=2, keepdim=True).values.squeeze(-1))


class DeepSets(nn.Module):
    """Frames folded into the batch, then summed for each example again."""

    def __init__(self) -> None:
        super().__init__()
        self.frame, self.head = (
            nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)),
            nn.Linear(4, 2),
        )

    def forward(self, video: Tensor) -> Tensor:
        b, t, *rest = video.shape
        return self.head(self.frame(video.view(b * t, 1, *rest)).view(b, t, -1).sum(dim=1))


class VideoNet(nn.Module):
    """Convolutions over space and time."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), nn.ReLU(), nn.MaxPool3d(2),
            nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1)), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Siamese(nn.Module):
    """One encoder for two inputs of each example."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.compare = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)), nn.Bilinear(4, 4, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.compare(self.encoder(left), self.encoder(right))


class Experts(nn.Module):
    """A soft mixture of experts by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.w1 = nn.Linear(5, 3, bias=False), nn.Parameter(torch.randn(3, 5, 6) / 3)
        self.w2 = nn.Parameter(torch.randn(3, 6, 5) / 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(torch.einsum("bd,edf->bef", x, self.w1))
        return torch.einsum("be,bef,efd->bd", self.gate(x).softmax(-1), h, self.w2)


class Hypernetwork(nn.Module):
    """Weights that another part computes from the example."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.base = nn.Linear(2, 12), nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        return torch.bmm(x.unsqueeze(1), self.make(task).view(-1, 4, 3) + self.base).squeeze(1)


class NeuralODE(nn.Module):
    """One field for several steps."""

    def __init__(self) -> None:
        super().__init__()
        self.field, self.head = nn.Sequential(nn.Linear(5, 8), nn.Softplus(), nn.Linear(8, 4)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for step in range(4):
            t = torch.full_like(x[:, :1], step / 4)
            x = x + 0.25 * self.field(torch.cat((x, t), 1))
        return self.head(x)


class Highway(nn.Module):
    """Carry gates around layers, run under checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)]) for _ in range(2))

    def step(self, pair: nn.ModuleList, x: Tensor) -> Tensor:
        carry = torch.sigmoid(pair[1](x))
        return carry * torch.relu(pair[0](x)) + (1 - carry) * x

    def forward(self, x: Tensor) -> Tensor:
        for pair in self.layers:
            x = checkpoint(self.step, pair, x, use_reentrant=False)
        return x


class Attended(NamedTuple):
    """An output by name."""

    scores: Tensor
    weights: Tensor


class AttentionPooling(nn.Module):
    """Additive attention with a learned query and bias vectors added to keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 2, 4))
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True, kdim=5, vdim=5)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Attended:
        out, weights = self.attend(self.query.expand(x.shape[0], -1, -1), x, x)
        return Attended(self.head(out), weights)


class GraphAttention(nn.Module):
    """A graph for each example, given by its adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.left, self.right = nn.Linear(3, 4, bias=False), nn.Linear(4, 1), nn.Linear(4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = self.mix(x)
        scores = F.leaky_relu(self.left(h) + self.right(h).transpose(1, 2), 0.2)
        weights = scores.masked_fill(adjacency == 0, -1e9).softmax(-1)
        return self.head((weights @ h).mean(1))


class Cell(nn.Module):
    """A cell of torch's run by hand over time, with a mask."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell, self.head = kind(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def _spectral() -> nn.Module:
    model = nn.Sequential(
        parametrizations.spectral_norm(nn.Conv2d(2, 4, 3)), nn.LeakyReLU(0.2), nn.Flatten(),
        parametrizations.orthogonal(nn.Linear(16, 5)), nn.Tanh(), parametrizations.spectral_norm(nn.Linear(5, 1)),
    )  # fmt: skip
    for part in model.modules():
        if isinstance(part, nn.utils.parametrizations._SpectralNorm):
            part.eval()
    return model


def _frozen_backbone() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    model[1].eval()
    model[0].requires_grad_(False)
    return model


CLEAN: dict[str, Clean] = {
    "logistic regression": Clean(lambda: nn.Linear(6, 3), lambda n: normal(n, 6)),
    "MLP": Clean(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)), lambda n: normal(n, 6)
    ),
    "LeNet": Clean(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 5),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(4, 6, 3),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(24, 3),
        ),
        lambda n: images(n, 1, 12),
    ),
    "ResNet-18 with group norm": Clean(resnet18, lambda n: images(n, 3, 32)),
    "ResNeXt blocks": Clean(resnext, lambda n: images(n, 3, 6)),
    "DenseNet block": Clean(DenseBlock, lambda n: images(n, 4, 5)),
    "EfficientNet block": Clean(InvertedResidual, lambda n: images(n, 4, 5)),
    "U-Net with time": Clean(UNet, lambda n: (images(n, 2, 8), torch.rand(n))),
    "LSTM language model, tied": Clean(lambda: LanguageModel(nn.LSTM), lambda n: ids(n, 6, 17)),
    "GRU language model, tied": Clean(lambda: LanguageModel(nn.GRU), lambda n: ids(n, 6, 17)),
    "RNN language model, tied": Clean(lambda: LanguageModel(nn.RNN), lambda n: ids(n, 6, 17)),
    "LSTM without biases": Clean(lambda: LanguageModel(nn.LSTM, bias=False), lambda n: ids(n, 6, 17)),
    "packed bidirectional LSTM": Clean(PackedClassifier, lambda n: (ids(n, 6, 17), masks(n, 6))),
    "LSTM cell by hand": Clean(lambda: Cell(nn.LSTMCell), lambda n: normal(n, 5, 4)),
    "GRU cell by hand": Clean(lambda: Cell(nn.GRUCell), lambda n: normal(n, 5, 4)),
    "convolutions over words": Clean(CharacterCNN, lambda n: ids(n, 6, 17)),
    "bag of words": Clean(FastText, lambda n: ids(n, 6, 17)),
    "TabTransformer": Clean(TabTransformer, lambda n: (torch.randint(0, 5, (n, 3)), normal(n, 4))),
    "FT-Transformer": Clean(FTTransformer, lambda n: normal(n, 4)),
    "DeepFM": Clean(DeepFM, lambda n: torch.randint(0, 5, (n, 3))),
    "matrix factorisation": Clean(
        MatrixFactorization, lambda n: (torch.randint(0, 7, (n,)), torch.randint(0, 9, (n,)))
    ),
    "deep and cross": Clean(CrossNetwork, lambda n: normal(n, 6)),
    "MLP-Mixer": Clean(MLPMixer, lambda n: images(n, 3, 8)),
    "gMLP": Clean(GatedMLP, lambda n: normal(n, 5, 4)),
    "nn.Transformer, batch first": Clean(lambda: Seq2Seq(True), lambda n: (ids(n, 6, 17), ids(n, 4, 17))),
    "nn.Transformer, time first": Clean(lambda: Seq2Seq(False), lambda n: (ids(n, 6, 17), ids(n, 4, 17))),
    "tied autoencoder": Clean(Autoencoder, lambda n: normal(n, 9)),
    "variational autoencoder": Clean(
        VariationalAutoencoder, lambda n: images(n, 1, 8), lambda out: out["image"].flatten(1)
    ),
    "WaveNet": Clean(WaveNet, lambda n: normal(n, 1, 10)),
    "PointNet": Clean(PointNet, lambda n: normal(n, 7, 3)),
    "frames in the batch": Clean(DeepSets, lambda n: normal(n, 3, 4, 4)),
    "3-D convolutions": Clean(VideoNet, lambda n: normal(n, 1, 4, 4, 4)),
    "siamese, bilinear": Clean(Siamese, lambda n: {"left": normal(n, 5), "right": normal(n, 5)}),
    "mixture of experts": Clean(Experts, lambda n: normal(n, 5)),
    "hypernetwork": Clean(Hypernetwork, lambda n: {"x": normal(n, 4), "task": normal(n, 2)}),
    "neural ODE": Clean(NeuralODE, lambda n: normal(n, 4)),
    "highway, checkpointed": Clean(Highway, lambda n: normal(n, 5)),
    "attention pooling": Clean(AttentionPooling, lambda n: normal(n, 3, 5), lambda out: out.scores),
    "graph attention": Clean(
        GraphAttention, lambda n: {"x": normal(n, 5, 3), "adjacency": (torch.rand(n, 5, 5) > 0.5).float()}
    ),
    "spectral and orthogonal": Clean(_spectral, lambda n: images(n, 2, 4)),
    "frozen backbone with batch norm": Clean(_frozen_backbone, lambda n: images(n, 2, 4)),
}
