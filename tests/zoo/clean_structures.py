"""Structures of models and loops, one by one, so that what works can be shown for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from clean_models import Attended, call, losses, normal
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

B, T, D = 5, 4, 4

Program = Callable[[nn.Module, Any], None]


class Given(nn.Module):
    """A module whose parts and forward are given."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def one_backward(model: nn.Module, inputs: Any) -> None:
    """The ordinary program: a forward and a backward."""
    losses(call(model, inputs)).sum().backward()


@dataclass(frozen=True)
class Structure:
    """A model, its inputs for B examples, and what a loop does with both."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    program: Program = one_backward
    batch_first: bool = True


def vectors(size: int) -> Tensor:
    return normal(size, D).double()


def sequences(size: int) -> Tensor:
    return normal(size, T, D).double()


def pictures(dims: int) -> Callable[[int], Tensor]:
    return lambda size: normal(size, 2, *[5] * dims).double()


def tokens(size: int) -> Tensor:
    return torch.arange(size * T).reshape(size, T).remainder(7)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / 2)


def on_vectors(make: Callable[[], nn.Module], **options: Any) -> Structure:
    return Structure(make, vectors, **options)


def bare(forward: Callable[..., Any], *shape: int, inputs: Callable[[int], Any] = sequences) -> Structure:
    return Structure(lambda: Given(forward, head=nn.Linear(D, D), p=parameter(*shape)), inputs)


def spatial(layer: type[nn.Module], dims: int, **options: Any) -> Structure:
    return Structure(lambda: nn.Sequential(layer(2, 4, 3, **options), nn.Tanh(), nn.Flatten()), pictures(dims))


def normalised(layer: Callable[[], nn.Module], dims: int = 2) -> Structure:
    def make() -> nn.Module:
        conv: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        return nn.Sequential(conv(2, 4, 2), layer(), nn.Tanh(), nn.Flatten())

    return Structure(make, pictures(dims))


def recurrent(layer: type[nn.RNNBase], **options: Any) -> Structure:
    def forward(m: Given, x: Tensor) -> Tensor:
        y = x if m.layer.batch_first else x.transpose(0, 1)
        out, state = m.layer(y)
        out = out if m.layer.batch_first else out.transpose(0, 1)
        return torch.cat([out.flatten(1), (state[0] if isinstance(state, tuple) else state)[-1]], 1)

    first = options.pop("batch_first", True)
    return Structure(
        lambda: Given(forward, layer=layer(D, 3, batch_first=first, **options)), sequences, batch_first=first
    )


def _packed(m: Given, x: Tensor) -> Tensor:
    lengths = (x[:, :, 0] > -9).sum(1)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return m.layer(packed)[1][0][-1]


def _padded(size: int) -> Tensor:
    x = sequences(size)
    for row in range(size):
        x[row, row % 3 + 1 :] = -10
    return x


def attention(batch_first: bool = True, **options: Any) -> Structure:
    def forward(m: Given, x: Tensor) -> Tensor:
        y = x if batch_first else x.transpose(0, 1)
        out, weights = m.attend(y, y, y)
        return torch.cat([(out if batch_first else out.transpose(0, 1)).flatten(1), weights.flatten(1)], 1)

    make = lambda: Given(forward, attend=nn.MultiheadAttention(D, 2, batch_first=batch_first, **options))  # noqa: E731
    return Structure(make, sequences, batch_first=batch_first)


def _masked(m: Given, x: Tensor) -> Tensor:
    mask = nn.Transformer.generate_square_subsequent_mask(T).to(x.dtype)
    return m.attend(x, x, x, key_padding_mask=torch.zeros(x.shape[:2], dtype=x.dtype), attn_mask=mask)[0]


def lora(merged: bool = False) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import peft

        config = peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)
        model = peft.get_peft_model(nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, 3)), config)
        return model.merge_and_unload().requires_grad_(True) if merged else model

    return make


def _merged_by_hand(m: Given, x: Tensor) -> Tensor:
    return F.linear(x, m.frozen.weight + m.b @ m.a)


def pair() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 3))


def _frozen(model: nn.Module, *names: str) -> nn.Module:
    for name, value in model.named_parameters():
        if name in names:
            value.requires_grad_(False)
    return model


def _tied() -> nn.Module:
    model = Given(lambda m, x: m.out(m.embed(x).tanh()), embed=nn.Embedding(7, D), out=nn.Linear(D, 7, bias=False))
    model.out.weight = model.embed.weight
    return model


# Programs ----------------------------------------------------------------------------------------------------------


def two_forwards(order: tuple[int, int]) -> Program:
    def program(model: nn.Module, x: Tensor) -> None:
        found = [losses(model(part)).sum() for part in (x, x.flip(-1))]
        for place in order:
            found[place].backward()

    return program


def two_backwards(model: nn.Module, x: Tensor) -> None:
    out = model(x)
    losses(out).sum().backward(retain_graph=True)
    out.square().sum().backward()


def eval_forward(model: nn.Module, x: Tensor) -> None:
    losses(model(x)).sum().backward()
    model.eval()
    loss = losses(model(x)).sum()
    model.train()
    loss.backward()


def input_gradient_first(model: nn.Module, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    loss = losses(model(x)).sum()
    torch.autograd.grad(loss, x, retain_graph=True)
    loss.backward()


def looked_at_in_between(model: nn.Module, x: Tensor) -> None:
    loss = losses(model(x)).sum()
    with torch.no_grad():
        model(x * 2)
    model(x * 3)  # with gradients, never run backward
    loss.backward()


def gradient_penalty(model: nn.Module, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    loss = losses(model(x)).sum()
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (loss + slope.square().sum()).backward()


def checkpointed(reentrant: bool) -> Structure:
    def forward(m: Given, x: Tensor) -> Tensor:
        return m.head(checkpoint(m.block, m.stem(x), use_reentrant=reentrant))

    return on_vectors(lambda: Given(forward, stem=nn.Linear(D, D), block=pair(), head=nn.Linear(3, 2)))


def autocast(model: nn.Module, x: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    losses(out.float()).sum().backward()


def fp16(model: nn.Module, x: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.float16):
        out = model(x)
    losses(out.float()).sum().backward()


def bf16(model: nn.Module, x: Tensor) -> None:
    losses(model.to(torch.bfloat16)(x.to(torch.bfloat16)).float()).sum().backward()


def compiled(model: nn.Module, x: Tensor) -> None:
    torch._dynamo.reset()
    losses(torch.compile(model, backend="eager")(x)).sum().backward()


class Product(torch.autograd.Function):
    """A custom function of data and a weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient @ weight.T, x.T @ gradient


def named(forward: Callable[..., Any], take: Callable[[Any], Tensor]) -> Structure:
    def program(model: nn.Module, x: Any) -> None:
        losses(take(call(model, x))).sum().backward()

    return on_vectors(lambda: Given(forward, a=nn.Linear(D, 3), b=nn.Linear(D, 3)), program=program)


SINGLE = (autocast, fp16, bf16)
"""Programs in 16 bits: compared within the error of that precision."""

LAYERS: dict[str, Structure] = {
    "`Linear`": on_vectors(pair),
    "`Linear` on `[B, T, d]`": Structure(pair, sequences),
    "`Conv1d`": spatial(nn.Conv1d, 1, padding="same"),
    "`Conv2d`, stride, dilation, groups": spatial(nn.Conv2d, 2, stride=2, padding=2, dilation=2, groups=2),
    "`Conv2d`, circular padding": spatial(nn.Conv2d, 2, padding=1, padding_mode="circular"),
    "`Conv3d`": spatial(nn.Conv3d, 3),
    "`ConvTranspose1d`": spatial(nn.ConvTranspose1d, 1, stride=2, output_padding=1),
    "`ConvTranspose2d`": spatial(nn.ConvTranspose2d, 2, stride=2, padding=1),
    "`ConvTranspose3d`": spatial(nn.ConvTranspose3d, 3),
    "`Bilinear`": Structure(lambda: nn.Bilinear(D, D, 3), lambda n: (vectors(n), vectors(n))),
    "`PReLU`": on_vectors(lambda: nn.Sequential(nn.Linear(D, 3), nn.PReLU(3))),
    "`Embedding`, `padding_idx`": Structure(lambda: nn.Embedding(7, D, padding_idx=0), tokens),
    "`EmbeddingBag`, sum": Structure(lambda: nn.EmbeddingBag(7, D, mode="sum"), tokens),
    "`EmbeddingBag`, mean": Structure(lambda: nn.EmbeddingBag(7, D, mode="mean"), tokens),
    "`EmbeddingBag`, max": Structure(lambda: nn.EmbeddingBag(7, D, mode="max"), tokens),
    "`EmbeddingBag`, `padding_idx`": Structure(lambda: nn.EmbeddingBag(7, D, padding_idx=1), tokens),
    "`EmbeddingBag`, `per_sample_weights`": Structure(
        lambda: nn.EmbeddingBag(7, D, mode="sum"),
        lambda n: {"input": tokens(n), "per_sample_weights": sequences(n)[..., 0]},
    ),
    "`LayerNorm`": normalised(lambda: nn.LayerNorm([4, 4, 4])),
    "`GroupNorm`": normalised(lambda: nn.GroupNorm(2, 4)),
    "`InstanceNorm2d`": normalised(lambda: nn.InstanceNorm2d(4, affine=True)),
    "`RMSNorm`": normalised(lambda: nn.RMSNorm([4, 4, 4])),
    "`BatchNorm2d` in training": normalised(lambda: nn.BatchNorm2d(4)),
    "`BatchNorm2d` in `eval()`": normalised(lambda: nn.BatchNorm2d(4).eval()),
    "`MultiheadAttention`": attention(),
    "`MultiheadAttention`, `batch_first=False`": attention(batch_first=False),
    "`MultiheadAttention`, masks": Structure(
        lambda: Given(_masked, attend=nn.MultiheadAttention(D, 2, batch_first=True)), sequences
    ),
    "`MultiheadAttention`, `add_bias_kv`": attention(add_bias_kv=True),
    "`MultiheadAttention`, `kdim`, `vdim`": Structure(
        lambda: Given(
            lambda m, x: m.attend(x, m.k(x), m.v(x))[0],
            attend=nn.MultiheadAttention(D, 2, kdim=3, vdim=5, batch_first=True),
            k=nn.Linear(D, 3),
            v=nn.Linear(D, 5),
        ),
        sequences,
    ),
    "`TransformerEncoderLayer`": Structure(
        lambda: nn.TransformerEncoderLayer(D, 2, 6, dropout=0.0, batch_first=True), sequences
    ),
    "`TransformerDecoderLayer`": Structure(
        lambda: nn.TransformerDecoderLayer(D, 2, 6, dropout=0.0, batch_first=True),
        lambda n: (sequences(n), sequences(n)),
    ),
    "`LSTM`": recurrent(nn.LSTM),
    "`LSTM`, two layers, both directions": recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "`LSTM`, projection": recurrent(nn.LSTM, proj_size=2),
    "`LSTM`, `batch_first=False`": recurrent(nn.LSTM, batch_first=False),
    "`LSTM`, packed sequences": Structure(lambda: Given(_packed, layer=nn.LSTM(D, 3, batch_first=True)), _padded),
    "`GRU`": recurrent(nn.GRU),
    "`RNN`": recurrent(nn.RNN),
    "`GRUCell`": on_vectors(lambda: Given(lambda m, x: m.cell(x, m.cell(x)), cell=nn.GRUCell(D, 3))),
}

OPERATORS: dict[str, Structure] = {
    "`F.linear` with a parameter": bare(lambda m, x: F.linear(m.head(x), m.p), 3, D),
    "`x @ W`": bare(lambda m, x: m.head(x) @ m.p, D, 3),
    "`einsum`": bare(lambda m, x: torch.einsum("btd,dhk->bhtk", m.head(x), m.p), D, 2, 3),
    "`addmm` on folded rows": bare(lambda m, x: torch.addmm(m.head.bias, x.reshape(-1, D), m.p).view(x.shape), D, D),
    "a scale and a shift": bare(lambda m, x: m.head(x) * m.p + m.p, D),
    "position embeddings, class token": bare(
        lambda m, x: m.head(torch.cat([m.p[:, :1].expand(len(x), -1, -1), x], 1) + m.p), 1, T + 1, D
    ),
    "an embedding of `[1, T]` positions": Structure(
        lambda: Given(lambda m, x: x + m.e(torch.arange(T)[None]), e=nn.Embedding(T, D)), sequences
    ),
    "tied by module": Structure(_tied, tokens),
    "tied by function": Structure(
        lambda: Given(lambda m, x: F.linear(m.e(x).tanh(), m.e.weight), e=nn.Embedding(7, D)), tokens
    ),
    "one module called three times": on_vectors(
        lambda: Given(lambda m, x: m.f(m.f(m.f(x).tanh()).tanh()), f=nn.Linear(D, D))
    ),
    "an unused parameter": on_vectors(lambda: Given(lambda m, x: m.a(x), a=nn.Linear(D, 3), b=nn.Linear(D, 3))),
    "weight norm": on_vectors(lambda: parametrizations.weight_norm(nn.Linear(D, 3))),
    "spectral norm in `eval()`": on_vectors(lambda: parametrizations.spectral_norm(nn.Linear(D, 3)).eval()),
    "orthogonal": on_vectors(lambda: parametrizations.orthogonal(nn.Linear(D, D))),
    "LoRA through `peft`": on_vectors(lora()),
    "LoRA merged through `peft`": on_vectors(lora(merged=True)),
    "LoRA merged in the forward": on_vectors(
        lambda: Given(
            _merged_by_hand, frozen=nn.Linear(D, 3).requires_grad_(False), a=parameter(2, D), b=parameter(3, 2)
        )
    ),
    "frozen parts": on_vectors(lambda: _frozen(pair(), "0.weight", "2.bias")),
    "ReLU in place": on_vectors(lambda: nn.Sequential(nn.Linear(D, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))),
    "a custom autograd function of a parameter": on_vectors(
        lambda: Given(lambda m, x: m.head(Product.apply(x, m.p)), head=nn.Linear(D, 3), p=parameter(D, D))
    ),
    "`h - h.mean(0)`": on_vectors(
        lambda: Given(lambda m, x: m.b((h := m.a(x)) - h.mean(0)), a=nn.Linear(D, D), b=nn.Linear(D, 3))
    ),
    "`Embedding(max_norm=1)`": Structure(lambda: nn.Embedding(7, D, max_norm=1.0), tokens),
    "`Embedding(scale_grad_by_freq=True)`": Structure(lambda: nn.Embedding(7, D, scale_grad_by_freq=True), tokens),
}

CALLS: dict[str, Structure] = {
    "several inputs": named(lambda m, x: m.a(x) + m.b(x), lambda out: out),
    "keywords only": Structure(
        lambda: Given(lambda m, left, right: m.a(left) * m.b(right), a=nn.Linear(D, 3), b=nn.Linear(D, 3)),
        lambda n: {"left": vectors(n), "right": vectors(n)},
    ),
    "a tuple as output": named(lambda m, x: (m.a(x), m.b(x)), lambda out: torch.cat(out, 1)),
    "a dictionary as output": named(lambda m, x: {"a": m.a(x), "b": m.b(x)}, lambda out: out["a"] * out["b"]),
    "a named tuple as output": named(lambda m, x: Attended(m.a(x), m.b(x)), lambda out: out.scores * out.weights),
    "two forwards, then two backwards": on_vectors(pair, program=two_forwards((1, 0))),
    "the same, first forward first": on_vectors(pair, program=two_forwards((0, 1))),
    "two backwards through one graph": on_vectors(pair, program=two_backwards),
    "a backward after a forward in `eval()`": on_vectors(pair, program=eval_forward),
    "input gradients first, then backward": on_vectors(pair, program=input_gradient_first),
    "other forwards before the backward": on_vectors(pair, program=looked_at_in_between),
    "a gradient penalty": on_vectors(pair, program=gradient_penalty),
    "checkpointing, not reentrant": checkpointed(False),
    "checkpointing, reentrant": checkpointed(True),
    "`torch.compile(model)`": on_vectors(pair, program=compiled),
    "`torch.autocast` in bf16": Structure(lambda: pair().float(), lambda n: normal(n, D), program=autocast),
    "`torch.autocast` in fp16": Structure(lambda: pair().float(), lambda n: normal(n, D), program=fp16),
    "parameters in bf16": Structure(lambda: pair().float(), lambda n: normal(n, D), program=bf16),
}

GROUPS = {"Layers": LAYERS, "Operators and parameters": OPERATORS, "Calls and backwards": CALLS}
STRUCTURES = {name: structure for group in GROUPS.values() for name, structure in group.items()}
