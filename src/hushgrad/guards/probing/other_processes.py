"""What the processes that have other parts of the gradients settle together about a probe: verdicts, inputs, failures.

All of them run a tensor parallel model together, so one that stopped alone would leave the others waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hushgrad.errors import DesyncError, HushgradError
from hushgrad.gradients.across import NOWHERE, Across
from hushgrad.guards.probing.trees import tensors_at
from hushgrad.parallel.messages import digest_of
from hushgrad.parallel.replicas import digest


class OtherProcesses:
    """Those of the row of one session; none until it joins them.

    Attributes:
        across: the processes that have other parts of the gradients.
    """

    def __init__(self) -> None:
        self.across: Across = NOWHERE
        self._listen: Callable[[], object] = lambda: None

    def join(self, across: Across, listen: Callable[[], object]) -> None:
        """Take the processes; `listen` raises what another one of them has found."""
        self.across, self._listen = across, listen

    def is_so_anywhere(self, what: bool) -> bool:
        """Return whether it is so in any process of the row: all examine a call alike, and divide its losses or not."""
        return not self.across.least(int(not what))

    def go_on(self) -> None:
        """Go further, as all others do; what another one has found instead is raised: the model's run needs all."""
        if not self.across.least(1):
            self._listen()

    def stop(self) -> None:
        """Tell those that come to `go_on` that this process goes no further."""
        self.across.least(0)

    def require(self, error: HushgradError) -> None:
        """Raise `PeerFailedError` where what failed, and is said of a model, was a message to a process that is gone.

        Where it is the model's, it fails in all processes of a row.
        """
        if error.__context__ is not None and not isinstance(error.__context__, HushgradError):
            self.across.least(0)

    def require_same_inputs(self, item: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a forward for which processes of a row were given other values, or the same in another order.

        Raises:
            DesyncError: in all processes of the row.
        """
        if self.across is NOWHERE:
            return
        given = [tensor for _, tensor in tensors_at((item, args, kwargs))]
        if not self.across.agree_on(digest_of(digest(given))):
            raise DesyncError(
                "processes that have parts of one layer were given other values of the same records, or another order "
                "of them",
                where="the forward of a tensor parallel model",
                cure="Augment and order records by the same random numbers in all processes of a row: seed torch, "
                "NumPy and random alike in them, or draw from the record's index in the dataset",
            )
