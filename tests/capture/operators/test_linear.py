"""Products of data with a matrix, in every spelling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from attached import Attached, Model
from oracle import assert_use_is_exact
from torch import Tensor, nn

B, T, D, P = 4, 3, 5, 2

SPELLINGS: dict[str, Callable[..., Tensor]] = {
    "F.linear": lambda x, w, b: F.linear(x, w.t(), b),
    "@": lambda x, w, b: x @ w + b,
    "matmul": lambda x, w, b: torch.matmul(x, w) + b,
    "linalg": lambda x, w, b: torch.linalg.matmul(x, w) + b,
    "mm on folded rows": lambda x, w, b: torch.mm(x.flatten(0, 1), w).view(-1, T, P) + b,
    "addmm on folded rows": lambda x, w, b: torch.addmm(b, x.view(-1, D), w).view(-1, T, P),
    "Tensor.addmm": lambda x, w, b: b.addmm(x.view(-1, D), w).view(-1, T, P),
    "time first": lambda x, w, b: (x.transpose(0, 1) @ w + b).transpose(0, 1),
    "twice": lambda x, w, b: (x @ w + b) * torch.addmm(b, x.view(-1, D), w).view(-1, T, P),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_a_product_is_exact(name: str) -> None:
    def use(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return SPELLINGS[name](x, w, b)

    assert_use_is_exact(use, torch.randn(B, T, D), w=(D, P), b=(P,))


def test_the_input_is_kept_only_where_the_weights_gradient_is_wanted() -> None:
    attached = Attached(Model(lambda m, x: m.layer(x), layer=nn.Linear(D, P)), B)
    attached.model.layer.weight.requires_grad_(False)
    x = torch.randn(B, D)
    out = attached.model(x)
    saved = out.grad_fn.saved_tensors
    assert all(part is None or part.data_ptr() != x.data_ptr() for part in saved)
    attached.scope.detach()
