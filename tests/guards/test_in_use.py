"""A module or an optimizer belongs to one open session at most."""

from __future__ import annotations

import copy
import gc

from torch import nn

from hushgrad.guards.in_use import claim, is_in_use, owners_of, release


class Owner:
    """A session, as far as is needed here."""


OWNER = Owner()


def test_what_is_claimed_is_in_use_until_it_is_released() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    claim(model.modules(), OWNER)
    assert is_in_use([model[0]])
    assert is_in_use([nn.Linear(2, 2), model])
    release(model.modules())
    assert not is_in_use(model.modules())


def test_a_copy_of_what_is_in_use_is_not() -> None:
    model = nn.Linear(2, 2)
    claim([model], OWNER)
    assert not is_in_use([copy.deepcopy(model)])
    release([model])


def test_what_is_gone_keeps_nobody_out() -> None:
    """A new object may stand at the address of an old one."""
    for _ in range(20):
        claim([nn.Linear(2, 2)], OWNER)
        gc.collect()
        assert not is_in_use([nn.Linear(2, 2)])


def test_the_owner_of_what_is_claimed_is_known_once_and_not_kept_alive() -> None:
    model, other, owner = nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2), Owner()
    claim(model.modules(), owner)
    claim([other], OWNER)
    assert owners_of([*model.modules(), nn.Linear(2, 2)]) == [owner]
    assert owners_of([*model.modules(), other]) == [owner, OWNER]
    del owner
    gc.collect()
    assert owners_of(model.modules()) == []
    assert is_in_use([model])
    release([*model.modules(), other])
    assert owners_of([other]) == []
