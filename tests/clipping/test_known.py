"""What is required of a clip rule before it is used, and which ones are hushgrad's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hushgrad
from hushgrad import DPSGD, ClipRule, FlatClipping, PoissonSampling
from hushgrad.clipping.known import OWN, is_own, require_clip_rule
from hushgrad.errors import InvalidArgumentError


class Base(ClipRule):
    """All that a rule needs but its constants."""

    def limits(self, count: int) -> tuple[float, ...]:
        return (1.0,) * count

    def factors(self, norms_GB: Tensor) -> Tensor:
        return (1 / norms_GB).clamp(max=1)

    def scaled(self, factor: float) -> Any:
        return self

    def reference(self, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return FlatClipping(1.0).reference(per_example)


@dataclass(frozen=True)
class Own(Base):
    sensitivity: Any = 1.0
    constants: Any = ()


def test_a_frozen_dataclass_with_a_sensitivity_is_a_rule() -> None:
    rule = Own()
    assert require_clip_rule(rule) is rule
    mechanism = DPSGD(noise_multiplier=2.0, clipping=Own(3.0), sampling=PoissonSampling(0.1), expected_batch_size=4)
    assert mechanism.noise_std == 6.0


@pytest.mark.parametrize("wrong", [None, 1.0, "flat", FlatClipping, Own, object()])
def test_what_is_no_clip_rule_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"must be a clip rule.*hushgrad\.ClipRule"):
        require_clip_rule(wrong)


class Plain(Base):
    sensitivity = 1.0


@dataclass
class Mutable(Base):
    sensitivity: float = 1.0


class Derived(Own):
    """Its own fields would be in nobody's text."""

    more = 3.0


@pytest.mark.parametrize("rule", [Plain(), Mutable(), Derived()])
def test_a_rule_that_could_change_is_refused(rule: ClipRule) -> None:
    with pytest.raises(InvalidArgumentError, match=r"frozen dataclass itself.*@dataclass\(frozen=True\)"):
        require_clip_rule(rule)


@dataclass(frozen=True)
class Silent(Base):
    """It has no sensitivity."""


@pytest.mark.parametrize("rule", [Silent(), *map(Own, (0.0, -1.0, float("nan"), float("inf"), None, "1", True))])
def test_a_rule_without_a_positive_sensitivity_is_refused(rule: ClipRule) -> None:
    with pytest.raises(InvalidArgumentError, match=r"sensitivity: must be"):
        require_clip_rule(rule)


@pytest.mark.parametrize(
    ("constants", "text"),
    [
        (0.1, "0.1"),
        (np.float64(0.1), "0.1"),
        ((1, "conv", None, True), "(1, 'conv', None, True)"),
        ([0.5, (1e-30,)], "(0.5, (1e-30))"),
        ({"conv": 0.5, "head": 2}, "{'conv': 0.5, 'head': 2}"),
    ],
)
def test_a_rule_is_described_by_its_name_and_its_constants(constants: Any, text: str) -> None:
    assert Own(2.0, constants).describe() == f"Own(sensitivity=2.0, constants={text})"


@pytest.mark.parametrize("constants", [torch.ones(2), np.ones(2), object(), {1, 2}])
def test_a_constant_without_one_spelling_is_refused_and_the_way_on_is_named(constants: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"no one spelling.*describe\(\)"):
        require_clip_rule(Own(1.0, constants))


@dataclass(frozen=True)
class Told(Base):
    text: Any = ""
    sensitivity: float = 1.0

    def describe(self) -> Any:
        return self.text


@pytest.mark.parametrize("text", ["", None, 3, "two\nlines", "\x1b[31mred"])
def test_a_rule_must_be_named_in_one_printable_line(text: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="one printable line"):
        require_clip_rule(Told(text))


def test_a_rule_cannot_go_by_the_name_of_hushgrads_own() -> None:
    impostor = dataclass(frozen=True)(type("FlatClipping", (Own,), {"__annotations__": {}}))
    for rule in (Told("FlatClipping(max_grad_norm=1.0)"), impostor()):
        with pytest.raises(InvalidArgumentError, match=r"calls itself FlatClipping.*a name of its own"):
            require_clip_rule(rule)
    assert require_clip_rule(Told("FlatClippingOfMine(1.0)"))


def test_only_hushgrads_own_rules_are_its_own() -> None:
    assert FlatClipping in OWN
    assert hushgrad.FlatClipping in OWN
    assert is_own(FlatClipping(1.0))
    assert not is_own(Own())
