"""Sums in float64 are within the error that they state of the exact ones, for every kind of gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from cases import CASES, losses
from measure import captured, distance
from torch import Tensor

from hushgrad.clipping.flat import FlatClipping
from hushgrad.gradients.accumulation import AsTheyCome, InFloat64
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.gradients.contribution import Contribution
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.narrow import Narrow
from hushgrad.gradients.outer import OuterProducts
from hushgrad.gradients.rows import Rows
from hushgrad.gradients.stacking import AlikeDense, AlikeProducts

CLIP = FlatClipping(1.0)


def outer(batch: int, positions: int, seed: int = 0) -> OuterProducts:
    generator = torch.Generator().manual_seed(seed)
    make: Callable[..., Tensor] = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return OuterProducts(make(batch, positions, 3), make(batch, positions, 2))


def cancelling(batch: int, positions: int, rest: float = 1e-4) -> OuterProducts:
    """Return outer products whose terms cancel to a small rest."""
    part = outer(batch, positions)
    signs = torch.ones(positions)
    signs[1::2] = -1
    left = part.left[:, :1].repeat(1, positions, 1) * signs.view(1, -1, 1)
    left[:, 0] *= 1 + rest * positions
    return OuterProducts(left, part.right[:, :1].repeat(1, positions, 1))


def narrow(part: OuterProducts) -> Narrow:
    """Return the same held in 16 bits, to which its operands are rounded."""
    return Narrow(OuterProducts(part.left.bfloat16(), part.right.bfloat16()))


PARTS: dict[str, Callable[[], Contribution]] = {
    "one position": lambda: outer(9, 1),
    "positions": lambda: outer(9, 7),
    "terms that cancel": lambda: cancelling(6, 8),
    "16 bits": lambda: narrow(outer(9, 7)),
    "16 bits, terms that cancel": lambda: narrow(cancelling(6, 8, 1 / 64)),
    "kept": lambda: Dense(torch.randn(20, 4, generator=torch.Generator().manual_seed(1))),
    "rows": lambda: Rows(torch.arange(12).view(6, 2) % 5, torch.randn(6, 2, 3), 5),
}


def exactly(part: Contribution, weights_B: Tensor) -> list[Fraction]:
    """Return Σ w_i G_i of the operands as they are, by fractions."""
    part = part.wide
    if isinstance(part, OuterProducts):
        _, positions, p = part.left.shape
        total = [[Fraction(0)] * part.right.shape[2] for _ in range(p)]
        for i, weight in enumerate(weights_B.tolist()):
            for t in range(positions):
                for a in range(p):
                    for b in range(part.right.shape[2]):
                        product = Fraction(float(part.left[i, t, a])) * Fraction(float(part.right[i, t, b]))
                        total[a][b] += Fraction(weight) * product
        return [value for row in total for value in row]
    gradients = part.per_example().flatten(1)
    return [
        sum((Fraction(w) * Fraction(g) for w, g in zip(weights_B.tolist(), column.tolist(), strict=True)), Fraction(0))
        for column in gradients.unbind(1)
    ]


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("at_once", [1, 1 << 22])
def test_a_sum_is_within_its_error_of_the_exact_one(name: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: the L2 distance of all sums together from the exact sums of what was weighed is at most `error`."""
    monkeypatch.setattr("hushgrad.gradients.accumulation._AT_ONCE", at_once)
    part, how = PARTS[name](), InFloat64()
    roots_B = part.per_example().double().flatten(1).norm(dim=1)
    weights_B = (1 / roots_B).clamp(max=1.0)
    how.note([how.term_squares(part)], roots_B.unsqueeze(0), weights_B.unsqueeze(0))
    found = how.sum(part, weights_B)
    assert found.dtype == torch.float64
    wanted = exactly(part, weights_B)
    off = math.sqrt(sum(float(Fraction(f) - w) ** 2 for f, w in zip(found.flatten().tolist(), wanted, strict=True)))
    assert off <= how.error < 1e-9


def test_the_error_grows_with_terms_that_cancel_and_with_every_batch() -> None:
    def error(part: Contribution, batches: int = 1) -> float:
        how = InFloat64()
        for _ in range(batches):
            roots_B = part.per_example().double().flatten(1).norm(dim=1)
            how.note([how.term_squares(part)], roots_B.unsqueeze(0), (1 / roots_B).unsqueeze(0))
            how.sum(part, 1 / roots_B)
        return how.error

    assert error(cancelling(6, 8)) > 100 * error(outer(6, 8))
    assert error(outer(6, 8), 10) > 10 * error(outer(6, 8))


def test_the_error_is_the_same_of_operands_that_are_held_in_16_bits() -> None:
    for part in (outer(9, 7), cancelling(6, 8, 1 / 64)):
        held, errors = narrow(part), []
        for some in (held, held.wide):
            how, weights_B = InFloat64(), torch.ones(some.batch_size)
            how.note([how.term_squares(some)], torch.ones(1, some.batch_size), weights_B.unsqueeze(0))
            how.sum(some, weights_B)
            errors.append(how.error)
        assert errors[0] == errors[1]


def test_a_stack_is_summed_in_float64() -> None:
    weights_B = torch.rand(5, dtype=torch.float64)
    left, right = torch.randn(3, 5, 4), torch.randn(3, 5, 2)
    found = InFloat64().sums(AlikeProducts(("a", "b", "c"), left, right), weights_B)
    assert torch.allclose(found, torch.einsum("nbp,nbd,b->npd", left.double(), right.double(), weights_B), atol=1e-14)
    gradients = torch.randn(3, 5, 4)
    found = InFloat64().sums(AlikeDense(("a", "b", "c"), gradients), weights_B)
    assert torch.allclose(found, torch.einsum("nbp,b->np", gradients.double(), weights_B), atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_clipped_sums_are_those_of_float32_without_its_rounding(name: str) -> None:
    """Every kind of operator; the sums are float64, near those in float32, and their error is stated."""
    torch.manual_seed(0)
    model, case = CASES[name].model(), CASES[name]
    uses = captured(model, case.batch(5, torch.float32), losses)
    again = {parameter: list(parts) for parameter, parts in uses.items()}
    how = InFloat64()
    found = clipped_sums(uses, clip=CLIP, accumulation=how)
    wanted = clipped_sums(again, clip=CLIP)
    assert {value.dtype for value in found.values()} == {torch.float64}
    assert distance(found, wanted) < 1e-5
    assert 0 < how.error < 1e-9


def test_examples_that_overflow_count_into_the_error() -> None:
    part = Dense(torch.tensor([[3e30, 4e30], [1.0, 2.0], [float("inf"), 0.0]]))
    how = InFloat64()
    found = clipped_sums({"p": [part]}, clip=CLIP, accumulation=how)["p"]
    unit = torch.tensor([0.6, 0.8], dtype=torch.float64) + torch.tensor([1.0, 2.0], dtype=torch.float64) / 5**0.5
    assert torch.allclose(found, unit, atol=1e-6)
    assert 2 * 2.0**-53 < how.error < 1e-13


def test_of_sums_as_they_come_no_error_is_known() -> None:
    assert AsTheyCome().error == math.inf


def test_records_whose_terms_cancel_move_the_sum_by_no_more_than_the_clip_norm() -> None:
    """In float32 the rounding of 128 such records moved it by 2.94 clip norms when one left (docs/verify.md)."""
    torch.manual_seed(3)
    batch, positions, width = 64, 256, 24
    base = torch.randn(1, positions, width)
    left = base.repeat(batch, 1, 1)
    right = torch.randn(1, positions, width).repeat(batch, 1, 1)
    left[:, 1::2], right[:, 1::2] = -left[:, ::2], right[:, ::2]
    left[:, 0] *= 1 + 1e-6

    def total(count: int) -> Tensor:
        part = OuterProducts(left[:count].clone(), right[:count].clone())
        return clipped_sums({"p": [part]}, clip=CLIP, accumulation=InFloat64())["p"]

    assert float((total(batch) - total(batch - 1)).norm()) <= 1 + 1e-5
