"""Models that between them use every kind of operator, with a batch and a loss per example for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A model and the shape of one example; ids are drawn below `vocabulary`, other inputs are normal."""

    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    vocabulary: int = 0

    def batch(self, size: int, dtype: torch.dtype) -> Tensor:
        """Draw a batch."""
        if self.vocabulary:
            return torch.randint(0, self.vocabulary, (size, *self.shape))
        return torch.randn(size, *self.shape, dtype=dtype)


def losses(output: Tensor) -> Tensor:
    """One loss for each example, that treats all values of its output differently."""
    flat = output.flatten(1)
    return (flat * torch.linspace(-1, 2, flat.shape[1], dtype=flat.dtype)).sin().sum(1)


class Parameters(nn.Module):
    """A module of bare parameters and a function of them and the batch."""

    def __init__(self, use: Callable[..., Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.use = use
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) + 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """Return `use(x, p, q, ...)`."""
        return self.use(x, *self.parameters())


class Recurrent(nn.Module):
    """A recurrent layer and what is taken from its outputs."""

    def __init__(self, layer: nn.Module, take: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layer, self.take, self.head = layer, take, nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's output."""
        return self.head(self.take(*self.layer(x)))


class Cells(nn.Module):
    """A cell unrolled by hand over time."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's output at the last step."""
        h = x.new_zeros(x.shape[0], 3)
        for x_t in x.transpose(0, 1):
            h = self.cell(x_t, h)
        return self.head(h)


class Tied(nn.Module):
    """Token and position embeddings, and an output head tied to the tokens."""

    def __init__(self, batched_positions: bool) -> None:
        super().__init__()
        self.tokens, self.positions, self.batched = nn.Embedding(7, 4), nn.Embedding(8, 4), batched_positions
        self.norm = nn.LayerNorm(4)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits over tokens."""
        places = torch.arange(ids.shape[1])
        if self.batched:
            places = places.expand_as(ids)
        h = self.norm(self.tokens(ids) + self.positions(places))
        return F.linear(h, self.tokens.weight)


class VisionTokens(nn.Module):
    """A class token and positions, as vision transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 6, 4))
        self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the class token became."""
        h = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        h = h + (h @ h.mT).softmax(-1) @ self.mix(h)
        return self.head(h[:, 0])


class Attention(nn.Module):
    """Self-attention through torch's packed projections."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, **options), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's output and the weights, in one tensor."""
        y = x if self.attention.batch_first else x.transpose(0, 1)
        out, weights = self.attention(y, y, y)
        out = out if self.attention.batch_first else out.transpose(0, 1)
        return torch.cat([self.head(out).flatten(1), weights.flatten(1)], 1)


class Repeated(nn.Module):
    """A module called several times, through other layouts of its input."""

    def __init__(self, layer: nn.Module, calls: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.calls = layer, calls

    def forward(self, x: Tensor) -> Tensor:
        """Run the calls."""
        return self.calls(self.layer, x)


class TwoInputs(nn.Module):
    """A bilinear layer on two views of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.bilinear = nn.Linear(4, 3), nn.Bilinear(3, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the bilinear form."""
        return self.bilinear(self.left(x).tanh(), x)


def _scale(x: Tensor, s: Tensor, *rest: Tensor) -> Tensor:
    x = x.clone()
    x *= s
    x.add_(rest[0])
    x[:, 1:] += rest[1]
    return x


def _rescaled(x: Tensor, p: Tensor) -> Tensor:
    w = (p * 2).view(2, 2, 4).transpose(0, 1)
    w /= 3
    w[0] = 1.0
    w.mul_(p.sum())
    return F.linear(x, w.flatten(0, 1).contiguous())


def _first_row(x: Tensor, p: Tensor) -> Tensor:
    x = x * 2
    x[:, 0] = p
    return x


def _frozen_statistics() -> nn.Module:
    norm = nn.BatchNorm2d(4).eval()
    norm.running_mean = torch.randn(4)
    norm.running_var = torch.rand(4) + 0.5
    return nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.Tanh(), nn.Conv2d(4, 2, 2))


def _partly_frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))
    model[2].requires_grad_(False)
    model[4].weight.requires_grad_(False)
    return model


def _conv(dims: int, **options: object) -> Callable[[], nn.Module]:
    layer = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return lambda: nn.Sequential(layer(4, 6, **options), nn.Tanh(), layer(6, 2, 2))  # type: ignore[arg-type]


def _normal(layer: nn.Module, width: int) -> nn.Module:
    """Give a normalisation weights that are not ones and zeros."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return nn.Sequential(nn.Linear(width, width), layer, nn.Tanh(), nn.Linear(width, 2))


def _images(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return nn.Sequential(nn.Conv2d(2, 4, 2), layer, nn.Tanh(), nn.Conv2d(4, 2, 2))


WIDE = (4, 7)
FLAT = (4,)
SEQUENCE = (5, 4)

CASES: dict[str, Case] = {
    # linear layers
    "mlp": Case(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), FLAT),
    "linear without bias": Case(lambda: nn.Linear(4, 3, bias=False), FLAT),
    "linear, one middle dimension": Case(lambda: nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)), SEQUENCE),
    "linear, three middle dimensions": Case(lambda: nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3)), (2, 1, 3, 4)),
    "linear, short and wide": Case(lambda: nn.Sequential(nn.Linear(32, 40), nn.Tanh(), nn.Linear(40, 32)), (2, 32)),
    "partly frozen": Case(_partly_frozen, FLAT),
    "matmul": Case(lambda: Parameters(lambda x, w, b: x @ w + b, w=(4, 3), b=(3,)), SEQUENCE),
    "transposed weight": Case(lambda: Parameters(lambda x, w: x @ w.t(), w=(3, 4)), SEQUENCE),
    "addmm on folded rows": Case(
        lambda: Parameters(lambda x, w, b: torch.addmm(b, x.reshape(-1, 4), w).view(*x.shape[:2], 3), w=(4, 3), b=(3,)),
        SEQUENCE,
    ),
    "folded rows": Case(
        lambda: Repeated(nn.Linear(4, 3), lambda f, x: f(x.reshape(-1, 4)).reshape(x.shape[0], -1)), SEQUENCE
    ),
    "time first": Case(lambda: Repeated(nn.Linear(4, 3), lambda f, x: f(x.transpose(0, 1)).transpose(0, 1)), SEQUENCE),
    # convolutions
    "conv1d": Case(_conv(1, kernel_size=3), WIDE),
    "conv1d stride padding dilation": Case(_conv(1, kernel_size=2, stride=2, padding=3, dilation=2), WIDE),
    "conv1d same, odd total": Case(_conv(1, kernel_size=4, padding="same"), WIDE),
    "conv1d valid": Case(_conv(1, kernel_size=3, padding="valid", bias=False), WIDE),
    "conv1d circular": Case(_conv(1, kernel_size=3, padding=2, padding_mode="circular"), WIDE),
    "conv1d reflect": Case(_conv(1, kernel_size=3, padding="same", padding_mode="reflect"), WIDE),
    "conv1d replicate": Case(_conv(1, kernel_size=3, padding=1, padding_mode="replicate", groups=2), WIDE),
    "conv2d": Case(_conv(2, kernel_size=3), (4, 5, 6)),
    "conv2d strides that leave a rest": Case(_conv(2, kernel_size=(2, 3), stride=(2, 1), padding=(1, 0)), (4, 6, 5)),
    "conv2d groups": Case(_conv(2, kernel_size=3, padding="same", dilation=2, groups=2), (4, 5, 5)),
    "conv2d zeros same": Case(_conv(2, kernel_size=(2, 3), padding="same"), (4, 4, 5)),
    "conv2d circular": Case(_conv(2, kernel_size=3, padding=(1, 2), padding_mode="circular"), (4, 4, 5)),
    "conv2d depthwise": Case(lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1)), (4, 4, 4)),
    "conv3d": Case(_conv(3, kernel_size=(2, 3, 2), stride=(1, 2, 1), padding=(1, 0, 1)), (4, 3, 6, 3)),
    "conv3d groups same replicate": Case(
        _conv(3, kernel_size=(3, 1, 3), padding="same", padding_mode="replicate", groups=2), (4, 3, 3, 3)
    ),
    "conv on folded frames": Case(
        lambda: Repeated(nn.Conv2d(1, 2, 2), lambda f, x: f(x.reshape(-1, 1, 4, 4)).reshape(x.shape[0], -1)), (3, 4, 4)
    ),
    "conv with pools": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
        ),
        (2, 6, 6),
    ),
    # embeddings
    "embedding": Case(lambda: nn.Sequential(nn.Embedding(6, 4, padding_idx=-6), nn.Linear(4, 3)), (5,), 6),
    "embedding of one id": Case(lambda: nn.Embedding(6, 4), (), 6),
    "embedding bag": Case(lambda: nn.Sequential(nn.EmbeddingBag(6, 4), nn.Linear(4, 2)), (5,), 6),
    "tied head": Case(lambda: Tied(False), (5,), 7),
    "tied head, positions for each example": Case(lambda: Tied(True), (8,), 7),
    # normalisations
    "layer norm": Case(lambda: _normal(nn.LayerNorm(4), 4), SEQUENCE),
    "layer norm over two": Case(lambda: _normal(nn.LayerNorm([5, 4]), 4), SEQUENCE),
    "layer norm without bias": Case(lambda: _normal(nn.LayerNorm(4, bias=False), 4), FLAT),
    "layer norm without affine": Case(lambda: _normal(nn.LayerNorm(4, elementwise_affine=False), 4), FLAT),
    "layer norm, time first": Case(
        lambda: Repeated(nn.LayerNorm(4), lambda f, x: f(x.transpose(0, 1)).transpose(0, 1)), SEQUENCE
    ),
    "group norm": Case(lambda: _images(nn.GroupNorm(2, 4)), (2, 4, 4)),
    "group norm of channels": Case(lambda: _normal(nn.GroupNorm(2, 4), 4), FLAT),
    "group norm without affine": Case(lambda: _images(nn.GroupNorm(2, 4, affine=False)), (2, 4, 4)),
    "instance norm": Case(lambda: _images(nn.InstanceNorm2d(4, affine=True)), (2, 4, 4)),
    "instance norm 1d": Case(lambda: nn.Sequential(nn.InstanceNorm1d(4, affine=True), nn.Conv1d(4, 2, 3)), WIDE),
    "rms norm": Case(lambda: _normal(nn.RMSNorm(4), 4), SEQUENCE),
    "frozen batch norm": Case(_frozen_statistics, (2, 5, 5)),
    # bare parameters
    "[d] added": Case(lambda: Parameters(lambda x, p: (x + p).tanh(), p=(4,)), SEQUENCE),
    "[T, d] added": Case(lambda: Parameters(lambda x, p: (p + x).tanh(), p=(5, 4)), SEQUENCE),
    "[1, T, d] subtracted": Case(
        lambda: Parameters(lambda x, p, q: (x - p) * (q - x), p=(1, 5, 4), q=(1, 1, 4)), SEQUENCE
    ),
    "[T, 1] multiplied": Case(lambda: Parameters(lambda x, p: x * p, p=(5, 1)), SEQUENCE),
    "scalars": Case(lambda: Parameters(lambda x, p, q: (x * p + q).tanh(), p=(), q=(1,)), SEQUENCE),
    "divided": Case(lambda: Parameters(lambda x, p, q: x / (p**2 + 1) + q / (x**2 + 1), p=(4,), q=(5, 1)), SEQUENCE),
    "pow": Case(lambda: Parameters(lambda x, p: (x.abs() + 1) ** p + torch.pow(p.abs() + 1, x), p=(4,)), SEQUENCE),
    "in place on data": Case(lambda: Parameters(_scale, s=(4,), a=(5, 4), c=(1, 1, 4)), SEQUENCE),
    "assigned": Case(lambda: Parameters(_first_row, p=(4,)), SEQUENCE),
    "where and maximum": Case(
        lambda: Parameters(lambda x, p, q: torch.where(x > 0, p * x, q) + torch.maximum(x, q), p=(4,), q=(5, 4)),
        SEQUENCE,
    ),
    "parameter and itself": Case(lambda: Parameters(lambda x, p: x * p + p * p + (x @ p)[:, None], p=(4,)), FLAT),
    "stacked rows": Case(lambda: Parameters(lambda x, p: torch.cat([x, p.expand_as(x) * x], -1), p=(4,)), SEQUENCE),
    "class token": Case(VisionTokens, SEQUENCE),
    "gradient through a view of a parameter": Case(
        lambda: Parameters(lambda x, p: x @ p[:, :2] + x[..., :2] * p[0, 1:3], p=(4, 3)), SEQUENCE
    ),
    "derived, then changed in place": Case(lambda: Parameters(_rescaled, p=(4, 4)), SEQUENCE),
    "fourier": Case(
        lambda: Parameters(lambda x, p: torch.fft.fftn(torch.fft.rfft(x * p), dim=(1, 2)).real, p=(4,)), SEQUENCE
    ),
    "rows of a parameter by iteration": Case(
        lambda: Parameters(lambda x, p: sum((x * row).sin() for row in p), p=(3, 4)), SEQUENCE
    ),
    "derived with dropout-like masks": Case(
        lambda: Parameters(lambda x, p: F.linear(x, p.masked_fill(p > 0.5, 0.0)), p=(3, 4)), SEQUENCE
    ),
    "bare parameters on folded rows": Case(
        lambda: Parameters(lambda x, p, q: ((x.reshape(-1, 4) * p + q).tanh()).view(x.shape), p=(4,), q=(1, 1)),
        SEQUENCE,
    ),
    "norms on folded rows": Case(
        lambda: Repeated(
            nn.Sequential(nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4)),
            lambda f, x: f(x.flatten(0, 1)).view(x.shape),
        ),
        SEQUENCE,
    ),
    "embedding of folded ids": Case(
        lambda: Repeated(nn.Embedding(6, 4), lambda f, ids: f(ids.reshape(-1)).view(ids.shape[0], -1)), (5,), 6
    ),
    "rows repeated for each example": Case(
        lambda: Parameters(lambda x, p: (x.reshape(-1, 4) * p.repeat(x.shape[0], 1)).view(x.shape), p=(5, 4)), SEQUENCE
    ),
    # modules called several times, and together
    "called three times": Case(lambda: Repeated(nn.Linear(4, 4), lambda f, x: f(f(f(x).tanh()).tanh())), FLAT),
    "called on different shapes": Case(
        lambda: Repeated(
            nn.Linear(4, 4), lambda f, x: f(x).mean(1) + f(x[:, 0]) + f(x.flatten(0, 1)).sum(-1).view(-1, 5)[:, :4]
        ),
        SEQUENCE,
    ),
    "conv called twice": Case(
        lambda: Repeated(nn.Conv1d(4, 4, 3, padding=1), lambda f, x: f(f(x).tanh()[:, :, ::2])), WIDE
    ),
    # without a rule of their own
    "bilinear": Case(TwoInputs, FLAT),
    "prelu": Case(lambda: nn.Sequential(nn.Linear(4, 3), nn.PReLU(3), nn.Linear(3, 2)), FLAT),
    "einsum": Case(lambda: Parameters(lambda x, p: torch.einsum("btd,dhk->bhtk", x, p), p=(4, 2, 3)), SEQUENCE),
    "tensordot": Case(
        lambda: Parameters(lambda x, p, q: torch.tensordot(x, p, dims=1).tanh() * q, p=(4, 3), q=(3,)), SEQUENCE
    ),
    "baddbmm": Case(
        lambda: Parameters(lambda x, p: (x * p).baddbmm(batch1=x @ x.mT, batch2=x * p, beta=0.5, alpha=2.0), p=(4,)),
        SEQUENCE,
    ),
    "bmm": Case(lambda: Parameters(lambda x, p: torch.bmm(x, p.expand(x.shape[0], -1, -1)), p=(4, 3)), SEQUENCE),
    "conv transpose": Case(
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.Tanh(), nn.Conv2d(3, 1, 2)), (2, 3, 3)
    ),
    "conv transpose 1d": Case(lambda: nn.ConvTranspose1d(4, 2, 3, stride=2, output_padding=1), WIDE),
    "lstm": Case(
        lambda: Recurrent(nn.LSTM(4, 3, batch_first=True), lambda out, state: out + state[0][-1].unsqueeze(1)), SEQUENCE
    ),
    "gru, two layers": Case(
        lambda: Recurrent(nn.GRU(4, 3, 2, batch_first=True), lambda out, h: out + h[0][:, None]), SEQUENCE
    ),
    "gru cell": Case(lambda: Cells(nn.GRUCell(4, 3)), SEQUENCE),
    "rnn cell": Case(lambda: Cells(nn.RNNCell(4, 3)), SEQUENCE),
    "attention": Case(lambda: Attention(batch_first=True), SEQUENCE),
    "attention, time first": Case(lambda: Attention(), SEQUENCE),
    "encoder layer": Case(lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True), SEQUENCE),
    "weight norm": Case(
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2)), FLAT
    ),
    "spectral norm": Case(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)).eval(), FLAT),
}
