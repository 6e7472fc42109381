"""How a training loop shows a session its batches: the one protocol that both kinds of loop follow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor

from hushgrad.errors import LossShapeError
from hushgrad.sampling.records import PhysicalBatch


class Turn(NamedTuple):
    """Which logical batch is released.

    Attributes:
        step: its number among those that were drawn. Where it does not follow the last one, batches between the two
            were drawn and not released, or a pass was broken off.
        pass_index: the number of the pass over the loader.
    """

    step: int
    pass_index: int


class Loop(ABC):
    """A loop whose batches are observed (hushgrad's own loader draws them) or declared (by the caller)."""

    dataset: Any = None
    """What a loader reads; None where there is none."""

    @property
    @abstractmethod
    def item(self) -> PhysicalBatch | None:
        """The loader's item in work, if there is one."""

    @property
    @abstractmethod
    def latest(self) -> PhysicalBatch | None:
        """The item in work, or the last one of a logical batch that waits for its step."""

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether a logical batch was begun that has not ended."""

    @property
    @abstractmethod
    def is_narrow(self) -> bool:
        """Whether gradients of the forwards in work, or the latest ones, pass through 16 bits."""

    @property
    @abstractmethod
    def rounds_together(self) -> bool:
        """Whether gradients passed through 16 bits in a batch whose number of rows follows the draw.

        Kernels may then choose another order of their operations, and round all records of the batch otherwise.
        """

    @abstractmethod
    def backward(self, losses_B: Tensor) -> None:
        """Run backward on the losses of one physical batch, one for each example."""

    @abstractmethod
    def loss(self, losses_B: Tensor, scale: float) -> Tensor:
        """Return a scalar whose backward, by somebody else, is that of `backward(losses_B)`."""

    @abstractmethod
    def reduced(self, losses_B: Tensor) -> Tensor | None:
        """Return the declared mean or sum of examined losses where gradients pass through 16 bits; else None."""

    @abstractmethod
    def end_item(self) -> None:
        """End the physical batch in work without a step of the optimizer."""

    @abstractmethod
    def end_step(self) -> Turn | None:
        """`optimizer.step()` was called: end the physical batch in work.

        Return which logical batch it was if one ends and is to be released, else None.
        """

    @abstractmethod
    def discard(self) -> None:
        """Forget the batches in work."""

    @abstractmethod
    def close(self) -> None:
        """The session ends: refuse backwards through what was run."""


def require_losses(losses: Tensor) -> Tensor:
    """Return losses of shape `[b]`.

    Raises:
        LossShapeError: something else.
    """
    if not isinstance(losses, Tensor) or losses.ndim != 1:
        shape = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise LossShapeError(
            f"losses must have shape [b], one number per example, got {shape}",
            cure='Compute the loss with reduction="none" and reduce each example\'s own elements to one number',
        )
    return losses
