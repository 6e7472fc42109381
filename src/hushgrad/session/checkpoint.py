"""A checkpoint of a session: its model, optimizer and schedulers, and the receipt of what they have cost.

What goes on from it is looked at whole before anything is changed: its receipt against the ledger, its tensors against
the model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from hushgrad.accounting.ledger.receipt import Receipt
from hushgrad.checkpoints.file import read_checkpoint, write_checkpoint
from hushgrad.errors import CheckpointError


class Stateful(Protocol):
    """What has a state of its own, such as a learning-rate scheduler."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values and tensors."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take the state that `state_dict` returned."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where training goes on.

    Attributes:
        steps: how many steps the weights of the checkpoint have seen.
        lost_steps: how many came after it. They stay charged: a crash cannot show which of them were released.
        extra: what was given to `save_checkpoint`.
    """

    steps: int
    lost_steps: int
    extra: Any


def save(
    path: str | os.PathLike[str],
    receipt: Receipt,
    model: nn.Module,
    optimizer: Optimizer,
    schedulers: Sequence[Stateful],
    extra: Any,
) -> None:
    """Write a checkpoint (see `Session.save_checkpoint`)."""
    write_checkpoint(
        path,
        {
            "receipt": receipt.as_state(),
            "model": dict(model.state_dict()),
            "optimizer": optimizer.state_dict(),
            "schedulers": [scheduler.state_dict() for scheduler in schedulers],
            "extra": extra,
        },
    )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a file held, of which nothing has been loaded yet."""

    receipt: Receipt
    model: dict[str, Any]
    optimizer: dict[str, Any]
    schedulers: list[dict[str, Any]]
    extra: Any

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Read a file. Raises `CheckpointError`."""
        content = read_checkpoint(path)
        receipt = Receipt.from_state(content.get("receipt"))
        try:
            return cls(receipt, content["model"], content["optimizer"], content["schedulers"], content["extra"])
        except KeyError as error:
            raise CheckpointError(
                f"it lacks its part {error.args[0]!r}", where="the checkpoint", cure="Take another checkpoint"
            ) from None

    def load(self, model: nn.Module, optimizer: Optimizer, schedulers: Sequence[Stateful]) -> None:
        """Load all of it, or refuse it whole.

        Raises:
            CheckpointError: it is one of another model, optimizer or number of schedulers.
        """
        self._require_same_model(model)
        self._require_same_optimizer(optimizer)
        if len(schedulers) != len(self.schedulers):
            raise CheckpointError(
                f"it holds the state of {len(self.schedulers)} schedulers, and {len(schedulers)} were given",
                where="the checkpoint",
                cure="Pass schedulers= as save_checkpoint was given them",
            )
        model.load_state_dict(self.model)
        optimizer.load_state_dict(self.optimizer)
        for scheduler, state in zip(schedulers, self.schedulers, strict=True):
            scheduler.load_state_dict(state)

    def _require_same_model(self, model: nn.Module) -> None:
        forms = {name: _form(value) for name, value in model.state_dict().items()}
        stored = {name: _form(value) for name, value in self.model.items()}
        if forms != stored:
            different = sorted({name for name, _ in forms.items() ^ stored.items()})
            raise CheckpointError(
                f"its model is another one: {len(different)} of its tensors are missing, new, or of another shape or "
                f"dtype, the first of them {different[0]!r}",
                where="the checkpoint",
                cure="Build the model as it was built when the checkpoint was written",
            )

    def _require_same_optimizer(self, optimizer: Optimizer) -> None:
        stored = [len(group["params"]) for group in self.optimizer["param_groups"]]
        given = [len(group["params"]) for group in optimizer.param_groups]
        if stored != given:
            raise CheckpointError(
                f"its optimizer has groups of {stored} parameters, and this one of {given}",
                where="the checkpoint",
                cure="Make the optimizer as it was made when the checkpoint was written",
            )


def _form(value: Any) -> Any:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else type(value)
