"""Bit for bit: values that were used twice, and values of fewer bits than were drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hushgrad.checks.verification.checks.noise_bits import low_bits, repeated, repeats, unrounded

NOISE = np.random.default_rng(5).standard_normal(4000).astype(np.float32)


def test_a_second_use_of_noise_is_found_across_steps_and_inside_of_one() -> None:
    assert repeats([{"a": NOISE[:2000]}, {"a": NOISE[2000:]}], ["a"], 32).passed
    assert not repeats([{"a": NOISE}, {"a": NOISE}], ["a"], 32).passed
    assert repeated(NOISE, 32) == 0
    assert repeated(np.concatenate([NOISE[:50], NOISE[:50]]), 32) == 50 - 4 + 1


def test_noise_rounded_to_16_bits_fails_and_is_not_judged_where_the_parameter_has_16() -> None:
    rounded = NOISE.astype(np.float16).astype(np.float32)
    assert low_bits([{"a": NOISE}], ["a"], 32).passed
    assert not low_bits([{"a": rounded}], ["a"], 32).passed
    assert low_bits([{"a": rounded}], ["a"], 16).sample_size == 0


def test_noise_on_a_coarse_grid_fails() -> None:
    assert not low_bits([{"a": np.round(NOISE * 8) / np.float32(8.1)}], ["a"], 32).passed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_of_16_bits_are_spread_among_those_that_round_to_them(dtype: torch.dtype) -> None:
    values = torch.from_numpy(NOISE).to(dtype)
    spread = unrounded(values.float().numpy())
    assert torch.equal(torch.from_numpy(spread).to(dtype), values)
    assert len(np.unique(spread)) > len(values.unique())
    assert (unrounded(np.zeros(3, np.float32)) >= 0).all()
