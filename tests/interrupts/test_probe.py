"""An interrupt inside of the probe: what it suspends is on again for the next item."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from hushgrad import DPSGD, FlatClipping, PoissonSampling, Session, privatize
from hushgrad.errors import CrossSampleLeakError
from hushgrad.randomness import KeyStream

WHERE = {
    ("gradient_probe.py", "require_own_gradient"),
    ("calls.py", "run"),
    ("scope.py", "recording_into"),
    ("probe.py", "examine"),
}
"""What switches something off for a while."""


def attach() -> tuple[nn.Module, Any, Session, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.5), expected_batch_size=8
    )
    session = privatize(model, optimizer, mechanism, key=KeyStream.fixed_for_tests(2))
    dataset = TensorDataset(torch.randn(16, 4), torch.arange(16) % 2)
    return model, optimizer, session, session.batches(dataset)


class Interrupt:
    """Raises KeyboardInterrupt before the `number`-th line that runs in one of those functions."""

    def __init__(self, number: int) -> None:
        self.number, self.seen = number, 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        return self._line if (code.co_filename.rsplit("/", 1)[-1], code.co_name) in WHERE else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.seen += 1
            if self.seen == self.number:
                raise KeyboardInterrupt
        return self._line


def interrupted(number: int) -> tuple[bool, nn.Module, Any, Session, Any]:
    model, optimizer, session, loader = attach()
    x, y = next(iter(loader))
    session.backward(F.cross_entropy(model(x), y, reduction="none"))
    former = sys.gettrace()
    sys.settrace(Interrupt(number))
    try:
        session.end_item()
    except KeyboardInterrupt:
        return True, model, optimizer, session, loader
    finally:
        sys.settrace(former)
    return False, model, optimizer, session, loader


def test_after_an_interrupt_at_any_line_of_the_probe_training_goes_on_and_is_watched() -> None:
    number = 0
    while True:
        number += 1
        happened, model, optimizer, session, loader = interrupted(number)
        if not happened:
            break
        session.discard()
        x, y = next(iter(loader))
        loss = F.cross_entropy(model(x), y, reduction="none").logsumexp(0)
        with pytest.raises(CrossSampleLeakError):
            loss.backward()
        session.discard()
        x, y = next(iter(loader))
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        assert session.steps == 1
        assert session.probe_report.calls >= 1, "the model was not examined before its first release"
        session.close()
    assert number > 30
