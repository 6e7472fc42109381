"""Private loops can be imported by the tests of this folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import hushgrad.session.update as update_module

sys.path.insert(0, str(Path(__file__).parent))

from narrow_loops import Spy


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    found, real = Spy(), update_module.clipped_sums

    def watched(*args: Any, into: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        sums = real(*args, **kwargs)
        found.sums.append({name: value.detach().clone() for name, value in sums.items()})
        return {name: into.get(name, 0) + value for name, value in sums.items()} | {
            name: value for name, value in into.items() if name not in sums
        }

    monkeypatch.setattr(update_module, "clipped_sums", watched)
    return found
