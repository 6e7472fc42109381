"""A rule bound to a model: its groups are a partition, its limits fit its sensitivity, and excess is seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from hushgrad.clipping.bound import SMALLEST_NORM, TOLERANCE, BoundRule
from hushgrad.clipping.flat import FlatClipping
from hushgrad.clipping.rule import ClipRule
from hushgrad.errors import ContractChangedError, HushgradError, InvalidArgumentError, SensitivityMismatchError

NAMES = ("a", "b", "c")


@dataclass(frozen=True)
class Stated(ClipRule):
    """A rule that says what it is told to say."""

    parts: Any = (("a", "c"), ("b",))
    bounds: Any = (3.0, 4.0)
    sensitivity: float = 5.0

    def groups(self, names: Sequence[str]) -> Any:
        return self.parts

    def limits(self, count: int) -> Any:
        return self.bounds

    def factors(self, norms_GB: Tensor) -> Tensor:
        return (torch.tensor(self.bounds).unsqueeze(1) / norms_GB).clamp(max=1)

    def scaled(self, factor: float) -> Stated:
        raise NotImplementedError

    def reference(self, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError


def test_a_rule_is_bound_to_the_parameters_of_a_model() -> None:
    bound = BoundRule(Stated(), NAMES)
    assert bound.groups == (("a", "c"), ("b",))
    assert bound.limits == (3.0, 4.0)
    assert bound.split({"c": 1, "b": 2}) == [{"c": 1}, {"b": 2}]
    assert bound.split({"b": 2}) == [{}, {"b": 2}]


def test_flat_clipping_is_one_group_of_all_parameters() -> None:
    bound = BoundRule(FlatClipping(2), iter(NAMES))
    assert (bound.groups, bound.limits) == ((NAMES,), (2.0,))
    parts = {"a": 1}
    assert bound.split(parts)[0] is parts


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ((("a",), ("b",)), r"in no group: c"),
        ((("a", "b"), ("b", "c")), r"in more than one: b"),
        ((("a", "a", "b", "c"),), r"in more than one: a"),
        ((("a", "b", "c", "d"), ("e",)), r"not a trainable parameter: d, e"),
        ((("a", "b", "c"), ()), r"empty: group 1"),
        ((("a",), ("b", "d", "a")), r"in no group: c; in more than one: a; not a trainable parameter: d"),
        ((), r"in no group: a, b, c"),
        (("a", "b", "c"), r"groups, each a sequence of names"),
        ("abc", r"a sequence of groups of names, got str"),
        ({"a": 1}, r"a sequence of groups of names, got dict"),
        (None, r"a sequence of groups of names, got NoneType"),
    ],
)
def test_groups_that_are_no_partition_are_refused_naming_all_that_is_wrong(parts: Any, what: str) -> None:
    """Guarantee: each parameter is in exactly one group."""
    with pytest.raises(InvalidArgumentError, match=what) as caught:
        BoundRule(Stated(parts=parts), NAMES)
    assert caught.value.where == "the clip rule Stated"


@pytest.mark.parametrize("bounds", [(3.0,), (1.0, 1.0, 1.0), ()])
def test_a_limit_for_each_group_and_no_other(bounds: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="one limit for each of 2 groups"):
        BoundRule(Stated(bounds=bounds), NAMES)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, None, "1", True])
def test_a_limit_that_is_not_a_positive_number_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="the limit of group 1"):
        BoundRule(Stated(bounds=(1.0, bad)), NAMES)


@pytest.mark.parametrize("sensitivity", [4.999, 4.0, 3.0, 1e-9])
def test_limits_that_come_to_more_than_the_sensitivity_are_refused(sensitivity: float) -> None:
    """Guarantee: the root of the sum of squared limits is at most the sensitivity that the noise is made from."""
    with pytest.raises(SensitivityMismatchError, match="come to 5 together"):
        BoundRule(Stated(sensitivity=sensitivity), NAMES)
    BoundRule(Stated(sensitivity=math.hypot(3, 4)), NAMES)
    BoundRule(Stated(sensitivity=7.0), NAMES)


def test_equal_limits_whose_root_is_rounded_are_no_excess() -> None:
    for count in range(1, 400):
        names = [str(number) for number in range(count)]
        parts = tuple((name,) for name in names)
        BoundRule(Stated(parts, (0.7 / count**0.5,) * count, 0.7), names)


def test_a_parameter_that_is_in_no_group_later_is_refused() -> None:
    with pytest.raises(ContractChangedError, match=r"DP404 new: it is trained now"):
        BoundRule(Stated(), NAMES).split({"a": 1, "new": 2})


# Factors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "found", [None, 1.0, torch.ones(2), torch.ones(3, 2), torch.ones(2, 3).int(), torch.ones(1, 3)]
)
def test_factors_of_another_form_are_refused(found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stated, "factors", lambda self, norms_GB: found)
    with pytest.raises(InvalidArgumentError, match=r"of the shape of the norms, \[2, 3\]"):
        BoundRule(Stated(), NAMES).factors(torch.ones(2, 3))


def within(weights: list[list[float]], roots: list[list[float]], scale: float = 1.0) -> list[list[bool]]:
    for dtype in (torch.float32, torch.float64):
        given = torch.tensor(roots, dtype=dtype), torch.tensor(weights, dtype=dtype)
        found: list[list[bool]] = BoundRule(Stated(), NAMES).within(*given, scale).tolist()
    return found


def test_what_enters_is_compared_with_the_limit_of_its_group() -> None:
    assert within([[1.0, 1.0, 0.5], [1.0, 1.0, 0.5]], [[3.0, 3.5, 6.0], [3.5, 4.5, 8.0]]) == [
        [True, False, True],
        [True, False, True],
    ]


def test_a_negative_factor_is_no_way_around_the_limit() -> None:
    assert within([[-2.0, -1.0], [-1.0, -9.0]], [[2.0, 2.0], [4.0, 4.0]]) == [[False, True], [True, False]]


@pytest.mark.parametrize(("weight", "root"), [(math.nan, 1.0), (math.inf, 0.0), (0.0, math.inf), (0.0, math.nan)])
def test_what_is_not_a_number_is_never_within(weight: float, root: float) -> None:
    assert within([[weight], [1.0]], [[root], [1.0]]) == [[False], [True]]


def test_a_huge_factor_of_a_norm_that_underflowed_is_excess() -> None:
    """A norm of 0 in float32 may be 1e-23 times the root of the number of values."""
    assert within([[1e30, 1e8], [1.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]]) == [[False, True], [True, True]]


def test_rounding_is_no_excess_and_what_is_more_is() -> None:
    limit = FlatClipping(0.3)
    bound, norms = BoundRule(limit, NAMES), 0.3 + torch.rand(1, 10_000) * 100
    for scale in (1.0, 7.0, 4096.0):
        weights = bound.factors(norms * scale) * scale
        assert bound.within(norms, weights, scale).all()
        assert not bound.within(norms, weights * (1 + 3 * TOLERANCE), scale).any()


@pytest.mark.parametrize("c", [1e-20, 1e-12, 1e-6, 1.0, 1e30])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_flat_clipping_is_within_its_limit_whatever_it_is(c: float, scale: float) -> None:
    bound = BoundRule(FlatClipping(c), NAMES)
    norms = torch.tensor([[0.0, 1e-30, c / 2, c, 3 * c, 1e19, SMALLEST_NORM]])
    roots = norms / scale
    assert bound.within(roots, bound.factors(roots * scale) * scale, scale).all()


def test_the_error_of_excess_names_the_rule_and_says_what_to_do() -> None:
    error: HushgradError = BoundRule(Stated(), NAMES).excess()
    assert (error.code, error.where) == ("DP407", "the clip rule Stated")
    assert "limit / norm" in error.cure


def test_a_sensitivity_that_shrinks_later_is_refused() -> None:
    held = {"c": 5.0}

    @dataclass(frozen=True)
    class Moving(Stated):
        @property
        def sensitivity(self) -> float:  # type: ignore[override]
            return held["c"]

        def __init__(self) -> None:
            object.__setattr__(self, "parts", Stated.parts)
            object.__setattr__(self, "bounds", Stated.bounds)

    bound = BoundRule(Moving(), NAMES)
    bound.factors(torch.ones(2, 3))
    held["c"] = 4.0
    with pytest.raises(ContractChangedError, match="its sensitivity has become smaller"):
        bound.factors(torch.ones(2, 3))
