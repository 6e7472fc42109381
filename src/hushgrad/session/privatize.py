"""`privatize`: the way into a session for those who write their own loop."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from hushgrad.accounting.budget import Budget
from hushgrad.accounting.filter import PrivacyFilter
from hushgrad.gradients.contribution import Plan
from hushgrad.guards.monitoring.monitor import Monitor
from hushgrad.mechanism import Mechanism
from hushgrad.parallel.layout import inner_module
from hushgrad.parallel.world import join_world
from hushgrad.randomness import KeyStream
from hushgrad.session.loss_scale import Scale
from hushgrad.session.session import Session
from hushgrad.session.set_up import set_up


def privatize(
    model: nn.Module,
    optimizer: Optimizer,
    mechanism: Mechanism,
    *,
    ledger: str | os.PathLike[str] | None = None,
    key: KeyStream | None = None,
    plan: Plan | None = None,
    budget: Budget | PrivacyFilter | None = None,
    lease: int = 1,
    phase: str | None = None,
    monitors: Sequence[Monitor] = (),
    strict: bool = False,
    loss_scale: Scale = 1.0,
) -> Session:
    """Attach a mechanism to a model and its optimizer; both stay the caller's own objects.

    In several processes (torchrun), all of them call it with the same values, after
    `torch.distributed.init_process_group`: the model is plain, torch's `DistributedDataParallel` around it, or one that
    `fully_shard` was called on.

    Args:
        model: in training mode.
        optimizer: any torch optimizer over all trainable parameters, but LBFGS and SparseAdam (which updates tables of
            `SparseRows`).
        mechanism: what every step does and costs.
        ledger: a path makes the record of what ran durable; an existing file is verified and continued.
        key: for tests only, `KeyStream.fixed_for_tests(seed)`; marks the ledger "NOT PRIVATE".
        plan: how norms are computed; every plan gives the same numbers.
        budget: an ε that training must not pass. `optimizer.step()` raises `BudgetExhaustedError` at the first step
            that does not fit, and updates nothing; the same step after a crash and a resume of the ledger. In passes
            over the data, for `DisjointBatches`. A `PrivacyFilter` is fixed before the first step of its account, and
            lets what is trained later be chosen after seeing what was released.
        lease: how many steps are put on disk at once, which saves time; a crash over-charges fewer than that many.
        phase: the name of a part of the account, which has a batch size, clip rule, population and sampling of its own:
            the part that the ledger is in goes on, and a new name begins a new one. All parts are composed in one ε.
            Needs a ledger path. The limits of the mechanism (`steps`, `passes`) are the part's own.
        monitors: what watches the noised updates, beside the monitors that are always on.
        strict: True refuses, before anything of it is released, what the probe and the reader of losses would take on
            trust (`TakenOnTrustError`).
        loss_scale: for float16, whose small gradients vanish: what every loss is multiplied by in a backward through 16
            bits, and taken off again before gradients are clipped. A power of two up to 2**15 (losses are not divided
            by the batch size, so 2**10 is plenty), or a function of the number of steps charged that returns one. It
            must follow nothing but that and released values: no loss, and no gradient that overflowed. An example whose
            gradient overflows contributes 0. Instead of torch's `GradScaler`, which is refused.

    Raises what `require_trainable_privately` raises, before any data is read, and `ProtocolError` where the model or
    the optimizer belongs to another open session.
    """
    parts = set_up(
        model,
        optimizer,
        mechanism,
        ledger=ledger,
        key=key,
        plan=plan,
        budget=budget,
        lease=lease,
        phase=phase,
        monitors=monitors,
        strict=strict,
        loss_scale=loss_scale,
        world=join_world(),
    )
    return Session(parts, inner_module(model), optimizer)
