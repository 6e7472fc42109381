"""A forward that a Ctrl-C ends keeps nothing of the user alive; the next one is captured as if nothing had been."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from attached import Attached, Model, assert_same, batch, losses, wanted
from torch import Tensor, nn

from hushgrad.capture.running import LivingArguments
from hushgrad.torch_internals import top_mode


def interrupted(model: nn.Module) -> weakref.ref[Tensor]:
    """Run the model on a batch until it is interrupted; return a reference to the batch."""
    x = batch()
    try:
        model(x)
    except KeyboardInterrupt:
        return weakref.ref(x)
    raise AssertionError


def stopping() -> tuple[Attached, list[bool]]:
    stop = [True]

    def forward(m: Model, x: Tensor) -> Tensor:
        h = m.first(x)
        if stop[0]:
            raise KeyboardInterrupt
        return m.second(h)  # type: ignore[no-any-return]

    return Attached(Model(forward, first=nn.Linear(4, 4), second=nn.Linear(4, 2)).double()), stop


@pytest.mark.parametrize("replaces", [False, True], ids=["alone", "with a hook that hands on other arguments"])
def test_a_forward_that_is_interrupted_keeps_no_batch_alive(replaces: bool) -> None:
    attached, stop = stopping()
    if replaces:  # then nothing tells of the end of the call
        attached.model.register_forward_pre_hook(lambda _, args, kwargs: (args, dict(kwargs)), with_kwargs=True)
    reference = interrupted(attached.model)
    gc.collect()
    assert reference() is None
    stop[0] = False
    x = batch()
    losses(attached.model(x)).sum().backward()
    assert top_mode() is None
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum()))
    attached.scope.detach()


def test_a_call_at_the_address_of_an_interrupted_one_is_not_taken_for_it() -> None:
    """Frames of one function come to lie where the last one lay: each forward here may have the address of the other.

    The arguments are kept by a hook of the user, so that nothing tells of the end of a call.
    """
    attached, stop = stopping()
    kept: list[Any] = []
    attached.model.register_forward_pre_hook(lambda _, args, kwargs: kept.append(kwargs), with_kwargs=True)
    for _ in range(5):
        stop[0] = True
        interrupted(attached.model)
        stop[0] = False
        x = batch()
        losses(attached.model(x)).sum().backward()
        assert top_mode() is None
        assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum()))  # noqa: B023
    assert any(isinstance(part, LivingArguments) for part in kept)
    attached.scope.detach()
