"""A diagnosis as people read it."""

from __future__ import annotations

import pytest
from patients import Patient, ids
from torch import nn

from hushgrad import doctor


@pytest.mark.parametrize("width", [80, 140])
def test_the_report_fits_the_screen(width: int) -> None:
    """No line is longer than the screen, and every operator and problem is in it."""
    with_problem = nn.Sequential(Patient(), nn.BatchNorm1d(11))
    text = doctor(with_problem, ids()).text(width)
    assert all(len(line) <= width for line in text.splitlines())
    for word in ("embedding", "linear", "BatchNorm1d", "make_private_ready", "Not ready: 1 problem"):
        assert word in text
    assert ("kept" in text) == (width == 140)
