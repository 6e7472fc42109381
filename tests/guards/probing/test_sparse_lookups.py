"""Runs of the probe in which tables have sparse gradients: the same outputs, the same gradients, less memory."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hushgrad import DPSGD, FlatClipping, PoissonSampling, SparseRows, privatize
from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.sparse_lookups import SparseLookups

IDS, OFFSETS = torch.tensor([[1, 2, 2], [0, 4, 1]]), torch.tensor([0, 2])

CALLS: dict[str, tuple[Any, bool]] = {
    "embedding": (lambda w: F.embedding(IDS, w), True),
    "embedding by name": (lambda w: F.embedding(input=IDS, weight=w, padding_idx=2), True),
    "bags": (lambda w: F.embedding_bag(IDS, w), True),
    "bags by offsets": (lambda w: F.embedding_bag(IDS.flatten(), w, OFFSETS, mode="sum"), True),
    "bags in order": (lambda w: F.embedding_bag(IDS, w, None, None, 2.0, False, "sum", False), True),
    "largest of bags": (lambda w: F.embedding_bag(IDS, w, mode="max"), False),
    "by an index": (lambda w: w[IDS], False),
}


@pytest.mark.parametrize("kind", CALLS)
def test_outputs_and_gradients_are_the_same_and_those_of_lookups_sparse(kind: str) -> None:
    call, is_sparse = CALLS[kind]
    table, other = (nn.Parameter(torch.randn(6, 3)) for _ in range(2))
    found = {}
    for name, mode in (("plain", None), ("sparse", SparseLookups([table]))):
        with mode or torch.enable_grad():
            out, beside = call(table), F.embedding(IDS, other)
        weights = torch.arange(out.numel()).reshape(out.shape).float()
        gradients = torch.autograd.grad((out * weights).sum() + beside.sum(), [table, other])
        found[name] = out.detach(), *gradients
    assert found["sparse"][1].is_sparse is is_sparse
    assert not found["sparse"][2].is_sparse
    for one, two in zip(found["plain"], found["sparse"], strict=True):
        torch.testing.assert_close(two.to_dense() if two.is_sparse else two, one)


class Scaled(torch.autograd.Function):
    """Multiplies a gradient by something of the whole batch."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient / (1 + gradient.abs().amax())


class Model(nn.Module):
    """A leak in the gradient of a table alone."""

    def __init__(self, *, leaks: bool, looks: str) -> None:
        super().__init__()
        self.table, self.bias, self.leaks, self.looks = nn.Embedding(9, 3), nn.Parameter(torch.zeros(3)), leaks, looks

    def forward(self, ids: Tensor) -> Tensor:
        h = self.table(ids) if self.looks == "embedding" else self.table.weight[ids]
        return (Scaled.apply(h) if self.leaks else h).mean(1) + self.bias  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("looks", ["embedding", "index"])
@pytest.mark.parametrize("leaks", [False, True])
def test_a_leak_in_the_gradient_of_a_table_is_found_by_sparse_gradients(leaks: bool, looks: str) -> None:
    model = Model(leaks=leaks, looks=looks)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.1), expected_batch_size=4,
        sparse_rows=SparseRows(tables=("table.weight",), threshold=2.0),
    )  # fmt: skip
    session = privatize(model, torch.optim.SGD(model.parameters(), lr=0.1), mechanism)
    losses = model(torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]])).square().sum(1)
    try:
        with pytest.raises(CrossSampleLeakError) if leaks else nullcontext():
            session.backward(losses)
    finally:
        session.close()
