"""Helper modules of this folder can be imported by its tests."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from points import alarms


@pytest.fixture(autouse=True)
def dropped() -> Iterator[list[object]]:
    """What was printed as ignored in the test instead of being raised; at the end there must be none.

    No garbage is collected meanwhile: what others left behind would be interrupted as it ends, where all is ignored.
    """
    found: list[object] = []
    gc.collect()
    gc.disable()
    former, sys.unraisablehook = sys.unraisablehook, lambda lost: found.append(lost.exc_value)
    try:
        with alarms():
            yield found
    finally:
        sys.unraisablehook = former
        gc.enable()
    assert found == []
