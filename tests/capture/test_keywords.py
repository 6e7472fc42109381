"""Operators called with keywords only are followed and captured as they are with positions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from attached import Attached, Model, X, assert_same, batch, losses, wanted
from torch import Tensor, nn

from hushgrad.errors import UncoveredParameterUseError

Use = Callable[[Model, Tensor], Tensor]


def _copied(m: Model, x: Tensor) -> Tensor:
    h = torch.empty_like(input=x)
    torch.add(input=x, other=1.0, out=h)
    return m.a(h)


USES: dict[str, Use] = {
    "relu_": lambda m, x: m.b(torch.relu_(input=m.a(x))),
    "clamp_": lambda m, x: m.b(torch.clamp_(input=m.a(x), min=-0.3)),
    "sigmoid_, NumPy's name": lambda m, x: m.b(torch.sigmoid_(x=m.a(x))),
    "selu_": lambda m, x: m.b(torch.selu_(input=m.a(x))),
    "dropout_": lambda m, x: m.b(torch.dropout_(input=m.a(x), p=0.0, train=True)),
    "init.constant_": lambda m, x: m.a(x) + nn.init.constant_(tensor=torch.empty_like(input=x), val=0.5) * x,
    "init.uniform_": lambda m, x: m.a(x) + nn.init.uniform_(tensor=torch.empty_like(input=x), a=2.0, b=2.0) * x,
    "init.normal_": lambda m, x: m.a(x) + nn.init.normal_(torch.empty_like(x), mean=1.0, std=0.0) * m.p,
    "init.zeros_": lambda m, x: m.a(x) + nn.init.zeros_(tensor=torch.empty_like(input=x)),
    "add out": _copied,
    "linear": lambda m, x: F.linear(input=x, weight=m.w, bias=m.p),
    "linear, NumPy's name": lambda m, x: F.linear(x=x, weight=m.w, bias=m.p),
    "matmul": lambda m, x: m.b(torch.matmul(input=x, other=m.w)),
    "matmul, NumPy's names": lambda m, x: m.b(torch.matmul(x1=x, x2=m.w)),
    "matmul of data": lambda m, x: m.b(torch.matmul(input=x.unsqueeze(1), other=x.unsqueeze(2)) + m.p),
    "bmm": lambda m, x: m.b(torch.bmm(input=x.unsqueeze(1), mat2=x.unsqueeze(2)).squeeze(dim=1) * m.p),
    "mm": lambda m, x: m.b(torch.mm(input=x, mat2=m.w)),
    "mv": lambda m, x: torch.mv(input=m.a(x), vec=m.p).unsqueeze(dim=1),
    "mv of data": lambda m, x: m.p * torch.mv(input=x, vec=torch.ones(4, dtype=x.dtype)).unsqueeze(dim=1),
    "addmm": lambda m, x: torch.addmm(input=m.p, mat1=x, mat2=m.w),
    "bilinear": lambda m, x: torch.bilinear(input1=x, input2=m.a(x), weight=m.w3, bias=m.p),
    "F.bilinear": lambda m, x: F.bilinear(input1=x, input2=m.a(x), weight=m.w3, bias=m.p),
    "add": lambda m, x: torch.add(input=m.a(x), other=m.p),
    "mul": lambda m, x: torch.mul(input=m.a(x), other=m.p),
    "where": lambda m, x: torch.where(condition=x > 0, input=m.a(x), other=m.p),
    "lerp": lambda m, x: torch.lerp(input=m.a(x), end=m.p, weight=0.3),
    "cat": lambda m, x: m.c(torch.cat(tensors=[m.a(x), x], dim=1)),
    "cat, NumPy's name": lambda m, x: m.c(torch.cat(tensors=[m.a(x), x], axis=1)),
    "cat with a parameter": lambda m, x: m.c(torch.cat(tensors=[m.a(x), m.p.expand(len(x), 4)], axis=1)),
    "stack": lambda m, x: m.b(torch.stack(tensors=[m.a(x), x], dim=1).sum(dim=1)),
    "sum": lambda m, x: m.b(x * torch.sum(input=m.a(x), dim=1, keepdim=True)),
    "sum, NumPy's names": lambda m, x: m.b(x * torch.sum(a=m.a(x), axis=1, keepdims=True)),
    "mean": lambda m, x: m.b(x + torch.mean(input=m.a(x), dim=1, keepdim=True)),
    "softmax": lambda m, x: m.b(torch.softmax(input=m.a(x), dim=-1)),
    "F.softmax": lambda m, x: m.b(F.softmax(input=m.a(x), dim=-1)),
    "cumsum": lambda m, x: m.b(torch.cumsum(input=m.a(x), dim=1)),
    "norm": lambda m, x: m.b(x * torch.linalg.vector_norm(x=m.a(x), dim=1, keepdim=True)),
    "cosine_similarity": lambda m, x: m.p * torch.cosine_similarity(x1=m.a(x), x2=x + 2, dim=1).unsqueeze(1),
    "transpose": lambda m, x: m.b(torch.transpose(input=torch.transpose(input=m.a(x), dim0=0, dim1=1), dim0=0, dim1=1)),
    "permute": lambda m, x: m.b(torch.permute(input=m.a(x).unsqueeze(1), dims=(0, 2, 1)).squeeze(2)),
    "reshape": lambda m, x: m.b(torch.reshape(input=m.a(x), shape=(-1, 2, 2)).flatten(start_dim=1)),
    "flatten": lambda m, x: m.b(torch.flatten(input=m.a(x).unsqueeze(1), start_dim=1)),
    "unsqueeze": lambda m, x: m.b(torch.unsqueeze(input=m.a(x), dim=1)).squeeze(dim=1),
    "chunk": lambda m, x: m.d(torch.chunk(input=m.a(x), chunks=2, dim=1)[0]),
    "split": lambda m, x: m.d(torch.split(tensor=m.a(x), split_size_or_sections=2, dim=1)[1]),
    "index_select": lambda m, x: m.b(torch.index_select(input=m.a(x), dim=1, index=torch.tensor([1, 0, 3, 2]))),
    "gather": lambda m, x: m.b(torch.gather(input=m.a(x), dim=1, index=torch.zeros(len(x), 4, dtype=torch.int64))),
    "flip": lambda m, x: m.b(torch.flip(input=m.a(x), dims=(1,))),
    "roll": lambda m, x: m.b(torch.roll(input=m.a(x), shifts=1, dims=1)),
    "tile": lambda m, x: m.c(torch.tile(input=m.a(x), dims=(1, 2))),
    "pad": lambda m, x: m.c(F.pad(input=m.a(x), pad=(2, 2))),
    "layer_norm": lambda m, x: F.layer_norm(input=m.a(x), normalized_shape=[4], weight=m.p, bias=None),
    "torch.layer_norm": lambda m, x: torch.layer_norm(input=m.a(x), normalized_shape=[4], weight=m.p),
    "group_norm": lambda m, x: torch.group_norm(input=m.a(x), num_groups=2, weight=m.p),
    "rms_norm": lambda m, x: F.rms_norm(input=m.a(x), normalized_shape=[4], weight=m.p),
    "prelu": lambda m, x: m.b(F.prelu(input=m.a(x), weight=m.p)),
    "embedding": lambda m, x: F.embedding(input=(x > 0).long(), weight=m.w).sum(dim=1),
    "conv1d": lambda m, x: F.conv1d(input=x.unsqueeze(1), weight=m.k, bias=m.p[:2]).flatten(1),
    "gru_cell": lambda m, x: torch.gru_cell(input=x, hx=m.a(x), w_ih=m.g, w_hh=m.g),
    "einsum": lambda m, x: m.b(torch.einsum("bi,oi->bo", x, m.w)),
    "a derived parameter in place": lambda m, x: m.a(x) * torch.relu_(input=m.p * 2),
}


def _model(use: Use) -> Model:
    torch.manual_seed(0)
    shapes = {"w": (4, 4), "p": (4,), "w3": (4, 4, 4), "k": (2, 1, 2), "g": (12, 4)}
    model = Model(use, a=nn.Linear(4, 4), b=nn.Linear(4, 2), c=nn.Linear(8, 2), d=nn.Linear(2, 2))
    for name, shape in shapes.items():
        model.register_parameter(name, nn.Parameter(torch.randn(shape)))
    return model.double()


@pytest.mark.parametrize("name", USES)
def test_a_call_with_keywords_only_is_exact(name: str) -> None:
    model = _model(USES[name])
    attached = Attached(model)
    x = batch()
    try:
        losses(model(x)).sum().backward()
    finally:
        attached.scope.detach()
    assert all(parameter.grad is None for parameter in model.parameters())
    found = attached.sums()
    expected = wanted(model, lambda m, i: losses(m(x[i : i + 1])).sum())
    assert_same(found, {key: value for key, value in expected.items() if key in found or value.any()})


@pytest.mark.parametrize(
    "use",
    [
        lambda m, x: m.a(x) * torch.relu_(input=m.p),
        lambda m, x: m.a(x) * nn.init.normal_(tensor=m.p * 2),
        lambda m, x: m.a(x) * nn.init.constant_(tensor=m.p * 2, val=1.0),
    ],
)
def test_a_parameter_changed_in_place_by_keyword_is_refused(use: Use) -> None:
    attached = Attached(_model(use).float())
    with pytest.raises(UncoveredParameterUseError, match="in place"):
        attached.model(X)
    attached.scope.detach()
    assert attached.pool.take() == {}
