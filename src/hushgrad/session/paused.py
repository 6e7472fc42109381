"""Parameters that are frozen for a while, so that gradients pass through them and nothing is recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from hushgrad.torch_sharding import settle


@contextmanager
def frozen_for_a_while(parameters: Iterable[nn.Parameter], sharded: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Inside, none of the parameters requires a gradient; afterwards those that did do again.

    Of `sharded` parts of the model the whole parameters are then made anew, as those of at rest are.
    """
    settle(sharded)
    active = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in active:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        settle(sharded)
        for parameter in active:
            parameter.requires_grad_(True)
