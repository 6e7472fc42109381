"""What steps have in common that are numbered: by the pass over the data, or by the block, that they belong to."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from hushgrad.accounting.events.event import Event


class StepOfPass(Event):
    """A step of the pass over the data with the number `pass_index`, a field of the kind."""

    __slots__ = ()

    pass_index: int

    @property
    def data_pass(self) -> int:
        """The index of the pass."""
        return self.pass_index

    def later(self, by: int) -> Self:
        """Return the step of a pass of another account."""
        return replace(self, pass_index=self.pass_index + by)  # type: ignore[type-var]


class StepOfBlock(Event):
    """A step of the block with the number `block`, a field of the kind."""

    __slots__ = ()

    block: int

    @property
    def in_block(self) -> int:
        """The number of the block."""
        return self.block

    def later(self, by: int) -> Self:
        """Return the step of a block of another account."""
        return replace(self, block=self.block + by)  # type: ignore[type-var]
