"""A checkpoint of a session: its model, optimizer and schedulers, and the receipt of what they have cost.

What goes on from it is looked at whole before anything is changed: its receipt against the ledger, its tensors against
the model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

from hushgrad.accounting.ledger.receipt import Receipt
from hushgrad.checkpoints.file import read_checkpoint, write_checkpoint
from hushgrad.errors import CheckpointError, ProtocolError
from hushgrad.joined_optimizer import kind_of
from hushgrad.parallel.shards import split_as
from hushgrad.session.same_optimizer import names_by_group, require_same_optimizer
from hushgrad.torch_sharding import is_distributed, placed


@runtime_checkable
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
    receipt: Callable[[], Receipt],
    model: nn.Module,
    optimizer: Optimizer,
    schedulers: Sequence[Stateful],
    extra: Any,
    states: tuple[dict[str, Any], dict[str, Any]] | None = None,
) -> None:
    """Write a checkpoint (see `Session.save_checkpoint`); `receipt` gives that of now.

    `states` are those of model and optimizer, where they are not what these say themselves.
    """
    at_first = receipt()

    def require_no_step_since() -> None:
        if receipt() != at_first:
            raise ProtocolError(
                "steps ran while the checkpoint was written, so that its values are of no one step",
                cure="Write it in the thread of the loop, between two steps",
            )

    write_checkpoint(
        path,
        {
            "receipt": at_first.as_state(),
            "kinds": _kinds(optimizer, schedulers),
            "model": dict(model.state_dict() if states is None else states[0]),
            "optimizer": optimizer.state_dict() if states is None else states[1],
            "parameters": names_by_group(model, optimizer),
            "schedulers": [scheduler.state_dict() for scheduler in schedulers],
            "extra": extra,
        },
        require_no_step_since,
    )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a file held, of which nothing has been loaded yet."""

    receipt: Receipt
    kinds: list[str]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    schedulers: list[dict[str, Any]]
    extra: Any
    parameters: Any
    """`names_by_group`; None in a file of before they were kept."""

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Read a file. Raises `CheckpointError`."""
        content = read_checkpoint(path)
        receipt = Receipt.from_state(content.get("receipt"))
        parts = {"kinds": list, "model": dict, "optimizer": dict, "schedulers": list, "extra": object}
        wrong = [name for name, kind in parts.items() if name not in content or not isinstance(content[name], kind)]
        if not wrong and not has_groups(content["optimizer"]):
            wrong = ["optimizer"]
        if not wrong and len(content["kinds"]) != 1 + len(content["schedulers"]):
            wrong = ["kinds"]
        if wrong:
            raise CheckpointError(
                f"it lacks its part {wrong[0]!r}, or that was damaged",
                where="the checkpoint",
                cure="Take another checkpoint",
            )
        values: list[Any] = [content.get(name) for name in (*parts, "parameters")]
        return cls(receipt, *values)

    def load(self, model: nn.Module, optimizer: Optimizer, schedulers: Sequence[Stateful]) -> None:
        """Load all of it, or refuse it whole.

        Raises:
            CheckpointError: it is one of another model, optimizer or schedulers, or one of them refuses its state.
        """
        require_same_model(self.model, model)
        require_same_optimizer(self.parameters, self.optimizer, model, optimizer)
        if len(schedulers) != len(self.schedulers):
            raise CheckpointError(
                f"it holds the state of {len(self.schedulers)} schedulers, and {len(schedulers)} were given",
                where="the checkpoint",
                cure="Pass schedulers= as save_checkpoint was given them",
            )
        self._require_same_kinds(optimizer, schedulers)
        load_holders([(optimizer, _split(self.optimizer, optimizer)), *zip(schedulers, self.schedulers, strict=True)])
        now = model.state_dict()
        # Last: it was looked at, so it does not fail.
        model.load_state_dict({name: split_as(now[name], value) for name, value in self.model.items()})

    def _require_same_kinds(self, optimizer: Optimizer, schedulers: Sequence[Stateful]) -> None:
        kinds = _kinds(optimizer, schedulers)
        if kinds != self.kinds:
            stored, given = next((a, b) for a, b in zip(self.kinds, kinds, strict=True) if a != b)
            raise CheckpointError(
                f"it holds the state of a {stored}, and a {given} was given",
                where="the checkpoint",
                cure="Make optimizer and schedulers as they were made when the checkpoint was written",
            )


def require_whole_states(optimizer: Optimizer) -> None:
    """Refuse an optimizer that keeps parts of something else than of its parameters.

    Raises:
        CheckpointError: of what nobody knows, when it is loaded, how it lies on the processes.
    """
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and is_distributed(value) and placed(value) != placed(parameter):
                raise CheckpointError(
                    f"its state {name!r} lies on the processes in another way than its parameter",
                    where=type(optimizer).__name__,
                    cure="Keep model, optimizer and engine.session.state_dict() by torch.distributed.checkpoint",
                )


def _split(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Return an optimizer's state as it lies on the processes: what has a parameter's shape lies as that does."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(map(is_distributed, parameters)) or not isinstance(state.get("state"), dict):
        return state
    places = [place for group in state["param_groups"] for place in group["params"]]
    kept = {
        place: {
            name: split_as(parameter, value)
            if isinstance(value, Tensor) and value.ndim and value.shape == parameter.shape
            else value
            for name, value in state["state"][place].items()
        }
        for place, parameter in zip(places, parameters, strict=True)
        if place in state["state"]
    }
    return {**state, "state": {**state["state"], **kept}}


def require_same_model(state: Mapping[str, Any], model: nn.Module) -> None:
    """Raise `CheckpointError` unless `state` has the names, shapes and dtypes of the model's own."""
    forms = {name: _form(value) for name, value in model.state_dict().items()}
    stored = {name: _form(value) for name, value in state.items()}
    if forms != stored:
        different = sorted({name for name, _ in forms.items() ^ stored.items()})
        raise CheckpointError(
            f"its model is another one: {len(different)} of its tensors are missing, new, or of another shape or "
            f"dtype, the first of them {different[0]!r}",
            where="the checkpoint",
            cure="Build the model as it was built when the checkpoint was written",
        )


def load_holders(states: Sequence[tuple[Stateful, Any]]) -> None:
    """Load each state into its holder. Raises `CheckpointError` where one refuses its own; all are then as before."""
    before = [(holder, holder.state_dict()) for holder, _ in states]
    try:
        for holder, state in states:
            holder.load_state_dict(state)
    except Exception as error:
        for earlier, state in before:
            with suppress(Exception):  # what cannot take its own state back did not take the other one either
                earlier.load_state_dict(state)
        raise CheckpointError(
            f"a {type(holder).__name__} does not take its state ({type(error).__name__})",
            where="the checkpoint",
            cure="Make optimizer and schedulers as they were made when the checkpoint was written",
        ) from error


def has_groups(state: Any) -> bool:
    """Return whether `state` is an optimizer's."""
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    return isinstance(groups, list) and all(
        isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups
    )


def _kinds(optimizer: Optimizer, schedulers: Sequence[Stateful]) -> list[str]:
    return [kind_of(holder) for holder in (optimizer, *schedulers)]


def _form(value: Any) -> Any:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else type(value)
