"""Operators without a rule: by slices or by masks, both exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import Parameters, losses
from measure import captured, clipped, distance, norm_of, reference
from oracle import assert_use_is_exact
from torch import Tensor

from hushgrad.capture.operators import replay
from hushgrad.capture.operators.table import COMPOSITES, RULES
from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import UncoveredParameterUseError
from hushgrad.gradients.oracle import clipped_sum_of

B, D, E, P = 4, 3, 2, 5


def bilinear(x: Tensor, w: Tensor) -> Tensor:
    return F.bilinear(x[:, :D], x[:, D:], w)


@pytest.mark.parametrize("is_sliced", [True, False], ids=["slices", "masks"])
def test_both_ways_to_tell_examples_apart_are_exact(is_sliced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert F.bilinear not in RULES
    assert F.bilinear not in COMPOSITES
    if not is_sliced:
        monkeypatch.setattr(replay, "_by_slices", lambda *_: None)
    assert_use_is_exact(bilinear, torch.randn(B, D + E), w=(P, D, E))


def test_a_value_that_is_not_finite_reaches_its_own_example_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_by_slices", lambda *_: None)
    x = torch.randn(B, D + E)
    x[1, 0] = torch.inf
    uses = captured(Parameters(bilinear, w=(P, D, E)), x, losses)
    gradients = uses["w"][0].per_example()
    assert torch.isfinite(gradients.reshape(B, -1)).all(1).tolist() == [True, False, True, True]


def test_a_call_that_writes_into_an_argument_is_refused() -> None:
    def use(x: Tensor, w: Tensor) -> Tensor:
        return x.clone().addmm_(x, w.expand(x.shape[1], -1))

    with pytest.raises(UncoveredParameterUseError) as raised:
        captured(Parameters(use, w=(D,)), torch.randn(B, D), losses)
    assert raised.value.cure == "Use the form of the operator that returns a new tensor"


def turned(x: Tensor) -> Tensor:
    return x * (1 + 2j) + x.flip(-1) * (0.3 - 1j)


def fourier_layer(x: Tensor, w: Tensor) -> Tensor:
    seen = torch.einsum("bix,iox->box", torch.fft.rfft(x), torch.view_as_complex(w))
    return torch.fft.irfft(seen, n=x.shape[-1])


COMPLEX: dict[str, tuple[Callable[..., Tensor], dict[str, tuple[int, ...]]]] = {
    "matmul": (lambda x, w: turned(x) @ torch.view_as_complex(w), {"w": (4, 2, 2)}),
    "linear": (
        lambda x, w, b: F.linear(turned(x), torch.view_as_complex(w), torch.view_as_complex(b)),
        {"w": (5, 4, 2), "b": (5, 2)},
    ),
    "addmm": (
        lambda x, w, b: torch.addmm(torch.view_as_complex(b), turned(x)[:, 0], torch.view_as_complex(w)),
        {"w": (4, 5, 2), "b": (5, 2)},
    ),
    "conjugate": (lambda x, w: turned(x) @ torch.view_as_complex(w).mH, {"w": (2, 4, 2)}),
    "einsum of a Fourier layer": (fourier_layer, {"w": (3, 2, 3, 2)}),
    "elementwise": (lambda x, w: turned(x) * torch.view_as_complex(w), {"w": (4, 2)}),
    "broadcast": (lambda x, w: turned(x) + torch.view_as_complex(w), {"w": (3, 1, 2)}),
    "a real weight": (lambda x, w: turned(x) * w, {"w": (4,)}),
    "real data": (lambda x, w: x * torch.view_as_complex(w), {"w": (4, 2)}),
    "a cast weight": (lambda x, w: turned(x) @ w.to(turned(x).dtype), {"w": (4, 2)}),
    "real and imaginary part": (lambda x, a, b: turned(x) @ torch.complex(a, b), {"a": (4, 2), "b": (4, 2)}),
    "size and angle": (lambda x, a, b: turned(x) * torch.polar(a.abs(), b), {"a": (4,), "b": (4,)}),
    "spectrum": (lambda x, w: torch.fft.ifft(torch.fft.fft(x) * torch.fft.fft(w)), {"w": (4,)}),
    "twice": (lambda x, w: turned(x) @ torch.view_as_complex(w) @ torch.view_as_complex(w), {"w": (4, 4, 2)}),
    "bilinear": (
        lambda x, w: torch.einsum("bti,ijk,btj->btk", turned(x), torch.view_as_complex(w), turned(x)),
        {"w": (4, 4, 2, 2)},
    ),
}


def losses_of_complex(out: Tensor) -> Tensor:
    return losses(torch.view_as_real(out) if out.is_complex() else out)


@pytest.mark.parametrize("name", COMPLEX)
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_complex_uses_of_real_parameters_are_exact(name: str, batch: int, dtype: torch.dtype) -> None:
    use, shapes = COMPLEX[name]
    model, x = Parameters(use, **shapes).to(dtype), torch.randn(batch, 3, 4, dtype=dtype)
    per_example = reference(model, x, losses_of_complex)
    rule = FlatClipping(float(norm_of(per_example).median()))
    found = clipped(captured(model, x, losses_of_complex), rule.max_grad_norm)
    assert distance(found, clipped_sum_of(per_example, rule)) <= (1e-10 if dtype == torch.float64 else 2e-6)


def test_complex_rows_of_a_table_are_exact_or_refused() -> None:
    def use(x: Tensor, w: Tensor) -> Tensor:
        return torch.view_as_complex(w)[x.abs().mul(2).long().clamp(max=4)]

    model, x = Parameters(use, w=(5, 4, 2)).double(), torch.randn(1, 3).double()
    per_example = reference(model, x, losses_of_complex)
    found = clipped(captured(model, x, losses_of_complex), 1e9)
    assert distance(found, clipped_sum_of(per_example, FlatClipping(1e9))) <= 1e-10
