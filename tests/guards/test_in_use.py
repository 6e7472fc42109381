"""A module or an optimizer belongs to one open session at most."""

from __future__ import annotations

import copy
import gc

from torch import nn

from hushgrad.guards.in_use import claim, is_in_use, release


def test_what_is_claimed_is_in_use_until_it_is_released() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    claim(model.modules())
    assert is_in_use([model[0]])
    assert is_in_use([nn.Linear(2, 2), model])
    release(model.modules())
    assert not is_in_use(model.modules())


def test_a_copy_of_what_is_in_use_is_not() -> None:
    model = nn.Linear(2, 2)
    claim([model])
    assert not is_in_use([copy.deepcopy(model)])
    release([model])


def test_what_is_gone_keeps_nobody_out() -> None:
    """A new object may stand at the address of an old one."""
    for _ in range(20):
        claim([nn.Linear(2, 2)])
        gc.collect()
        assert not is_in_use([nn.Linear(2, 2)])
