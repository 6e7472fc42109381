"""Parameters that are frozen for a while, so that gradients pass through them and nothing is recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen_for_a_while(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, none of the parameters requires a gradient; afterwards those that did do again."""
    active = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in active:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in active:
            parameter.requires_grad_(True)
