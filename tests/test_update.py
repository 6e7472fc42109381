"""The noised update that is made of the clipped sums. Its noise is measured in test_engine."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hushgrad.update
from hushgrad import DPSGD, FlatClipping, PoissonSampling, privatize
from hushgrad.randomness import KeyStream
from hushgrad.update import Update

MECHANISM = DPSGD(
    noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.5), expected_batch_size=8
)


def updated(parameters: dict[str, nn.Parameter], seed: int = 1) -> Update:
    return Update(parameters, MECHANISM, KeyStream.fixed_for_tests(seed), None)


def shapes(**sizes: tuple[int, ...]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.zeros(size)) for name, size in sizes.items()}


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}], ids=["plain", "fused", "foreach"])
def test_parameters_in_channels_last_get_updates_in_channels_last(options: dict[str, Any]) -> None:
    """A fused optimizer pairs the raw memory of parameter and gradient, whatever their strides."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2)).to(memory_format=torch.channels_last)
    plain = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, **options)
    session = privatize(model, optimizer, replace(MECHANISM, noise_multiplier=0, clipping=FlatClipping(1e6)))
    x = torch.randn(8, 3, 6, 6)
    session.backward(model(x).square().sum(1))
    optimizer.step()
    (plain(x).square().sum() / 8).backward()
    torch.optim.Adam(plain.parameters(), lr=0.1, **options).step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_layout_and_dtype_of_an_update_are_those_of_its_parameter() -> None:
    parameters = {
        "channels last": nn.Parameter(torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last)),
        "transposed": nn.Parameter(torch.zeros(5, 4).t()),
        "bfloat16": nn.Parameter(torch.zeros(3, dtype=torch.bfloat16)),
        "one number": nn.Parameter(torch.zeros(())),
        "nothing": nn.Parameter(torch.zeros(0)),
    }
    updated(parameters).write()
    for parameter in parameters.values():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()
        assert parameter.grad.dtype == parameter.dtype


def test_parameters_of_equal_shape_and_equal_parameters_of_later_updates_get_different_noise() -> None:
    """Guarantee: no noise is drawn twice."""
    parameters = shapes(a=(64,), b=(64,))
    update = updated(parameters)
    drawn: list[Tensor] = []
    for _ in range(3):
        update.write()
        drawn += [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
        update.clear()
    assert len(drawn) == 6
    values = torch.cat(drawn)
    assert values.unique().numel() == values.numel()


def test_a_failed_update_uses_its_number_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: an update is written whole or not at all.

    Noise that was drawn and dropped is not drawn again: whoever saw it could take it off the next update."""
    parameters = shapes(a=(64,), b=(64,))
    update, addresses = updated(parameters), []
    real = hushgrad.update.noisy_update

    def failing(*args: Any, address: Any, **options: Any) -> Tensor:
        addresses.append(address)
        if len(addresses) == 2:
            raise MemoryError
        return real(*args, address=address, **options)

    monkeypatch.setattr(hushgrad.update, "noisy_update", failing)
    with pytest.raises(MemoryError):
        update.write()
    assert all(parameter.grad is None for parameter in parameters.values())
    update.write()
    assert len(set(addresses)) == len(addresses) == 4


def test_clear_takes_back_what_was_written_and_nothing_else() -> None:
    parameters = shapes(a=(3,))
    update = updated(parameters)
    foreign = torch.ones(3)
    parameters["a"].grad = foreign
    update.clear()
    assert parameters["a"].grad is foreign
    update.write()
    update.clear()
    assert parameters["a"].grad is None
