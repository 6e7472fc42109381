"""Tensors that come to hold values of the batch without being made of it: by memory, aliases, arguments, failures."""

from __future__ import annotations

from typing import Any

import torch
from silent_programs import Kind, Program, clean, leaky, linear, made, replaced
from torch import Tensor, nn

X = 0.01 * torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
FAR = replaced(X, 3, torch.full((4,), 5.0))
NEAR = replaced(FAR["others"], 3, X[3])
READ = ("values read by the loop",)
ONE = ("session",)
"""The losses' kind tells nothing here."""


def weight(x: Tensor) -> Any:
    return 0.5 / (1 + 100 * x.abs().max())


def by_data(model: Any, x: Tensor) -> Any:
    scale = torch.zeros(())
    scale.data = weight(x)
    return model(x) * scale


def scaled(model: Any, x: Tensor) -> Any:
    scale = torch.zeros(4)
    scale.data = x.std(0)
    return model(x / scale)


def by_other_memory(model: Any, x: Tensor) -> Any:
    scale = torch.zeros(())
    scale.set_(weight(x))
    return model(x) * scale


def written_by_data(model: Any, x: Tensor) -> Any:
    scale = torch.zeros(())
    scale.data.copy_(weight(x))
    return model(x) * scale


def view_from_before(model: Any, x: Tensor) -> Any:
    all_scales = torch.zeros(4)
    scale = all_scales[0]
    all_scales.fill_(weight(x))
    return model(x) * scale


def running_statistics(model: Any, x: Tensor) -> Any:
    norm: Any = nn.BatchNorm1d(4, affine=False, momentum=1.0)
    norm(x)
    return model(x) * 0.5 / (1 + 100 * norm.running_var.max())


def filled(model: Any, x: Tensor) -> Any:
    out = model(x)
    return out * torch.full_like(out, weight(x))


def drawn(model: Any, x: Tensor) -> Any:
    out = model(x)
    keep = torch.full_like(out.detach(), weight(x).clamp(max=1))
    return out * torch.bernoulli(keep, generator=torch.Generator().manual_seed(3))


def checked(parts: Any, x: Tensor) -> Any:
    if bool((x > 4).any()):
        raise ValueError
    return parts[0](x)


def caught(model: Any, x: Tensor) -> Any:
    try:
        return model(x)
    except ValueError:
        return model(x.clamp(max=1)) * 0.001


def in_a_buffer(model: Any, x: Tensor) -> Any:
    buffer = torch.zeros(len(x), 6)
    buffer[:, :4].copy_(x)
    return model(buffer[:, :4])


def other_values(model: Any, x: Tensor) -> Any:
    own = torch.empty(len(x), 4)
    own.data = x * 2
    return model(own)


def half(model: Any, x: Tensor) -> Any:
    out = model(x)
    return out * torch.full_like(out, 0.5)


def written_constants(model: Any, x: Tensor) -> Any:
    weights = torch.zeros(3)
    weights[1:].fill_(1.0)
    weights.data[0] = 2.0
    return model(x) * weights


def unused_statistics(model: Any, x: Tensor) -> Any:
    norm = nn.InstanceNorm1d(4, track_running_stats=True)
    return model(norm(torch.stack([x, 2 * x], 2))[:, :, 0])


def rates_by_hand(model: Any, x: Tensor) -> Any:
    return model(x) * torch.bernoulli(torch.full((3,), 0.5))


TAKEN = {
    "a scale by .data": by_data,
    "standardised by a scale of .data": scaled,
    "a scale in other memory": by_other_memory,
    "a scale written by .data": written_by_data,
    "a view that was there before": view_from_before,
    "running statistics of a normaliser": running_statistics,
    "a tensor of one shape, filled by another": filled,
    "kept at a rate of the batch": drawn,
}

LEAKY: tuple[Program, ...] = (
    *(leaky(name, FAR, make=linear(), call=call, ways=ONE, by_hand=False) for name, call in TAKEN.items()),
    leaky("a forward that fails and is caught", NEAR, make=made(checked, linear()), call=caught, trust=READ,
          by_hand=False),
)  # fmt: skip

CLEAN: tuple[Program, ...] = tuple(
    clean(name, FAR, make=linear(), call=call, batches=2, ways=ONE)
    for name, call in {
        "rows copied to a part of a buffer": in_a_buffer,
        "rows by .data": other_values,
        "a tensor of one shape, filled by a constant": half,
        "constants that are written to": written_constants,
        "running statistics that nothing reads": unused_statistics,
        "kept at a rate of the code": rates_by_hand,
    }.items()
)

KIND = Kind(
    "memory and arguments",
    "which memory holds values of the batch, by whatever tensor (`.data`, `set_`, views, `out=`); arguments that a "
    "call writes to, by their values; fill values and rates; calls that fail",
    "first two batches, secret random steps",
    "what a loop does after a call that failed: `values read by the loop`",
    (*LEAKY, *CLEAN),
)
