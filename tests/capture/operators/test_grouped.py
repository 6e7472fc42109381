"""`F.grouped_mm`: each row times the matrix of the key that rows are sorted by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attached import Attached, Model, losses, wanted
from torch import Tensor, nn

from hushgrad.errors import PrivacyUnitError

B, T, D, E = 5, 6, 4, 3


def mixed(m: nn.Module, x: Tensor, bound: int | None = None) -> Tensor:
    """Each token times the matrix of its own expert; no more than `bound` tokens for each but the last."""
    rows = x.flatten(0, 1)
    key, order = rows[:, 0].mul(1.3).round().long().remainder(E).sort()
    counts = torch.bincount(key, minlength=E)
    ends = counts.cumsum(0) if bound is None else counts.clamp(max=bound).cumsum(0)
    ends[-1] = len(key)
    matrices = m.matrices if m.matrices.shape[1] == D else m.matrices.transpose(-2, -1)
    return F.grouped_mm(rows[order], matrices, offs=ends.int())[order.argsort()].view(-1, T, matrices.shape[2])


def attached_to(*shape: int, bound: int | None = None) -> Attached:
    torch.manual_seed(0)
    return Attached(Model(lambda m, x: mixed(m, m.first(x), bound), first=nn.Linear(D, D), **parameters(shape)))


def parameters(shape: tuple[int, ...]) -> dict[str, Any]:
    return {"matrices": nn.Parameter(torch.randn(shape))}


@pytest.mark.parametrize("shape", [(E, D, 8), (E, 8, D)], ids=["as they are", "transposed"])
@pytest.mark.parametrize("frozen", [False, True])
def test_per_example_gradients_of_grouped_products_are_exact(shape: tuple[int, ...], frozen: bool) -> None:
    attached = attached_to(*shape)
    attached.model.matrices.requires_grad_(not frozen)
    x = torch.randn(B, T, D)
    expected = wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum())
    losses(attached.model(x)).sum().backward()
    found = attached.sums()
    assert ("matrices" in found) is not frozen
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


def test_one_example_alone_and_a_matrix_that_no_row_meets_are_exact() -> None:
    attached = attached_to(E, D, 8)
    attached.pool.batch_size = 1
    x = torch.zeros(1, T, D)
    out = attached.model(x)
    losses(out).sum().backward()
    found = dict(attached.pool.gradient_of(0))["matrices"]
    ordinary = attached.model.matrices.detach().requires_grad_()
    attached.scope.detach()
    attached.model.matrices = nn.Parameter(ordinary.detach())
    losses(attached.model(x)).sum().backward()
    torch.testing.assert_close(found.float(), attached.model.matrices.grad, rtol=1e-5, atol=1e-6)
    assert (found == 0).flatten(1).all(1).any()


def test_a_capacity_is_refused_in_the_batch_that_reaches_it_and_changes_nothing_in_others() -> None:
    x = torch.randn(B, T, D)
    losses(attached_to(E, D, 8, bound=B * T).model(x)).sum().backward()
    with pytest.raises(PrivacyUnitError):
        losses(attached_to(E, D, 8, bound=2).model(x)).sum().backward()
