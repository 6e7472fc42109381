"""Sparse tensors made of parameters: exact as the dense ones they stand for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attached import Attached, Model, X, assert_same, batch, losses, refused, wanted
from torch import Tensor, nn

from hushgrad.errors import UncoveredParameterUseError

W = nn.Parameter(torch.randn(4, 4))
PLACES = torch.tensor([[0, 1, 3, 3], [1, 0, 2, 2]])
"""The last place twice: its values add up."""


def scattered(w: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(PLACES, w[0], (4, 4))


USES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "made sparse and dense again": lambda x, w: x @ w.to_sparse().to_dense(),
    "added": lambda x, w: x @ (torch.eye(4).double() + scattered(w)),
    "added in place": lambda x, w: x @ torch.eye(4).double().add_(scattered(w)),
    "coalesced, in a product": lambda x, w: torch.sparse.mm(scattered(w).coalesce(), x.t()).t(),
    "counted": lambda x, w: x @ scattered(w).to_dense() * min(scattered(w)._nnz(), 1),
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks", "ignore:There is a performance drop")
@pytest.mark.parametrize("name", USES)
def test_a_sparse_tensor_of_a_parameter_is_exact(name: str) -> None:
    use = USES[name]
    attached = Attached(Model(lambda m, x: use(x, m.w), w=nn.Parameter(torch.randn(4, 4))).double())
    x = batch()
    losses(attached.model(x)).sum().backward()
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum()))
    attached.scope.detach()


def test_sparse_tensors_of_constants_stay_sparse() -> None:
    seen = []

    def forward(m: Model, x: Tensor) -> Tensor:
        constant = torch.eye(4).to_sparse().coalesce()
        seen.append((constant.is_sparse, constant._nnz()))
        return torch.sparse.mm(constant, m.layer(x).t()).t()

    attached = Attached(Model(forward, layer=nn.Linear(4, 4)))
    losses(attached.model(batch().float())).sum().backward()
    attached.scope.detach()
    assert seen == [(True, 4)]


def test_other_sparse_layouts_are_refused_with_a_dense_cure() -> None:
    refused(UncoveredParameterUseError, "dense tensor", lambda m, x: x * m.w.to_sparse_csr().to_dense()[0], X, w=W)
