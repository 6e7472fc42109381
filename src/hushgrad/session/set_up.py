"""A session's set-up: what is refused, and the parts that a session is made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from types import NoneType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hushgrad._version import __version__
from hushgrad.accounting.budget import Budget
from hushgrad.accounting.conditions import Condition, third_party
from hushgrad.accounting.filter import PrivacyFilter
from hushgrad.accounting.ledger.contract import Rounding
from hushgrad.capture.public import PublicTensors
from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.clipping import known as clip_rules
from hushgrad.errors import InvalidArgumentError, UnprovenMechanismError
from hushgrad.freed_memory import keep_freed_memory
from hushgrad.gradients.contribution import Plan
from hushgrad.gradients.machine import NO_LIMIT
from hushgrad.guards.compatibility import require_module, require_trainable_privately
from hushgrad.guards.gradient_marks import GradientMarks
from hushgrad.guards.left_alone import LeftAlone
from hushgrad.guards.monitoring.alarms import Alarms
from hushgrad.guards.monitoring.monitor import Monitor, Monitors
from hushgrad.guards.probing.probe import Probe
from hushgrad.guards.setup_invariants import SetupInvariants
from hushgrad.mechanism import DPSGD, Mechanism
from hushgrad.mechanism import known as noise_kinds
from hushgrad.noise.gaussian import backend as noise_backend
from hushgrad.parallel.agreement import require_agreement, require_equal_copies, together
from hushgrad.parallel.grid import grid_of
from hushgrad.parallel.layout import inner_module, require_layout
from hushgrad.parallel.messages import agreed_stream, exchanged
from hushgrad.parallel.replicas import digest, options_of, state_digest
from hushgrad.parallel.world import ALONE, World
from hushgrad.printable import full_name
from hushgrad.randomness import Address, KeyStream
from hushgrad.sampling import known as sampling_kinds
from hushgrad.session.loss_scale import LossScale, Scale
from hushgrad.session.members import Members
from hushgrad.session.parts import Parts
from hushgrad.session.regularizers import Regularizers
from hushgrad.session.same_optimizer import names_by_group
from hushgrad.session.spending import Spending
from hushgrad.session.update import Update
from hushgrad.torch_sharding import fully_sharded, placed, settle


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
    world: World = ALONE,
) -> Parts:
    """Return the parts of a new session; `privatize` says what the arguments are, and what is raised.

    `alarms` and `batches_are_chosen` are for `verify`, which reads what tampered training releases, and chooses batches
    that nobody asks the ε of: any sampling may then be declared.

    With a `world` of several processes, all of them call it with the same values, and each refuses what one refuses.

    Nothing of the model or the optimizer is claimed yet.
    """
    parts: Parts | None = None
    try:
        with together(world, "layout", {}):
            require_module(model)
            inner = inner_module(model)
            sharded = fully_sharded(inner)
            settle(sharded)  # an evaluation before may have left whole parameters in place
            require_layout(model)
        grid = grid_of(inner, world)
        with together(world, "set-up", {}):
            if not isinstance(mechanism, Mechanism):
                raise InvalidArgumentError(
                    f"mechanism must be a DPSGD or another Mechanism, got {type(mechanism).__name__}",
                    cure="Pass hushgrad.DPSGD(noise_multiplier=..., clipping=..., sampling=..., "
                    "expected_batch_size=...)",
                )
            scale = LossScale(loss_scale)
            parameters = require_trainable_privately(inner, optimizer, mechanism.sparse_rows)
            _require_divisible(mechanism, world)
            coordinates = sum(parameter.numel() for parameter in parameters.values())
            members = Members(inner, optimizer, ledger)
            stream = _stream_of(key)
            spending = Spending(
                mechanism,
                ledger,
                noise_is_secret=stream.is_secret,
                budget=budget,
                lease=lease,
                phase=phase,
                batches_are_chosen=batches_are_chosen,
                world=world,
                rounding=_roundings(mechanism, coordinates),
            )
            watching = Monitors(monitors)
            spending.trust([*_third_parties(mechanism, plan), *watching.conditions])
            spending.uncounted = members.steps_elsewhere()
            noise_backend()  # compiled, where it is, before anything is charged
            if any(parameter.device.type == "cpu" for parameter in parameters.values()):
                keep_freed_memory()
            plan = plan or Plan.of_device(next(iter(parameters.values())).device)
            _require_kept_operands(mechanism, plan)
            # Asks the clip rule and the noise, whose code may fail: before anything is put on the model.
            purpose = "noise" if world.is_first else f"noise of rank {world.rank}"  # apart under a key for tests, too
            update = Update(parameters, mechanism, stream.fork(purpose), plan, alarms, grid)
            public = PublicTensors()
            tables = update.sparse_tables
            probe = Probe(
                inner,
                parameters,
                mechanism.loss_reduction,
                stream.fork("looks"),
                mechanism.expected_batch_size,
                public,
                tables,
            )
            scope = Scope(inner, UsePool(plan, sparse=tables), probe, public)
            probe.join(scope)
            dense = {name: p for name, p in parameters.items() if name not in tables}
            parts = Parts(
                mechanism=mechanism,
                parameters=parameters,
                members=members,
                grid=grid,
                draws=stream,
                plan=plan,
                sharded=sharded,
                scope=scope,
                public=public,
                probe=probe,
                frozen=SetupInvariants(inner, optimizer, parameters, tables),
                left_alone=LeftAlone(parameters),
                marks=GradientMarks(inner, dense),
                update=update,
                regularizers=Regularizers(parameters, scope, tables),
                spending=spending,
                monitors=watching,
                loss_scale=scale,
                is_strict=strict,
            )
        own = parts.draws
        parts = replace(parts, draws=agreed_stream(world, own))
        if parts.is_split:
            parts.probe.look_with_others(
                parts.draws.fork("looks"), update.across, lambda: exchanged(world, "examination of losses")
            )
        if not world.is_alone:
            told = exchanged(world, "plan of operands", number=min(parts.plan.operand_bytes, NO_LIMIT))
            parts = replace(parts, plan=replace(parts.plan, operand_bytes=min(number for number, _ in told)))
        parts.spending.hear()
        require_agreement(world, _facts(parts, inner, optimizer, own, lease, phase, budget))
        require_equal_copies(world, inner.parameters())
        if parts.sharded and not world.is_alone:
            is_wanted = parts.update.may_scatter and parts.update.split_bytes > parts.plan.sum_bytes
            if any(number for number, _ in exchanged(world, "plan of sums", number=int(is_wanted))):
                parts.update.scatter()
    except BaseException:
        if parts is not None:
            parts.scope.detach()  # refused for what another process has
        raise
    return parts


def _require_divisible(mechanism: Mechanism, world: World) -> None:
    """Refuse noise and sampling of which it is not known that each process may draw a part of it."""
    if not world.is_alone and type(mechanism.noise) not in noise_kinds.DIVISIBLE:
        if type(mechanism.noise) in noise_kinds.OWN:
            raise InvalidArgumentError(
                f"{type(mechanism.noise).__name__} is for one process: each of several would draw a part of it, and "
                f"what they add up is on no grid, and continues no noise of earlier steps",
                where="mechanism",
                cure='Train in one process, or take noise="gaussian"',
            )
        raise InvalidArgumentError(
            f"{type(mechanism.noise).__name__} is noise of somebody else's, which may not be drawn part by part in "
            f"several processes",
            where="mechanism",
            cure="Train in one process, or take Gaussian noise (DPSGD)",
        )
    if not world.is_alone and mechanism.sampling.ownership is not None:
        raise UnprovenMechanismError(
            "whole users are drawn in one process: several would part them, and clip each part by itself",
            where="sampling",
            cure="Take one process, or draw records by themselves and ask for the epsilon of group_size",
        )
    if not world.is_alone and mechanism.sparse_rows is not None:
        raise InvalidArgumentError(
            "SparseRows is for one process: several would each choose rows of their own",
            where="sparse_rows",
            cure="Train in one process, or leave sparse_rows out",
        )
    if not world.is_alone and mechanism.sampling.counts_in == "blocks":
        raise InvalidArgumentError(
            f"{type(mechanism.sampling).__name__} is for one process: blocks of steps are not agreed on by several",
            where="mechanism",
            cure="Train in one process, or take PoissonSampling with independent noise (DPSGD)",
        )


def _require_kept_operands(mechanism: Mechanism, plan: Plan) -> None:
    """Refuse rows that are chosen by counts where operands are let go before anything is counted."""
    if mechanism.sparse_rows is not None and plan.limits_operands:
        raise InvalidArgumentError(
            "SparseRows counts the rows of a whole physical batch, and this plan (or this machine's file) lets its "
            "operands go inside the backward (operand_bytes)",
            where="sparse_rows",
            cure="Leave operand_bytes out, and take a smaller max_physical_batch_size",
        )


def _roundings(mechanism: Mechanism, coordinates: int) -> Rounding | None:
    """Return the grid of the first step, having asked for that of the step with the most noise, which is coarsest."""
    first = mechanism.at(0)
    found = first.noise.rounding(first.sensitivity, coordinates)
    if mechanism.noise_schedule is not None:
        most = max(range(len(mechanism.noise_schedule[: mechanism.steps])), key=mechanism.noise_schedule.__getitem__)
        loudest = mechanism.at(most)
        loudest.noise.rounding(loudest.sensitivity, coordinates)
    return found


def _described(mechanism: Mechanism) -> list[Any]:
    """Return what of a mechanism decides what a step does and costs; a repr may hold addresses."""
    kinds = [full_name(type(part)) for part in (mechanism, mechanism.noise, mechanism.clipping, mechanism.sampling)]
    schedules = [mechanism.noise_schedule, mechanism.clip_schedule]
    return [
        *kinds,
        mechanism.clipping.describe(),
        mechanism.sampling.describe(),
        mechanism.noise_multiplier,
        mechanism.sensitivity,
        mechanism.divisor,
        mechanism.steps,
        mechanism.passes,
        *(None if factors is None else list(factors) for factors in schedules),
    ]


def _facts(
    parts: Parts,
    model: nn.Module,
    optimizer: Optimizer,
    stream: KeyStream,
    lease: int,
    phase: str | None,
    budget: Budget | PrivacyFilter | None,
) -> dict[str, Any]:
    """Return what all processes must have in common, as JSON; of a single process nothing."""
    if parts.world.is_alone:
        return {}
    names = [[name, list(p.shape), str(p.dtype), p.requires_grad, placed(p)] for name, p in parts.parameters.items()]
    return {
        "version of hushgrad": __version__,
        "version of torch": torch.__version__,
        "mechanism": _described(parts.mechanism),
        "parameters": names,
        "values of the weights": digest(model.parameters()),
        "values of the buffers": digest(model.buffers()),
        "optimizer": full_name(type(optimizer)),
        "options of the optimizer": options_of(optimizer),
        "groups of the optimizer": names_by_group(model, optimizer),
        "state of the optimizer": state_digest(optimizer),
        "budget": repr(budget),
        "lease": lease,
        "phase": phase,
        "strict": parts.is_strict,
        "ledger": parts.spending.is_kept,
        # Whatever is drawn from a key for tests is no secret.
        "test key": "" if stream.is_secret else bytes(stream.fork("agreement").read(Address(0), 16)).hex(),
    }


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
