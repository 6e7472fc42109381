"""What the forwards of a physical batch announce: which parameters its backward will use, how often, how much is kept.

A backward that lets operands go has to know when a parameter's last use has come. Each captured call counts once for
each of its parameters as it runs in the forward; what checkpointing runs again inside the backward is not counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping


class ExpectedUses:
    """The captured calls of one physical batch so far."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._order = hashlib.sha256()
        self.nbytes = 0
        """How many bytes are kept of all these calls until the norms are known, at most: layers may share some."""
        self.runs_once = False
        """Whether a part of the graph can be run backward once alone, since it uses up what it has kept."""

    def add(self, names: Iterable[str], nbytes: int) -> None:
        """A captured call will record uses of the parameters `names` in the backward, and hold `nbytes` of them."""
        for name in names:
            self._calls[name] += 1
            self._order.update(name.encode() + b"\0")
        self._order.update(b"\1")
        self.nbytes += nbytes

    @property
    def calls(self) -> Mapping[str, int]:
        """How many calls will record uses of each parameter."""
        return dict(self._calls)

    @property
    def digest(self) -> int:
        """Return 48 bits of the digest of all calls in their order."""
        return int.from_bytes(self._order.digest()[:6], "big")
