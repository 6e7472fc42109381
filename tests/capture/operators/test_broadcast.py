"""Parameters that meet data element by element, in place or not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attached import Model, refused
from oracle import assert_use_is_exact
from torch import Tensor, nn

from hushgrad.capture.axes.table import SPACES
from hushgrad.capture.operators.broadcast import NAMES
from hushgrad.capture.operators.table import RULES
from hushgrad.capture.torch_names import in_place_forms
from hushgrad.errors import HushgradError

B, T, D = 4, 3, 5
FLAT = {"eq_", "ne_", "lt_", "le_", "gt_", "ge_", "copysign_"}
"""Those by which a parameter has the gradient 0."""

OF_THREE = {"addcmul_", "addcdiv_", "lerp_"}
OF_TWO = sorted({form.__name__ for form in in_place_forms(NAMES, SPACES)} - FLAT - OF_THREE)


@pytest.mark.parametrize("name", OF_TWO)
@pytest.mark.parametrize("shape", [(D,), (T, 1), (1, T, D)], ids=str)
def test_every_form_in_place_is_exact(name: str, shape: tuple[int, ...]) -> None:
    def use(x: Tensor, p: Tensor) -> Tensor:
        y = x.abs() + 0.5
        out = getattr(y, name)(p.abs() + 0.3)
        return out * y  # what was changed in place goes on as data

    assert_use_is_exact(use, torch.randn(B, T, D), p=shape)


@pytest.mark.parametrize("name", sorted(FLAT))
def test_a_form_in_place_with_the_gradient_zero_hides_no_other_use(name: str) -> None:
    def use(x: Tensor, p: Tensor) -> Tensor:
        return getattr(x.abs() + 0.5, name)(p.abs() + 0.3) + p

    assert_use_is_exact(use, torch.randn(B, T, D), p=(D,))


@pytest.mark.parametrize("name", sorted(OF_THREE))
def test_every_form_in_place_of_three_arguments_is_exact(name: str) -> None:
    def use(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
        y = x.clone()
        getattr(y, name)(p, q.abs() + 0.5)
        return y

    assert_use_is_exact(use, torch.randn(B, T, D), p=(D,), q=(D,))


def test_an_operator_of_another_namespace_is_captured_like_its_twin() -> None:
    assert RULES[torch.special.xlogy] is RULES[torch.xlogy]
    assert_use_is_exact(lambda x, p: torch.special.xlogy(x, p.abs() + 0.5), torch.randn(B, D), p=(D,))


@pytest.mark.parametrize("dim", [1, -1])
def test_a_row_for_each_example_that_is_joined_to_data_is_exact(dim: int) -> None:
    def use(x: Tensor, p: Tensor) -> Tensor:
        return torch.cat([x, p.expand(x.shape[0], -1, -1)], dim)

    assert_use_is_exact(use, torch.randn(B, D, D), p=(D, D))


@pytest.mark.parametrize("shape", [(D,), (1, D)], ids=str)
def test_a_parameter_at_the_places_of_a_mask_is_exact(shape: tuple[int, ...]) -> None:
    def use(x: Tensor, p: Tensor) -> Tensor:
        y = x * 2
        y[x[..., 0] > 0] = p
        y[torch.tensor([[True, False, False]]).expand(len(x), -1)] = p * 2
        return y

    assert_use_is_exact(use, torch.randn(B, T, D), p=shape)


@pytest.mark.parametrize(
    "mask",
    [lambda x: x.mean(0)[:, 0] > 0, lambda x: (x > 0).transpose(0, 1)[..., 0], lambda x: x[..., 0] > x.mean()],
    ids=["one for all, of all", "time first", "told by all"],
)
def test_a_mask_that_mixes_examples_decides_nothing(mask: Callable[[Tensor], Tensor]) -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        y = x * m.p
        y[mask(x) if mask(x).ndim > 1 else mask(x).expand(len(x), -1)] = m.p
        return y

    refused(HushgradError, "DP30", forward, torch.randn(5, 5, D), p=nn.Parameter(torch.randn(D)))
