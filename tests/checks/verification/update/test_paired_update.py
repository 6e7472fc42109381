"""A function under test: paired if its noise comes from the global generators, and its noise then cancels."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from hushgrad.checks.verification.update.paired_update import (
    FunctionUpdate,
    PairedUpdate,
    arrays,
    narrowest,
    norm,
    read_output,
    rounding_error,
    seeded,
)
from hushgrad.errors import InvalidArgumentError


def noisy(stimulus: Tensor) -> Tensor:
    return stimulus.sum(0) + torch.randn(stimulus.shape[1:])


def test_noise_of_the_global_generator_cancels_between_two_calls() -> None:
    update = FunctionUpdate(noisy)
    update.find_pairing(torch.zeros(2, 5))
    assert update.is_paired
    found = update.difference(torch.ones(2, 5), torch.zeros(2, 5))
    assert torch.allclose(found["update"], torch.full((5,), 2.0).double(), atol=1e-5)
    as_protocol: PairedUpdate = update
    assert as_protocol.error_of_difference(1.0) == rounding_error(1.0, 32) < 1e-6


@pytest.mark.statistical
def test_other_noise_is_averaged_out() -> None:
    """Fixed draws; each value is within six of its standard errors."""
    source = np.random.default_rng(3)
    update = FunctionUpdate(lambda stimulus: stimulus.sum(0) + torch.from_numpy(source.standard_normal(5)))
    update.find_pairing(torch.zeros(2, 5))
    assert not update.is_paired
    found = update.difference(torch.ones(2, 5), torch.zeros(2, 5))["update"]
    assert float((found - 2).abs().max()) < 6 * update.error_of_difference(1.0)


def test_a_seed_holds_for_a_while_and_leaves_the_global_generators_as_they_were() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with seeded(3):
        first = torch.rand(1), np.random.rand(), random.random()
    with seeded(3):
        assert (torch.rand(1), np.random.rand(), random.random()) == first
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_an_update_is_a_tensor_a_list_or_a_mapping_of_them() -> None:
    assert set(read_output([torch.ones(1), np.ones(2)])) == {"0", "1"}
    assert set(read_output({"w": torch.ones(1)})) == {"w"}
    for wrong in (3, [torch.ones(1, dtype=torch.int64)], "text"):
        with pytest.raises(InvalidArgumentError, match="floating-point"):
            read_output(wrong)


def test_an_update_that_returns_other_tensors_the_second_time_is_refused() -> None:
    counts = iter((1, 2))
    update = FunctionUpdate(lambda stimulus: [torch.ones(1)] * next(counts))
    update.call(None)
    with pytest.raises(InvalidArgumentError, match="returned 2 tensors, and 1 before"):
        update.call(None)


def test_norms_and_widths_are_over_all_tensors_together() -> None:
    values = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0], dtype=torch.bfloat16)}
    assert norm(values) == 5.0
    assert norm({"a": torch.tensor([float("nan")])}) == float("inf")
    assert narrowest(values) == 16
    assert arrays(values)["b"].dtype == np.float32
