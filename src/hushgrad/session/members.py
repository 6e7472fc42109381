"""The modules and the optimizer of a session, and what was spent on them in earlier ones.

Known for the whole process: nothing is put on objects that are somebody else's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from hushgrad.guards.in_use import claim, release

_left_by_earlier = WeakIdKeyDictionary()
"""For those of closed sessions: the path of the ledger, its steps, and the steps that were not in it either."""


class Members:
    """The modules and the optimizer of one session."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, ledger: str | os.PathLike[str] | None) -> None:
        self._objects: Sequence[object] = [optimizer, *model.modules()]
        self._ledger = None if ledger is None else os.path.realpath(ledger)

    def join(self) -> None:
        """The session is open: no other one may take them."""
        claim(self._objects)

    def steps_elsewhere(self) -> int:
        """Return how many steps they took in earlier sessions that this session's ledger does not hold."""
        left = [_left_by_earlier[part] for part in self._objects if part in _left_by_earlier]
        return max(
            (other + (0 if path is not None and path == self._ledger else steps) for path, steps, other in left),
            default=0,
        )

    def leave(self) -> None:
        """The session is closed."""
        release(self._objects)

    def remember(self, steps: int, elsewhere: int) -> None:
        """Keep in mind what was spent on them: `steps` in this session's ledger, and `elsewhere` not in it."""
        _left_by_earlier.update(dict.fromkeys(self._objects, (self._ledger, steps, elsewhere)))
