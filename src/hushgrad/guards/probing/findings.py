"""What becomes of a finding: it is told before it is raised; of a split model it is kept back until its item ends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

from hushgrad.errors import CrossSampleLeakError, HushgradError, LossShapeError, PrivacyUnitError, PrivateBufferError
from hushgrad.guards.probing.other_processes import OtherProcesses

FINDINGS = (CrossSampleLeakError, PrivateBufferError, LossShapeError, PrivacyUnitError)
"""Errors of an examination that say something of batches before, too: those that were released like the one examined.

What capture refuses by itself (DP304 in a forward) does not: capture looks at every batch, and what it refuses was
never released.
"""


class _Told(AbstractContextManager[None]):
    """Tells of the findings that leave it. One for all uses, some of which are in every step.

    Args:
        tell: returns whether the finding is kept back, and comes later.
    """

    def __init__(self, tell: Callable[[HushgradError], bool]) -> None:
        self._tell = tell

    def __enter__(self) -> None:
        """Nothing is to be kept."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Tell of a finding, and let it go on unless it is kept back."""
        return isinstance(error, FINDINGS) and self._tell(error)


class Findings:
    """The findings of one session.

    Args:
        tell: is told of each, before it is raised.
        stop: drops what is written down of the item in work, which a finding ends.
        others: the processes of the row.
        is_split: whether the model's parameters are split over processes: one found in a forward, a loss or a backward
            is kept back there, since it would have others wait for parameters that this process has a part of.
    """

    def __init__(
        self,
        tell: Callable[[HushgradError], None],
        stop: Callable[[], None],
        others: OtherProcesses,
        *,
        is_split: bool,
    ) -> None:
        self._on_finding = tell
        self._stop = stop
        self._others = others
        self._is_split = is_split
        self._told = _Told(self._tell)
        self._kept_back: HushgradError | None = None
        self.is_ending = False
        """Whether the item in work is being examined at its end, where nothing is kept back."""

    def told(self) -> AbstractContextManager[None]:
        """Return what tells of the findings that leave it."""
        return self._told

    def raise_kept_back(self) -> None:
        """Raise what was kept back, once."""
        error, self._kept_back = self._kept_back, None
        if error is not None:
            self._on_finding(error)
            raise error

    def _tell(self, error: HushgradError) -> bool:
        self._stop()
        if self._is_split and not self.is_ending:
            self._kept_back = self._kept_back or error
            return True
        self._others.require(error)
        self._on_finding(error)
        return False
