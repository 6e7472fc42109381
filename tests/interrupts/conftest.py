"""Helper modules of this folder can be imported by its tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from points import alarms


@pytest.fixture(autouse=True)
def dropped() -> Iterator[list[object]]:
    """What was printed as ignored in the test instead of being raised; at the end there must be none."""
    found: list[object] = []
    former, sys.unraisablehook = sys.unraisablehook, lambda lost: found.append(lost.exc_value)
    try:
        with alarms():
            yield found
    finally:
        sys.unraisablehook = former
    assert found == []
