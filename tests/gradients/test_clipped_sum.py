"""Clipped sums under a rule of several groups, and the look at what enters that every physical batch gets."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from measure import captured, distance, reference
from torch import Tensor, nn

from hushgrad.clipping.bound import BoundRule
from hushgrad.clipping.flat import FlatClipping
from hushgrad.clipping.rule import ClipRule
from hushgrad.errors import SensitivityMismatchError
from hushgrad.gradients.clipped_sum import Weighed, clipped_sums, pending_sums
from hushgrad.gradients.contribution import Contribution, Plan, Way
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.oracle import clipped_sum_of
from hushgrad.gradients.outer import OuterProducts

B = 6


@dataclass(frozen=True)
class ByLayer(ClipRule):
    """Each module's parameters to their own share of C, the first half of them to less."""

    c: float = 1.0
    excess: float = 1.0

    @property
    def sensitivity(self) -> float:
        return self.c

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        layers: dict[str, list[str]] = {}
        for name in names:
            layers.setdefault(name.split(".")[0], []).append(name)
        return list(layers.values())

    def limits(self, count: int) -> list[float]:
        shares = [1.0 + place for place in range(count)]
        return [self.c * (share / sum(shares)) ** 0.5 for share in shares]

    def factors(self, norms_GB: Tensor) -> Tensor:
        limits_G1 = torch.tensor(self.limits(len(norms_GB)), dtype=norms_GB.dtype).unsqueeze(1)
        return self.excess * (limits_G1 / norms_GB).clamp(max=1)

    def scaled(self, factor: float) -> ByLayer:
        return ByLayer(self.c * factor)

    def reference(self, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
        groups, found = self.groups(list(per_example)), {}
        for limit, group in zip(self.limits(len(groups)), groups, strict=True):
            found |= FlatClipping(limit).reference({name: per_example[name] for name in group})
        return found


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Embedding(9, 5),
        nn.LayerNorm(5),
        nn.Flatten(),
        *(part for _ in range(5) for part in (nn.Linear(20, 20), nn.Tanh())),
        nn.Unflatten(1, (1, 20)),
        nn.Conv1d(1, 3, 3),
        nn.Flatten(),
        nn.Linear(54, 20),
        nn.Linear(20, 20, bias=False),
        nn.Linear(20, 2),
    )


def losses(out: Tensor) -> Tensor:
    return (3 * out).sin().sum(1)


@pytest.mark.parametrize("way", [None, "gram", "instantiate"])
@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
def test_groups_of_parameters_are_clipped_apart(way: Way | None, keep_bytes: int) -> None:
    network, batch = model().double(), torch.randint(9, (B, 4))
    per_example = reference(network, batch, losses)
    squares = [value.reshape(B, -1).square().sum(1) for value in per_example.values()]
    plan = Plan(way, keep_bytes)
    for c in (1e-3, float(torch.stack(squares).sum(0).sqrt().median()), 1e6):
        rule = ByLayer(c)
        bound = BoundRule(rule, per_example)
        assert len(bound.groups) == 11
        uses = {name: list(parts) for name, parts in captured(network, batch, losses, plan).items()}
        found = clipped_sums(uses, clip=bound, plan=plan)
        assert distance(found, clipped_sum_of(per_example, rule)) <= 1e-10


def test_a_rule_of_one_group_gives_the_bits_of_flat_clipping() -> None:
    network, batch = model(), torch.randint(9, (B, 4))
    names = [name for name, _ in network.named_parameters()]

    @dataclass(frozen=True)
    class Together(ByLayer):
        def groups(self, names: Sequence[str]) -> list[list[str]]:
            return [list(names)]

        def factors(self, norms_GB: Tensor) -> Tensor:
            return FlatClipping(self.c).factors(norms_GB)

    sums = []
    for rule in (FlatClipping(0.5), Together(0.5)):
        uses = {name: list(parts) for name, parts in captured(network, batch, losses).items()}
        sums.append(clipped_sums(uses, clip=BoundRule(rule, names)))
    assert sums[0].keys() == sums[1].keys()
    assert all(torch.equal(sums[0][name], sums[1][name]) for name in names)


def parts(*, dtype: torch.dtype = torch.float32) -> dict[str, list[Contribution]]:
    """Four parameters in two groups: small ones of one shape, and an outer product."""
    torch.manual_seed(1)
    return {
        "first.weight": [OuterProducts(torch.randn(B, 3, 4, dtype=dtype), torch.randn(B, 3, 5, dtype=dtype))],
        "first.bias": [Dense(torch.randn(B, 4, dtype=dtype))],
        "second.bias": [Dense(torch.randn(B, 4, dtype=dtype))],
        "second.scale": [Dense(torch.randn(B, 4, dtype=dtype))],
    }


NAMES = list(parts())


def expected(uses: Mapping[str, Sequence[Contribution]], rule: ClipRule, scale: float = 1.0) -> dict[str, Tensor]:
    return clipped_sum_of({name: scale * part.per_example().double() for name, (part,) in uses.items()}, rule)


@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_an_example_that_overflows_in_one_group_is_measured_again_in_all(scale: float) -> None:
    """Guarantee: a finite example contributes never more than its factor allows, also where its squared norm overflows
    float32."""
    uses, rule = parts(), ByLayer(2.0)
    uses["second.bias"][0].gradients[1] = 1e30  # type: ignore[attr-defined]
    wanted = expected(uses, rule, scale)
    found = clipped_sums(uses, clip=BoundRule(rule, NAMES), scale=scale)
    assert distance(found, wanted) <= 1e-5


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_an_example_that_is_not_finite_in_one_group_contributes_nothing_to_any(broken: float) -> None:
    """Guarantee: an example whose gradient is not finite contributes exactly 0."""
    uses, rule = parts(), ByLayer(2.0)
    uses["first.bias"][0].gradients[2, 1] = broken  # type: ignore[attr-defined]
    uses["second.bias"][0].gradients[4] = 1e30  # type: ignore[attr-defined]
    kept = torch.arange(B) != 2
    without = {name: [part.map_examples(lambda values: values[kept])] for name, (part,) in uses.items()}
    wanted = expected(without, rule)
    assert distance(clipped_sums(uses, clip=BoundRule(rule, NAMES)), wanted) <= 1e-5


def test_a_group_that_was_not_used_has_norms_of_zero() -> None:
    uses, rule, shown = parts(), ByLayer(2.0), []
    del uses["first.weight"], uses["first.bias"]
    bound = BoundRule(rule, NAMES)
    found = clipped_sums(uses, clip=bound, watch=shown.append)
    assert set(found) == {"second.bias", "second.scale"}
    (weighed,) = shown
    assert weighed.roots.shape == (2, B)
    assert not weighed.roots[0].any()


def test_groups_of_different_precision_are_measured_together() -> None:
    uses, rule = parts(), ByLayer(2.0)
    for name in ("second.bias", "second.scale"):
        uses[name] = [part.map_examples(torch.Tensor.double) for part in uses[name]]
    wanted = expected(uses, rule)
    found = clipped_sums(uses, clip=BoundRule(rule, NAMES))
    assert found["first.bias"].dtype == torch.float32
    assert found["second.bias"].dtype == torch.float64
    assert distance(found, wanted) <= 1e-5


# What enters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("excess", [1.001, 2.0, -2.0, torch.nan, torch.inf])
def test_nothing_is_summed_unless_what_enters_is_within_the_limits(excess: float, dtype: torch.dtype) -> None:
    """Guarantee: nothing is summed unless every example's factor times its norm is within the limit of each group."""
    rule = ByLayer(0.1, excess)
    for scale in (1.0, 4.0):
        with pytest.raises(SensitivityMismatchError, match="the clip rule ByLayer: an example would add more"):
            clipped_sums(parts(dtype=dtype), clip=BoundRule(rule, NAMES), scale=scale)


def test_one_example_of_many_in_one_group_is_enough() -> None:
    @dataclass(frozen=True)
    class Rare(ByLayer):
        def factors(self, norms_GB: Tensor) -> Tensor:
            found = super().factors(norms_GB)
            found[1] = torch.where(norms_GB[1] > 50, 1.01 * found[1], found[1])
            return found

    uses = parts()
    clipped_sums({name: list(part) for name, part in uses.items()}, clip=BoundRule(Rare(0.1), NAMES))
    uses["second.scale"][0].gradients[3] *= 100  # type: ignore[attr-defined]
    with pytest.raises(SensitivityMismatchError):
        clipped_sums(uses, clip=BoundRule(Rare(0.1), NAMES))


@pytest.mark.parametrize("broken", [torch.nan, 1e30])
def test_excess_beside_an_example_that_overflows_is_seen(broken: float) -> None:
    uses = parts()
    uses["first.bias"][0].gradients[2] = broken  # type: ignore[attr-defined]
    with pytest.raises(SensitivityMismatchError):
        clipped_sums(uses, clip=BoundRule(ByLayer(0.1, 1.5), NAMES))


def test_excess_of_an_example_that_overflows_is_seen() -> None:
    @dataclass(frozen=True)
    class BeyondFloat32(ByLayer):
        def factors(self, norms_GB: Tensor) -> Tensor:
            return torch.where(norms_GB > 1e20, 2.0, 1.0) * super().factors(norms_GB)

    uses, rule = parts(), BeyondFloat32(0.1)
    clipped_sums({name: list(part) for name, part in uses.items()}, clip=BoundRule(rule, NAMES))
    uses["first.bias"][0].gradients[2] = 1e30  # type: ignore[attr-defined]
    with pytest.raises(SensitivityMismatchError):
        clipped_sums(uses, clip=BoundRule(rule, NAMES))


def test_a_rule_that_changes_the_norms_it_is_given_hides_nothing() -> None:
    @dataclass(frozen=True)
    class Shrinks(ByLayer):
        def factors(self, norms_GB: Tensor) -> Tensor:
            found = 10 * super().factors(norms_GB)
            norms_GB.div_(100)
            return found

    with pytest.raises(SensitivityMismatchError):
        clipped_sums(parts(), clip=BoundRule(Shrinks(0.1), NAMES))


def test_a_factor_of_an_example_that_is_left_out_is_not_looked_at() -> None:
    """Norms that are not finite need no care in a rule: limit / NaN is NaN, and the example is out anyway."""
    uses = parts()
    uses["second.bias"][0].gradients[0] = torch.nan  # type: ignore[attr-defined]
    found = clipped_sums(uses, clip=BoundRule(ByLayer(0.1), NAMES))
    assert all(total.isfinite().all() for total in found.values())


def test_who_is_told_of_excess_decides_what_becomes_of_it() -> None:
    told: list[SensitivityMismatchError] = []
    found = clipped_sums(parts(), clip=BoundRule(ByLayer(0.1, 2.0), NAMES), on_excess=told.append)
    assert len(told) == 1
    wanted = expected(parts(), ByLayer(0.1))
    assert distance(found, {name: 2 * total for name, total in wanted.items()}) <= 1e-5


def test_what_is_watched_is_what_is_summed() -> None:
    shown: list[Weighed] = []
    clipped_sums(parts(), clip=BoundRule(ByLayer(0.1), NAMES), scale=3.0, watch=shown.append)
    (weighed,) = shown
    assert weighed.scale == 3.0
    factors = ByLayer(0.1).factors(weighed.roots * 3.0)
    torch.testing.assert_close(weighed.weights, factors * 3.0, rtol=0, atol=0)


@pytest.mark.parametrize("is_rescued", [False, True])
def test_sums_taken_one_by_one_are_those_of_all_at_once(is_rescued: bool) -> None:
    """Each is formed as it is taken, and what it was made of can go: one that was taken, or not used, is not there."""

    def uses() -> dict[str, list[Contribution]]:
        network, batch = model(), torch.randint(9, (B, 4), generator=torch.Generator().manual_seed(1))
        found = {name: list(part) for name, part in captured(network, batch, losses).items()}
        if is_rescued:
            found["0.weight"] = [Dense(part.per_example()) for part in found["0.weight"]]
            found["0.weight"][0].gradients[1] *= 1e30  # type: ignore[attr-defined]
        return found

    wanted = clipped_sums(uses(), clip=FlatClipping(0.5))
    pending = pending_sums(uses(), clip=FlatClipping(0.5))
    for name in reversed(list(wanted)):
        found = pending.take(name)
        assert found is not None
        assert torch.equal(found, wanted[name])
        assert pending.take(name) is None
    assert pending.take("no such parameter") is None
    assert pending.add_to({}) == {}
    assert pending_sums({}, clip=FlatClipping(0.5)).add_to({}) == {}


def test_what_a_sum_was_made_of_goes_as_it_is_taken() -> None:
    gradients = {name: torch.randn(B, 40, 50) for name in ("a", "b")}
    alive = {name: weakref.ref(part) for name, part in gradients.items()}
    pending = pending_sums({name: [Dense(part)] for name, part in gradients.items()}, clip=FlatClipping(0.5))
    gradients.clear()
    pending.take("a")
    assert [name for name, part in alive.items() if part() is not None] == ["b"]


def test_sums_of_several_batches_are_added_up_as_they_are_formed() -> None:
    first, second = parts(), parts()
    del second["first.bias"]
    rule = BoundRule(ByLayer(0.1), NAMES)
    wanted = expected(first, ByLayer(0.1))
    for name, total in expected(second, ByLayer(0.1)).items():
        wanted[name] = wanted[name] + total
    found = clipped_sums(second, clip=rule, into=clipped_sums(first, clip=rule))
    assert distance(found, wanted) <= 1e-5
