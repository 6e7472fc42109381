"""What the loop does to the trained parameters and to the optimizer's step, beside the steps themselves.

Both may be harmless (weights clamped to a range, a logged norm), and neither shows whether it follows the data. So both
are told.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from hushgrad.accounting.conditions import WRITTEN_BY_THE_LOOP, Condition, hooks_on_the_optimizer
from hushgrad.guards.setup_invariants import is_same_sample, sample
from hushgrad.torch_internals import versions_of

EVERY = 16
"""Values are looked at after one of so many updates, the first one included; torch's own counts after each."""


class LeftAlone:
    """Notices writes into trained parameters between one step and the next, and hooks that see the noised update."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = list(parameters.values())
        self._versions: list[int] | None = None
        self._values: list[Tensor] | None = None
        self._updates = 0
        self._is_written = False
        self._hooks: set[str] = set()

    @property
    def conditions(self) -> list[Condition]:
        """What was taken on trust so far."""
        written = [WRITTEN_BY_THE_LOOP] if self._is_written else []
        return [*written, *(hooks_on_the_optimizer(name) for name in sorted(self._hooks))]

    def step_begins(self, hooks: list[str]) -> None:
        """A step begins, in which hooks of these names run between noise and update."""
        self._hooks.update(hooks)
        if self._versions is not None and not self._is_written:
            self._is_written = self._versions != versions_of(self._parameters) or self._has_other_values()

    def _has_other_values(self) -> bool:
        return self._values is not None and not all(
            now.shape == before.shape and now.dtype == before.dtype and is_same_sample(now, before)
            for now, before in zip(map(sample, self._parameters), self._values, strict=True)
        )

    def batch_comes(self) -> None:
        """A batch is handed out: what is written from here on may hold its values."""
        if self._versions is None:
            self._note(with_values=True)

    def restored(self) -> None:
        """The session itself has written the parameters of a checkpoint."""
        self._versions, self._values = None, None

    def updated(self) -> None:
        """The optimizer has written an update."""
        if self._is_written:
            return
        self._note(with_values=self._updates % EVERY == 0)
        self._updates += 1

    def _note(self, *, with_values: bool) -> None:
        self._versions = versions_of(self._parameters)
        self._values = [sample(parameter) for parameter in self._parameters] if with_values else None
