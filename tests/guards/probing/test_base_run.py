"""The run that others are compared with: what fails in it, or does not repeat itself, is refused."""

from __future__ import annotations

import pytest
import torch
from first_forwards import READY, WIDTH, Body, train
from torch import Tensor

from hushgrad.errors import CrossSampleLeakError


def test_a_part_that_a_registry_says_is_there_is_asked_for_before_training() -> None:
    """What the forward noted elsewhere cannot be taken back: the message says what to do, and that works."""

    class Needed(Body):
        def prepare(self, x: Tensor) -> None:
            if self not in READY:
                self.outputs: list[Tensor] = []
                self.first.register_forward_hook(lambda module, args, out: self.outputs.append(out))
                READY.add(self)
            self.outputs.clear()

    with pytest.raises(CrossSampleLeakError, match=r"fails when it is run again.*run one on inputs of your own"):
        train(Needed())
    model = Needed()
    model(torch.zeros(1, WIDTH))
    assert train(model).session.steps == 2
