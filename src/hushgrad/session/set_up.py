"""A session's set-up: what is refused, and the parts that a session is made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import NoneType

from torch import nn
from torch.optim import Optimizer

from hushgrad.accounting.budget import Budget
from hushgrad.accounting.conditions import Condition, third_party
from hushgrad.accounting.filter import PrivacyFilter
from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.clipping import known as clip_rules
from hushgrad.errors import InvalidArgumentError
from hushgrad.gradients.contribution import Plan
from hushgrad.guards.compatibility import require_trainable_privately
from hushgrad.guards.gradient_marks import GradientMarks
from hushgrad.guards.left_alone import LeftAlone
from hushgrad.guards.monitoring.alarms import Alarms
from hushgrad.guards.monitoring.monitor import Monitor, Monitors
from hushgrad.guards.probing.probe import Probe
from hushgrad.guards.setup_invariants import SetupInvariants
from hushgrad.mechanism import DPSGD, Mechanism
from hushgrad.mechanism import known as noise_kinds
from hushgrad.printable import full_name
from hushgrad.randomness import KeyStream
from hushgrad.sampling import known as sampling_kinds
from hushgrad.session.loss_scale import LossScale, Scale
from hushgrad.session.members import Members
from hushgrad.session.parts import Parts
from hushgrad.session.regularizers import Regularizers
from hushgrad.session.spending import Spending
from hushgrad.session.update import Update


def set_up(
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
    alarms: Alarms = Alarms.RAISED,
    batches_are_chosen: bool = False,
) -> Parts:
    """Return the parts of a new session; `privatize` says what the arguments are, and what is raised.

    `alarms` and `batches_are_chosen` are for `verify`, which reads what tampered training releases, and chooses batches
    that nobody asks the ε of: any sampling may then be declared.

    Nothing of the model or the optimizer is claimed yet.
    """
    if not isinstance(mechanism, Mechanism):
        raise InvalidArgumentError(
            f"mechanism must be a DPSGD or another Mechanism, got {type(mechanism).__name__}",
            cure="Pass hushgrad.DPSGD(noise_multiplier=..., clipping=..., sampling=..., expected_batch_size=...)",
        )
    scale = LossScale(loss_scale)
    parameters = require_trainable_privately(model, optimizer)
    members = Members(model, optimizer, ledger)
    stream = _stream_of(key)
    spending = Spending(
        mechanism,
        ledger,
        noise_is_secret=stream.is_secret,
        budget=budget,
        lease=lease,
        phase=phase,
        batches_are_chosen=batches_are_chosen,
    )
    watching = Monitors(monitors)
    spending.trust([*_third_parties(mechanism, plan), *watching.conditions])
    spending.uncounted = members.steps_elsewhere()
    plan = plan or Plan.of_device(next(iter(parameters.values())).device)
    # Asks the clip rule and the noise, whose code may fail: before anything is put on the model.
    update = Update(parameters, mechanism, stream.fork("noise"), plan, alarms)
    probe = Probe(model, parameters, mechanism.loss_reduction, stream.fork("looks"), mechanism.expected_batch_size)
    scope = Scope(model, UsePool(plan), probe)
    probe.join(scope)
    return Parts(
        mechanism=mechanism,
        parameters=parameters,
        members=members,
        stream=stream,
        plan=plan,
        scope=scope,
        probe=probe,
        frozen=SetupInvariants(model, optimizer, parameters),
        left_alone=LeftAlone(parameters),
        marks=GradientMarks(model, parameters),
        update=update,
        regularizers=Regularizers(parameters, scope),
        spending=spending,
        monitors=watching,
        loss_scale=scale,
        is_strict=strict,
    )


def _stream_of(key: KeyStream | None) -> KeyStream:
    """Return the session's own secret bits, or those of a key for tests."""
    if key is None:
        return KeyStream.from_operating_system()
    if not isinstance(key, KeyStream) or key.is_secret:
        raise InvalidArgumentError(
            "key must be that of a test: a session draws its own secret key, because two sessions with one key would "
            "draw the same noise, which cancels",
            cure="Leave key out, or pass KeyStream.fixed_for_tests(seed) in a test",
        )
    return key


def _third_parties(mechanism: Mechanism, plan: Plan | None) -> list[Condition]:
    """Return the parts that are classes of somebody else's: subclasses of ours may compute something else."""
    own: dict[str, tuple[object, tuple[type, ...]]] = {
        "mechanism": (mechanism, (DPSGD, Mechanism)),
        "clip rule": (mechanism.clipping, clip_rules.OWN),
        "plan of norms": (plan, (Plan, NoneType)),
        "noise": (mechanism.noise, noise_kinds.OWN),
        "sampling": (mechanism.sampling, sampling_kinds.OWN),
    }
    foreign = [(part, type(value)) for part, (value, kinds) in own.items() if type(value) not in kinds]
    return [third_party(part, full_name(kind)) for part, kind in foreign]
