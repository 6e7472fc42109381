"""Function transforms of torch are seen while they run, and the use of a parameter under one is refused by its name."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from hushgrad.capture.transforms import refuse_transforms, transform_in_force
from hushgrad.errors import UncoveredParameterUseError

RUNS: dict[str, Callable[[Callable[[Tensor], Tensor]], Any]] = {
    "torch.func.vmap": lambda look: torch.func.vmap(look)(torch.ones(2)),
    "torch.func.grad": lambda look: torch.func.grad(look)(torch.tensor(1.0)),
    "torch.func.jvp": lambda look: torch.func.jvp(look, (torch.ones(()),), (torch.ones(()),)),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_transform_is_in_force_while_it_runs_and_not_after(name: str) -> None:
    seen = []
    RUNS[name](lambda x: (seen.append(transform_in_force()), x.sum())[1])
    assert seen == [name]
    assert transform_in_force() is None


def test_of_transforms_inside_each_other_the_innermost_is_told() -> None:
    seen = []
    torch.func.vmap(torch.func.grad(lambda x: (seen.append(transform_in_force()), x * x)[1]))(torch.ones(2))
    assert seen == ["torch.func.grad"]


def test_forward_mode_differentiation_is_one() -> None:
    with forward_ad.dual_level():
        assert transform_in_force() == "forward-mode differentiation"
    assert transform_in_force() is None


def test_a_transform_of_another_thread_is_not_in_force_here() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        thread = Thread(target=lambda: seen.append(transform_in_force()))
        thread.start()
        thread.join()
        return x

    torch.func.vmap(look)(torch.ones(2))
    assert seen == [None]


def test_the_refusal_names_the_transform_and_the_parameter() -> None:
    with pytest.raises(UncoveredParameterUseError, match=r"layer\.weight: is used under torch\.func\.vmap") as caught:
        refuse_transforms("torch.func.vmap", "layer.weight")
    assert "deepcopy" in caught.value.cure
