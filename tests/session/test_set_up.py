"""What a session is made of, and what is refused before anything is put on the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hushgrad import DPSGD, FlatClipping, PoissonSampling
from hushgrad.errors import InvalidArgumentError
from hushgrad.guards.in_use import is_in_use
from hushgrad.randomness import Address, KeyStream
from hushgrad.session.set_up import set_up

MECHANISM = DPSGD(
    noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.5), expected_batch_size=8
)


def parts_of(model: nn.Module, mechanism: Any = MECHANISM, **changes: Any) -> Any:
    return set_up(model, torch.optim.SGD(model.parameters(), lr=0.1), mechanism, **changes)


def test_a_set_up_claims_nothing_yet() -> None:
    model = nn.Linear(3, 2)
    parts = parts_of(model)
    assert list(parts.parameters) == ["weight", "bias"]
    assert not is_in_use([model])


def test_two_sessions_have_different_secret_bits_and_a_test_key_repeats_its_own() -> None:
    def bits(**changes: Any) -> bytes:
        return bytes(parts_of(nn.Linear(3, 2), **changes).draws.read(Address(0), 32))

    assert bits() != bits()
    assert bits(key=KeyStream.fixed_for_tests(1)) == bits(key=KeyStream.fixed_for_tests(1))


@pytest.mark.parametrize("wrong", [{"mechanism": 1.0}, {"key": KeyStream.from_operating_system()}, {"key": 3}])
def test_what_is_no_mechanism_or_no_test_key_is_refused(wrong: dict[str, Any]) -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(InvalidArgumentError):
        parts_of(model, **wrong)
    assert not model._forward_pre_hooks


def test_parts_of_hushgrads_own_are_not_on_trust_and_subclasses_are() -> None:
    class Own(DPSGD):
        pass

    def trusted(mechanism: DPSGD) -> set[str]:
        found = parts_of(nn.Linear(3, 2), mechanism=mechanism).spending.guarantee(1e-5, "saddle-point")
        return {condition.name for condition in found.conditions}

    values = {name: getattr(MECHANISM, name) for name in ("noise_multiplier", "clipping", "sampling")}
    assert "third-party mechanism" not in trusted(MECHANISM)
    assert "third-party mechanism" in trusted(Own(**values, expected_batch_size=8))
