"""Clip rules by name: what a text means, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from hushgrad import (
    AutomaticClipping,
    FlatClipping,
    GroupwiseClipping,
    PerSampleAdaptiveClipping,
    QuantileClipping,
)
from hushgrad.clipping.named import NAMES, chosen, rule_named
from hushgrad.errors import InvalidArgumentError

MEANINGS = {
    "flat": FlatClipping(2.0),
    "automatic": AutomaticClipping(2.0, 0.01),
    "automatic:gamma=0.5": AutomaticClipping(2.0, 0.5),
    "per-sample-adaptive": PerSampleAdaptiveClipping(2.0, 0.1),
    "per-sample-adaptive:r=1": PerSampleAdaptiveClipping(2.0, 1.0),
    "per-layer": GroupwiseClipping(2.0, "layer"),
    "per-block:noise=least": GroupwiseClipping(2.0, "block", noise="least"),
    "per-parameter": GroupwiseClipping(2.0, "parameter"),
    "quantile": QuantileClipping(2.0, 0.5, 0.2, 20.0),
    "quantile:quantile=0.9,learning_rate=0.1": QuantileClipping(2.0, 0.9, 0.1, 20.0),
    "quantile:count_noise_multiplier=7": QuantileClipping(2.0, count_noise_multiplier=7.0),
}


@pytest.mark.parametrize("text", MEANINGS)
def test_a_name_means_a_rule(text: str) -> None:
    assert rule_named(text, 2, 400.0) == MEANINGS[text]


def test_every_name_has_its_meaning_here() -> None:
    assert {text.partition(":")[0] for text in MEANINGS} == set(NAMES)


def test_the_count_of_a_small_batch_has_noise_for_multipliers_up_to_10() -> None:
    assert rule_named("quantile", 1.0, 8.0) == QuantileClipping(1.0, count_noise_multiplier=5.0)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("ghost", "clipping: must be one of 'flat', 'automatic'"),
        ("flat:gamma=1", "flat takes no constants"),
        ("automatic:gamma", "automatic takes gamma, each once"),
        ("automatic:gamma=1,gamma=2", "each once"),
        ("automatic:r=1", "automatic takes gamma"),
        ("automatic:gamma=big", "gamma: must be a number, as automatic:gamma=0.5 has it"),
        ("automatic:gamma=0", "gamma: must be at least"),
        ("per-layer:noise=none", "noise: must be one of"),
    ],
)
def test_a_text_that_means_no_rule_is_refused(text: str, match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        rule_named(text, 1.0, 100.0)


@pytest.mark.parametrize("wrong", [None, 1.0, FlatClipping])
def test_what_is_neither_a_name_nor_a_rule_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="must be a clip rule such as"):
        chosen(wrong, None, 1.0)
