"""The way back to an open session from the model or the optimizer that it has, where its name is lost."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from hushgrad.errors import InvalidArgumentError, ProtocolError
from hushgrad.guards.in_use import owners_of
from hushgrad.session.session import Session


def session_of(model_or_optimizer: nn.Module | Optimizer) -> Session:
    """Return the open session that owns a model or an optimizer.

    For a notebook whose cell ran twice, so that the engine's name is another one's by now:
    `hushgrad.session_of(model).close()` keeps the weights, and the cell may run again. With the same ledger path its
    account goes on; without one, every guarantee says how many earlier steps it does not count.

    Args:
        model_or_optimizer: what was given to `make_private` or `privatize`; also a part of the model, or a module that
            the model is a part of.

    Raises:
        InvalidArgumentError: neither a model nor an optimizer.
        ProtocolError: no open session owns it, or its parts belong to several.
    """
    if not isinstance(model_or_optimizer, (nn.Module, Optimizer)):
        raise InvalidArgumentError(
            f"must be a model or an optimizer, got {type(model_or_optimizer).__name__}",
            where="model_or_optimizer",
            cure="Pass what was given to make_private",
        )
    parts = model_or_optimizer.modules() if isinstance(model_or_optimizer, nn.Module) else [model_or_optimizer]
    sessions = [owner for owner in owners_of(parts) if isinstance(owner, Session)]
    if len(sessions) != 1:
        what = "model" if isinstance(model_or_optimizer, nn.Module) else "optimizer"
        raise ProtocolError(
            f"no open session owns this {what}"
            if not sessions
            else f"parts of this {what} belong to {len(sessions)} open sessions",
            cure="Pass the object that make_private or privatize was given, while its session is open",
        )
    return sessions[0]
