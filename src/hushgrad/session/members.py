"""Which models and optimizers belong to an open session, and what those of closed sessions have spent.

Known for the whole process: nothing is put on objects that are somebody else's.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from hushgrad.errors import ProtocolError

_in_use = WeakIdKeyDictionary()
"""The modules and optimizers of all open sessions."""

_left_by_earlier = WeakIdKeyDictionary()
"""For those of closed sessions: the path of the ledger, its steps, and the steps that were not in it either."""


class Members:
    """The modules and the optimizer of one session."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Refuse those of another open session.

        Raises:
            ProtocolError: the model, a part of it or the optimizer belongs to one.
        """
        self._objects: Sequence[object] = [optimizer, *model.modules()]
        if any(part in _in_use for part in self._objects):
            raise ProtocolError(
                "the model or the optimizer was made private already",
                cure="Call session.close() first, or build both anew",
            )

    def join(self) -> None:
        """The session is open: no other one may take them."""
        _in_use.update(dict.fromkeys(self._objects))

    def steps_elsewhere(self, ledger: str | None) -> int:
        """Return how many steps they took in earlier sessions that the ledger at this path does not hold."""
        left = [_left_by_earlier[part] for part in self._objects if part in _left_by_earlier]
        return max(
            (other + (0 if path is not None and path == ledger else steps) for path, steps, other in left), default=0
        )

    def leave(self) -> None:
        """The session is closed."""
        for part in self._objects:
            _in_use.pop(part, None)  # type: ignore[no-untyped-call]

    def remember(self, ledger: str | None, steps: int, elsewhere: int) -> None:
        """Keep in mind what was spent on them: `steps` in the ledger at this path, and `elsewhere` not in it."""
        _left_by_earlier.update(dict.fromkeys(self._objects, (ledger, steps, elsewhere)))
