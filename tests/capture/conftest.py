"""Fixtures of this folder; its helper modules can be imported by its tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1] / "gradients"))
sys.path.insert(2, str(Path(__file__).parents[1] / "session"))

from attached import Attached


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.fixture
def attached(model: nn.Module) -> Iterator[Attached]:
    found = Attached(model)
    yield found
    found.scope.detach()
