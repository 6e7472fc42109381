"""Sums of contributions that come one parameter at a time are those of all at once, for every kind of operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from cases import CASES, losses
from measure import distance, norm_of, reference
from torch import Tensor, nn

from hushgrad import ClipRule, FlatClipping, GroupwiseClipping
from hushgrad.capture.in_turn import InTurn
from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.clipping.bound import BoundRule
from hushgrad.errors import SensitivityMismatchError
from hushgrad.gradients.accumulation import AsTheyCome, InFloat64
from hushgrad.gradients.across import NOWHERE
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.gradients.contribution import Contribution, Plan
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.in_passing import GroupByGroup, TwoPasses
from hushgrad.gradients.oracle import clipped_sum_of
from hushgrad.gradients.outer import OuterProducts
from hushgrad.gradients.weights import Told

Uses = Mapping[str, list[Contribution]]


def raised(error: SensitivityMismatchError) -> None:
    raise error


def two_passes(rule: ClipRule, uses: Uses, *, count: int, scale: float = 1.0, **given: Any) -> TwoPasses:
    norms = given.pop("norms", lambda _: None)
    return TwoPasses(
        BoundRule(rule, uses),
        scale,
        Plan(),
        count,
        told=Told(raised, norms),
        watch=lambda _: None,
        close=lambda _: None,
        accumulation=given.pop("accumulation", AsTheyCome()),
        across=NOWHERE,
    )


def summed(rule: ClipRule, uses: Uses, again: Uses | None = None, **given: Any) -> dict[str, Tensor]:
    """Return the sums in two passes; in the second one `again` comes, in another order."""
    passes = two_passes(rule, uses, **given)
    for name, parts in uses.items():
        passes.measure(name, list(parts))
    if passes.weigh():
        for name, parts in uses.items():
            passes.measure_lost(name, list(parts))
        passes.weigh_lost()
    found = {name: passes.sum(name, list(parts)) for name, parts in reversed((again or uses).items())}
    passes.end()
    return {name: total for name, total in found.items() if total is not None}


def outer(seed: int, size: int = 5, positions: int = 3) -> OuterProducts:
    generator = torch.Generator().manual_seed(seed)
    return OuterProducts(
        torch.randn(size, positions, 4, generator=generator), torch.randn(size, positions, 6, generator=generator)
    )


def some_uses() -> dict[str, list[Contribution]]:
    return {"a.weight": [outer(0), outer(1)], "a.bias": [Dense(outer(0).left.sum(1))], "b.weight": [outer(2)]}


class Backwards:
    """A model's backward under capture, run twice or once, with what it hands on."""

    def __init__(self, model: nn.Module, batch: Tensor) -> None:
        self.pool = UsePool(Plan(operand_bytes=0))
        self.pool.batch_size = len(batch)
        self._scope = Scope(model, self.pool)
        self._total = losses(model(batch)).sum()
        self._scope.detach()
        assert self.pool.expected is not None
        self.calls = self.pool.expected.calls

    def run(self, take: Callable[[str, list[Contribution]], None], *, again: bool) -> None:
        before: list[str] = []

        def taken(name: str, parts: list[Contribution]) -> None:
            before.append(name)
            take(name, parts)

        turn = self.pool.in_turn = InTurn(self.calls, taken)
        torch.autograd.backward([self._total], retain_graph=again, inputs=[self._scope.anchor])
        count = len(before)
        turn.finish()
        assert len(before) == count, "all that was announced came, so nothing waited for the end"


@pytest.mark.parametrize("name", sorted(CASES))
def test_two_passes_over_any_operator_give_the_sum_of_one_example_at_a_time(name: str) -> None:
    case = CASES[name]
    model, batch = case.model().double(), case.batch(5, torch.float64)
    per_example = reference(model, batch, losses)
    rule = FlatClipping(float(norm_of(per_example).median()))
    backwards = Backwards(model, batch)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    passes = two_passes(rule, {name: [] for name in names}, count=5)
    backwards.run(passes.measure, again=True)
    assert not passes.weigh()
    found: dict[str, Tensor] = {}

    def take(name: str, parts: list[Contribution]) -> None:
        total = passes.sum(name, parts)
        assert total is not None
        found[name] = total

    backwards.run(take, again=False)
    passes.end()
    assert distance(found, clipped_sum_of(per_example, rule)) <= 1e-10


@pytest.mark.parametrize("rule", [FlatClipping(0.5), FlatClipping(1e6), GroupwiseClipping(0.5)])
@pytest.mark.parametrize("accumulation", [AsTheyCome, InFloat64])
def test_two_passes_give_the_sums_and_the_norms_of_all_at_once(rule: ClipRule, accumulation: Any) -> None:
    norms: list[Tensor] = []
    wanted_norms: list[Tensor] = []
    first, second = accumulation(), accumulation()
    wanted = clipped_sums(some_uses(), clip=rule, scale=2.0, on_norms=wanted_norms.append, accumulation=first)
    found = summed(rule, some_uses(), count=5, scale=2.0, norms=norms.append, accumulation=second)
    assert distance(found, wanted) <= 1e-7
    torch.testing.assert_close(torch.cat(norms), torch.cat(wanted_norms), rtol=1e-6, atol=0)
    assert second.error == first.error or second.error == pytest.approx(first.error, rel=0.2)
    assert math.isfinite(second.error) == (accumulation is InFloat64)


@pytest.mark.parametrize("huge", [1e25, 1e38, math.inf, math.nan])
def test_examples_that_float32_loses_are_measured_and_summed_in_float64(huge: float) -> None:
    """Guarantee: one that is not finite contributes exactly 0, and a finite one never more than its limit."""

    def uses() -> dict[str, list[Contribution]]:
        found = some_uses()
        found["b.weight"][0].operands[0][1] *= huge
        return found

    wanted = clipped_sums(uses(), clip=FlatClipping(0.5))
    assert distance(summed(FlatClipping(0.5), uses(), count=5), wanted) <= 1e-6
    alone = {name: [part.alone(1) for part in parts] for name, parts in uses().items()}
    own = summed(FlatClipping(0.5), alone, count=1)
    norm = float(torch.cat([total.flatten() for total in own.values()]).double().norm())
    assert norm == pytest.approx(0.5, rel=1e-5) if math.isfinite(huge) else norm == 0


@pytest.mark.parametrize("factor", [1 + 1e-4, 0.9])
def test_an_example_that_has_another_norm_the_second_time_is_refused(factor: float) -> None:
    """Guarantee: an example whose norm in the second pass is not the one it was weighed by is refused."""
    again = some_uses()
    again["b.weight"][0].operands[0][2] *= factor
    with pytest.raises(SensitivityMismatchError, match="another norm the second time"):
        summed(FlatClipping(0.5), some_uses(), again, count=5)
    if factor < 1:
        with pytest.raises(SensitivityMismatchError):  # also where nothing is clipped
            summed(FlatClipping(1e6), some_uses(), again, count=5)


def test_no_example_adds_more_than_the_clip_norm() -> None:
    uses = some_uses()
    for row in range(5):
        alone = {name: [part.alone(row) for part in parts] for name, parts in uses.items()}
        total = summed(FlatClipping(0.1), alone, count=1)
        norm = torch.cat([part.flatten() for part in total.values()]).double().norm()
        assert norm <= 0.1 * (1 + 1e-5)


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_group_is_summed_as_soon_as_all_of_it_came(is_whole: bool) -> None:
    """Guarantee: the sums are those of `clipped_sums`; what it holds it lets go with its group."""
    rule = GroupwiseClipping(0.5)
    uses = some_uses()
    bound = BoundRule(rule, [*uses, "a.more"])
    wanted = clipped_sums(some_uses(), clip=bound)
    found: dict[str, Tensor] = {}
    expected = uses if is_whole else [*uses, "a.more"]
    groups = GroupByGroup(bound, expected, 5, found.__setitem__, {})
    groups.take("a.bias", uses.pop("a.bias"))
    assert not found
    groups.take("b.weight", uses.pop("b.weight"))
    assert set(found) == {"b.weight"}
    groups.take("a.weight", uses.pop("a.weight"))
    assert ("a.weight" in found) == is_whole
    groups.end()
    assert set(found) == set(wanted)
    assert distance(found, wanted) <= 1e-7
