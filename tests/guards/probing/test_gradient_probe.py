"""The captured gradient of one example is the gradient that this example gives alone."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from first_forwards import BATCH, Body, attached, data

from hushgrad.errors import HushgradError


@pytest.mark.parametrize("when", ["forward", "backward", "step"])
def test_parameters_frozen_for_a_while_are_examined_when_they_come_back(when: str) -> None:
    model = Body()
    engine, optimizer, loader = attached(model, data(4 * BATCH))
    calls = []
    for place, (x, y) in enumerate(loader):
        model.first.requires_grad_(not (place == 0 and when == "forward"))
        out = model(x)
        model.first.requires_grad_(not (place == 0 and when == "backward"))
        engine.session.backward(F.cross_entropy(out, y, reduction="none"))
        model.first.requires_grad_(not (place == 0 and when == "step"))
        optimizer.step()
        model.first.requires_grad_(True)
        calls.append(engine.session.probe_report.calls)
    assert calls == ([1, 2, 2, 2] if when == "forward" else [1, 1, 1, 1])


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_a_gradient_that_mixes_is_found_when_its_parameters_come_back() -> None:
    class Mixing(Body):
        def __init__(self) -> None:
            super().__init__()
            self.first.register_full_backward_pre_hook(lambda module, outer: (outer[0] / outer[0].norm(),))

    model = Mixing()
    engine, optimizer, loader = attached(model, data())
    for place, (x, y) in enumerate(loader):
        model.first.requires_grad_(place > 0)
        F.cross_entropy(model(x), y).backward()
        if place == 0:
            optimizer.step()
        else:
            with pytest.raises(HushgradError):
                optimizer.step()
            break
    assert engine.session.steps == 1
