"""A clip rule is asked what it says: right ones agree with themselves, and a planted mistake has its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from hushgrad.checks.verification.checks.clipping import RuleReading, read_rule, reads_as_reference
from hushgrad.clipping.flat import FlatClipping
from hushgrad.clipping.rule import ClipRule

NAMES = ["a.weight", "a.bias", "b.weight", "b.bias", "c"]


@dataclass(frozen=True)
class Automatic(ClipRule):
    """Every gradient to nearly norm C, however small (Bu et al. 2022): the factor may be far above 1."""

    sensitivity: float = 0.5
    gamma: float = 0.01

    def limits(self, count: int) -> list[float]:
        return [self.sensitivity]

    def factors(self, norms_GB: Tensor) -> Tensor:
        return self.sensitivity / (norms_GB + self.gamma)

    def scaled(self, factor: float) -> Automatic:
        return replace(self, sensitivity=factor * self.sensitivity)

    def reference(self, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
        norms_B = torch.cat([gradients.flatten(1) for gradients in per_example.values()], 1).norm(dim=1)
        factors_B = self.sensitivity / (norms_B + self.gamma)
        return {name: torch.einsum("b,b...->...", factors_B, value) for name, value in per_example.items()}


@dataclass(frozen=True)
class ByLayer(ClipRule):
    """Each layer to the same share, with the places where mistakes are planted."""

    sensitivity: float = 0.5
    of_factors: Callable[[Tensor], Tensor] = lambda factors_GB: factors_GB
    of_reference: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda sums: sums
    times: float = 1.0

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        layers: dict[str, list[str]] = {}
        for name in reversed(names):
            layers.setdefault(name.split(".")[0], []).append(name)
        return list(layers.values())

    def limits(self, count: int) -> list[float]:
        return [self.sensitivity / count**0.5] * count

    def factors(self, norms_GB: Tensor) -> Tensor:
        return self.of_factors((self.limits(len(norms_GB))[0] / norms_GB).clamp(max=1))

    def scaled(self, factor: float) -> ByLayer:
        return replace(self, sensitivity=factor * self.sensitivity)

    def reference(self, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
        groups, found = self.groups(list(per_example)), {}
        for group in groups:
            flat = FlatClipping(self.times * self.limits(len(groups))[0])
            found |= flat.reference({name: per_example[name] for name in group})
        return self.of_reference(found)


def failed(reading: RuleReading) -> set[str]:
    return {cause.code for cause in reading.causes}


@pytest.mark.parametrize("c", [1e-3, 0.5, 40.0])
@pytest.mark.parametrize("make", [FlatClipping, Automatic, ByLayer])
def test_a_rule_that_is_right_agrees_with_itself(make: Callable[[float], ClipRule], c: float) -> None:
    for rule in (make(c), make(c).scaled(0.3)):
        reading = read_rule(rule, NAMES)
        assert all(check.passed for check in reading.checks), [check.measured for check in reading.checks]
        assert (len(reading.checks), reading.causes) == (4, ())


def test_one_parameter_is_enough() -> None:
    assert not failed(read_rule(FlatClipping(2.0), ["weight"]))


@pytest.mark.parametrize(
    ("rule", "codes"),
    [
        (ByLayer(of_factors=lambda f: 1.01 * f), {"factor-above-limit", "factors-differ-from-reference"}),
        (ByLayer(of_factors=lambda f: -2 * f), {"factor-above-limit", "factors-differ-from-reference"}),
        (ByLayer(of_factors=lambda f: 0.9 * f), {"factors-differ-from-reference"}),
        (
            ByLayer(of_factors=lambda f: f.amin(1, keepdim=True).expand_as(f)),
            {"factors-depend-on-others", "factors-differ-from-reference"},
        ),
        (ByLayer(of_factors=lambda f: f.flip(0)), {"factor-above-limit", "factors-differ-from-reference"}),
        (ByLayer(times=0.5), {"factors-differ-from-reference"}),
        (ByLayer(times=1.5), {"factors-differ-from-reference", "reference-above-sensitivity"}),
        (
            ByLayer(of_reference=lambda sums: {n: v for n, v in sums.items() if "bias" not in n}),
            {"factors-differ-from-reference"},
        ),
        (
            ByLayer(of_reference=lambda sums: {n: v.unsqueeze(0) for n, v in sums.items()}),
            {"factors-differ-from-reference"},
        ),
        (
            ByLayer(of_reference=lambda sums: {n: v * torch.nan for n, v in sums.items()}),
            {"factors-differ-from-reference", "reference-above-sensitivity"},
        ),
        (Automatic(gamma=-0.01), {"factor-above-limit", "reference-above-sensitivity"}),
        (Automatic(gamma=0.0), {"factor-above-limit"}),
    ],
)
def test_a_planted_mistake_is_named(rule: ClipRule, codes: set[str]) -> None:
    reading = read_rule(rule, NAMES)
    assert codes <= failed(reading)
    assert len(reading.causes) == sum(not check.passed for check in reading.checks)
    if len(codes) == 1 and "factors-differ-from-reference" in codes:
        assert failed(reading) == codes


def test_what_is_added_is_compared_with_the_reference() -> None:
    expected = {row: {"w": torch.ones(4) * row} for row in range(3)}
    room = 1e-3
    assert reads_as_reference(expected, expected, 1.0, room).passed
    near = {row: {"w": value["w"] + 4e-4} for row, value in expected.items()}
    assert reads_as_reference(near, expected, 1.0, room).passed
    far = {**expected, 1: {"w": expected[1]["w"] * 1.01}}
    assert not reads_as_reference(far, expected, 1.0, room).passed
    for other in ({"v": torch.zeros(4)}, {}, {"w": torch.zeros(3)}, {"w": torch.zeros(4) * torch.nan}):
        assert not reads_as_reference({**expected, 0: other}, expected, 1.0, room).passed
