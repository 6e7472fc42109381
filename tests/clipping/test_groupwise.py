"""Group-wise clipping: which parameters are a group, the norms of groups, and the noise that each gets."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.clipping.test_bound import Stated

from hushgrad import GroupwiseClipping
from hushgrad.clipping.bound import BoundRule
from hushgrad.clipping.rule import ClipRule
from hushgrad.errors import InvalidArgumentError, SensitivityMismatchError

NAMES = (
    "wte.weight", "h.0.attn.weight", "h.0.attn.bias", "h.0.ln.weight", "h.1.attn.weight", "h.1.attn.bias", "scale",
    "head.weight",
)  # fmt: skip
PAIRS = st.lists(st.tuples(st.floats(1e-3, 1e3), st.integers(1, 10**7)), min_size=1, max_size=12)


def test_groups_are_layers_blocks_parameters_prefixes_or_given() -> None:
    assert GroupwiseClipping(1.0).groups(NAMES) == [
        ("wte.weight",), ("h.0.attn.weight", "h.0.attn.bias"), ("h.0.ln.weight",),
        ("h.1.attn.weight", "h.1.attn.bias"), ("scale",), ("head.weight",),
    ]  # fmt: skip
    assert GroupwiseClipping(1.0, "block").groups(NAMES) == [
        ("wte.weight",), ("h.0.attn.weight", "h.0.attn.bias", "h.0.ln.weight"),
        ("h.1.attn.weight", "h.1.attn.bias"), ("scale",), ("head.weight",),
    ]  # fmt: skip
    assert GroupwiseClipping(1.0, "parameter").groups(NAMES) == [(name,) for name in NAMES]
    assert GroupwiseClipping(1.0, ("h", "h.1", "wte", "head", "scale")).groups(NAMES) == [
        NAMES[1:4], NAMES[4:6], NAMES[:1], NAMES[7:], NAMES[6:7],
    ]  # fmt: skip
    assert GroupwiseClipping(1.0, (NAMES[1:], NAMES[:1])).groups(NAMES) == [NAMES[1:], NAMES[:1]]


def test_the_norms_are_equal_or_given_and_come_to_c_together() -> None:
    equal = GroupwiseClipping(3.0)
    assert equal.limits(9) == (1.0,) * 9
    given = GroupwiseClipping(by=("a", "b"), norms=(3, 4))
    assert (given.sensitivity, given.limits(2)) == (5.0, (3.0, 4.0))
    assert given.scaled(2).limits(2) == (6.0, 8.0)
    assert given.scaled(2).sensitivity == 10.0
    assert equal.scaled(2) == GroupwiseClipping(6.0)


@given(pairs=PAIRS, noise=st.sampled_from(["same", "equal-budget", "least"]))
def test_whatever_noise_groups_get_the_charge_is_that_of_the_noise_multiplier(
    pairs: list[tuple[float, int]], noise: str
) -> None:
    """√Σ (C_l / s_l)² = 1/σ for the standard deviations s_l, to 1e-12."""
    norms, sizes = [norm for norm, _ in pairs], {f"p{i}": size for i, (_, size) in enumerate(pairs)}
    rule = GroupwiseClipping(by=tuple(sizes), norms=tuple(norms), noise=noise)
    clip, sigma = BoundRule(rule, sizes, sizes=sizes), 1.3
    stds = [sigma * rule.sensitivity * clip.relative[name] for name in sizes]
    assert math.hypot(*(norm / std for norm, std in zip(norms, stds, strict=True))) == pytest.approx(1 / sigma, 1e-12)


@given(pairs=PAIRS)
def test_equal_budget_and_least_noise_are_the_closed_forms(pairs: list[tuple[float, int]]) -> None:
    """s_l = σ √m C_l; and s_l in proportion to √C_l d_l^(-1/4), than which no other one tried has less in all."""
    norms, sizes = [norm for norm, _ in pairs], [size for _, size in pairs]
    prefixes = tuple(map(str, range(len(pairs))))
    stds = {
        noise: [
            rule.sensitivity * r
            for rule in [GroupwiseClipping(by=prefixes, norms=tuple(norms), noise=noise)]
            for r in rule.relative_noise(sizes)
        ]
        for noise in ("same", "equal-budget", "least")
    }
    assert stds["equal-budget"] == pytest.approx([math.sqrt(len(norms)) * norm for norm in norms])
    ratios = [s / (math.sqrt(c) * d**-0.25) for s, c, d in zip(stds["least"], norms, sizes, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    total = {noise: sum(d * s**2 for s, d in zip(found, sizes, strict=True)) for noise, found in stds.items()}
    assert total["least"] <= min(total.values()) * (1 + 1e-9)


@given(
    norms=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6),
    given_norms=st.lists(st.floats(0, 1e20), min_size=6, max_size=6),
)
def test_one_example_changes_each_group_by_at_most_its_norm_and_the_whole_by_c(
    norms: list[float], given_norms: list[float]
) -> None:
    """Guarantee: adding or removing one example changes the sum of each group l by at most C_l, and the whole by C."""
    rule = GroupwiseClipping(by=tuple(map(str, range(len(norms)))), norms=tuple(norms))
    norms_GB = torch.tensor(given_norms[: len(norms)], dtype=torch.float64).unsqueeze(1)
    entered = (rule.factors(norms_GB) * norms_GB).flatten().tolist()
    assert all(norm <= limit * (1 + 1e-12) for norm, limit in zip(entered, norms, strict=True))
    assert math.hypot(*entered) <= rule.sensitivity * (1 + 1e-12)


def test_the_norm_of_a_group_that_was_not_used_divides_nothing() -> None:
    norms_GB = torch.tensor([[0.0, 2.0, math.nan], [0.0, 0.0, 1.0]])
    assert GroupwiseClipping(math.sqrt(2)).factors(norms_GB).tolist() == [[1.0, 0.5, 0.0], [1.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({}, "max_grad_norm: must be a real number"),
        ({"max_grad_norm": 1.0, "by": "module"}, "by: must be one of 'layer', 'block', 'parameter', got 'module'"),
        ({"max_grad_norm": 1.0, "by": 3}, "a tuple of prefixes, or a tuple of tuples"),
        ({"max_grad_norm": 1.0, "by": ()}, "a tuple of prefixes, or a tuple of tuples"),
        ({"max_grad_norm": 1.0, "by": (("a",), ())}, "a tuple of prefixes, or a tuple of tuples"),
        ({"max_grad_norm": 1.0, "by": ("a", "a")}, "named twice, so that it would be in two groups"),
        ({"max_grad_norm": 1.0, "by": (("a", "b"), ("b",))}, "named twice, so that it would be in two groups"),
        ({"by": ("a", "b"), "norms": (1.0, 0.0)}, r"norms\[1\]: must be > 0"),
        ({"by": ("a", "b"), "norms": 1.0}, "one norm for each group, got float"),
        ({"max_grad_norm": 2.0, "by": ("a", "b"), "norms": (3.0, 4.0)}, "come to 5 together"),
        ({"max_grad_norm": 1.0, "noise": "none"}, "noise: must be one of 'same', 'equal-budget', 'least'"),
    ],
)
def test_what_says_no_groups_norms_or_noise_is_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        GroupwiseClipping(**settings)


@pytest.mark.parametrize(
    ("rule", "match"),
    [
        (GroupwiseClipping(1.0, ("wte", "h", "scale")), "in no group: head.weight"),
        (GroupwiseClipping(1.0, ("wte", "h", "scale", "head", "lm_head")), "empty: group 4"),
        (GroupwiseClipping(1.0, (NAMES, ("lm_head.weight",))), "not a trainable parameter: lm_head.weight"),
        (GroupwiseClipping(by="block", norms=(1.0, 2.0)), "one limit for each of 5 groups, got 2"),
    ],
)
def test_groups_that_are_no_partition_of_a_model_are_refused(rule: ClipRule, match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        BoundRule(rule, NAMES)


def test_too_little_noise_for_the_groups_is_seen_when_a_rule_is_bound() -> None:
    """Noise of σ·C_l for each group, charged as σ, is a factor √m too little."""

    class Own(Stated):
        def relative_noise(self, sizes: Any) -> Any:
            return [limit / self.sensitivity for limit in self.bounds]

    sizes = {"a": 1, "b": 2, "c": 3}
    with pytest.raises(SensitivityMismatchError, match=r"each over its group's relative noise\), more than the sens"):
        BoundRule(Own(), sizes, sizes=sizes)
    Own.relative_noise = lambda self, sizes: [1.0]  # type: ignore[assignment,method-assign]
    with pytest.raises(InvalidArgumentError, match="one number for each of 2 groups, got 1"):
        BoundRule(Own(), sizes, sizes=sizes)
    Own.relative_noise = lambda self, sizes: [1.0, 0.0]  # type: ignore[assignment,method-assign]
    with pytest.raises(InvalidArgumentError, match="the relative noise of group 1: must be > 0"):
        BoundRule(Own(), sizes, sizes=sizes)
