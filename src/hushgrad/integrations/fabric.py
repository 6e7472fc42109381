"""Private training in a loop of Lightning Fabric::

    from hushgrad import Privacy
    from hushgrad.integrations.fabric import prepare

    model, optimizer, batches, session = prepare(
        fabric, model, optimizer, loader, epochs=3,
        privacy=Privacy(max_grad_norm=1.0, target_epsilon=3, target_delta=1e-5),
    )
    for epoch in range(3):
        for batch in batches:  # a logical batch
            for item in batch:  # as much of it as fits into memory, on Fabric's device
                with fabric.autocast():
                    losses = losses_of(model, item)
                session.backward(losses)  # [b], one loss per example
                session.end_item()
            optimizer.step()
            scheduler.step()
    print(session.guarantee(delta=1e-5))

Steps, schedules and the account count logical batches.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hushgrad.errors import CheckpointError, InvalidArgumentError
from hushgrad.extras import needs_extra
from hushgrad.integrations.incompatible import WIDE_ENOUGH, refuse
from hushgrad.integrations.own_loop import Batches, attach, plan
from hushgrad.privacy import Privacy
from hushgrad.sampling.records import Share
from hushgrad.session.checkpoint import Stateful, has_groups, load_holders, require_same_model
from hushgrad.session.same_optimizer import require_same_optimizer
from hushgrad.session.session import Session

with needs_extra("lightning", "hushgrad.integrations.fabric"):
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy
    from lightning.fabric.strategies.single_device import SingleDeviceStrategy

_RECEIPT = "hushgrad"
"""The name of the receipt in a file that `save` wrote."""


def prepare(
    fabric: Fabric,
    model: nn.Module,
    optimizer: Optimizer,
    data_loader: Any,
    *,
    privacy: Privacy,
    epochs: int,
    max_physical_batch_size: int | None = None,
) -> tuple[nn.Module, Optimizer, Batches, Session]:
    """Do what `fabric.setup` does, and make the training private.

    The model comes back itself, on Fabric's device and in its precision, and not in Fabric's wrapper, which forbids
    every backward but Fabric's own: `fabric.autocast()` is written around its forward.

    Args:
        fabric: of one device, or of several with strategy="ddp"; without float16.
        model: in training mode, not set up.
        optimizer: over all of the model's trainable parameters, not set up.
        data_loader: an ordinary DataLoader, not set up; its batch size is B, and of several processes that of each
            of them, as everywhere in Fabric.
        privacy: the clip norm, and ε or the noise.
        epochs: how many passes are planned; a pass is len(data_loader) steps.
        max_physical_batch_size: the most records in one item; None for all.

    Returns:
        The model, the optimizer as Fabric sets it up, the logical batches, and the session.

    Raises:
        IncompatibleFrameworkError: Fabric does what private training cannot bear.
    """
    _require_fit(fabric)
    planned = plan(privacy, data_loader, epochs, Share(fabric.global_rank, fabric.world_size))
    _, prepared_optimizer = fabric.setup(model, optimizer)
    precision = fabric.strategy.precision
    session, batches = attach(
        model,
        optimizer,
        planned,
        privacy,
        max_physical_batch_size,
        lambda item: fabric.to_device(precision.convert_input(item)),
    )
    return model, prepared_optimizer, batches, session


def save(fabric: Fabric, path: str | os.PathLike[str], state: dict[str, Any], session: Session) -> None:
    """Do what `fabric.save` does, and keep the session's receipt in the file.

    Raises `InvalidArgumentError` where `state` has an entry of the receipt's name.
    """
    fabric.save(os.fspath(path), {**_without_receipt(state), _RECEIPT: session.state_dict()})


def load(fabric: Fabric, path: str | os.PathLike[str], state: dict[str, Any], session: Session) -> int:
    """Do what `fabric.load` does, once the file's receipt was found in the session's ledger.

    Guarantee: a file whose steps the ledger does not hold, or that lacks a part of `state` or holds that of another
    model or optimizer, is refused before anything is loaded.

    Returns:
        How many steps came after the file was written: they stay charged.

    Raises:
        CheckpointError: the file holds no receipt, or not what `state` asks for.
        LedgerError: the ledger is missing, was cut, or is that of another run.
    """
    _without_receipt(state)
    stored = fabric.load(os.fspath(path), weights_only=True)
    receipt = stored.get(_RECEIPT)
    if receipt is None:
        raise CheckpointError(
            "it holds no receipt of private training, so nobody can say what its weights have cost",
            where="the checkpoint",
            cure="Load what hushgrad.integrations.fabric.save wrote. Weights of ordinary training are loaded into the "
            "model before prepare",
        )
    for name, holder in state.items():
        _require_fitting(name, holder, stored)
    lost = session.load_state_dict(receipt)
    # What may refuse its state comes first, the models last: they were looked at, so they do not fail.
    is_holder = {name: isinstance(one, Stateful) and not isinstance(one, nn.Module) for name, one in state.items()}
    load_holders([(state[name], stored[name]) for name in state if is_holder[name]])
    rest = {name: one for name, one in state.items() if not is_holder[name]}
    if rest:
        fabric.load(os.fspath(path), rest, strict=True)
        state.update(rest)
    return lost


def _require_fitting(name: str, holder: Any, stored: dict[str, Any]) -> None:
    """Refuse what a file holds under `name` unless `holder` can take it. Raises `CheckpointError`."""
    is_fitting = name in stored
    if isinstance(holder, Optimizer):
        is_fitting = is_fitting and has_groups(stored[name])
    elif isinstance(holder, Stateful):
        is_fitting = is_fitting and isinstance(stored[name], Mapping)
    if not is_fitting:
        raise CheckpointError(
            f"it holds no {name!r}" + (f" of a {type(holder).__name__}" if name in stored else ""),
            where="the checkpoint",
            cure="Name the parts of state as they were named in hushgrad.integrations.fabric.save",
        )
    if isinstance(holder, nn.Module):
        require_same_model(stored[name], holder)
    elif isinstance(holder, Optimizer):
        require_same_optimizer(None, stored[name], None, holder)


def _without_receipt(state: dict[str, Any]) -> dict[str, Any]:
    if _RECEIPT in state:
        raise InvalidArgumentError(
            f"has an entry {_RECEIPT!r}, which is the receipt's", where="state", cure="Give it another name"
        )
    return state


def _require_fit(fabric: Fabric) -> None:
    problems = []
    if not isinstance(fabric.strategy, SingleDeviceStrategy) and type(fabric.strategy) is not DDPStrategy:
        problems.append(
            (
                f"its strategy is {type(fabric.strategy).__name__}, which splits the model or trains it in its own way",
                "Use Fabric(strategy='ddp') for several processes, or Fabric(devices=1, strategy='auto')",
            )
        )
    if str(fabric.strategy.precision.precision) not in WIDE_ENOUGH:
        problems.append(
            (
                "its precision scales losses and skips steps by looking at gradients without noise, or is not known",
                "Use precision='bf16-mixed', 'bf16-true' or '32-true'",
            )
        )
    refuse("Fabric", problems)
