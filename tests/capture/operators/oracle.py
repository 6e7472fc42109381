"""One operator in a small model, against one example at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cases import Parameters, losses
from measure import captured, clipped, distance, norm_of, reference
from torch import Tensor, nn

from hushgrad.clipping.flat import FlatClipping
from hushgrad.gradients.oracle import clipped_sum_of


def assert_exact(model: nn.Module, x: Tensor) -> None:
    """The clipped sum of what capture records is that of gradients taken one example at a time."""
    model = model.double()
    x = x.double() if x.is_floating_point() else x
    per_example = reference(model, x, losses)
    limit = float(norm_of(per_example).median())
    assert limit > 0
    assert (
        distance(clipped(captured(model, x, losses), limit), clipped_sum_of(per_example, FlatClipping(limit))) <= 1e-10
    )


def assert_use_is_exact(use: Callable[..., Any], x: Tensor, **shapes: tuple[int, ...]) -> None:
    """The same for a function of the batch and of parameters of some shapes."""
    assert_exact(Parameters(use, **shapes), x)
