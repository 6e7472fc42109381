"""The phases of one account: what changes between them, what must not, and which composition their ε rests on.

A training in stages, a model that is trained on, federated rounds: other batches, another clip rule, another population
or sampling, and one record that may be in all of them. So all phases are in one ledger, and their events are composed
as if every record took part in each: nothing is gained where the populations are disjoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from hushgrad.accounting.composition import Composition
from hushgrad.accounting.conditions import NOISE_NOT_OBSERVED, Condition, phases_fixed
from hushgrad.accounting.events.costs import FilterRule
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.ledger.contract import DECLARED, FIXED_KEY, NOT_OBSERVED, OBSERVED, Contract, Rounding
from hushgrad.errors import ContractChangedError, InvalidArgumentError

MOST_CHARACTERS = 100
FIXED = ("noise_is_secret", "unit")
"""What of a contract stays the same in all phases. So does the neighbouring relation, which is in the events.

Noise that was not observed and noise of this library may follow each other: what is said of the account is then that
not all of its noise was observed."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of an account: its name (None for one that began without), its contract, the steps charged before it."""

    name: str | None
    contract: Contract
    begins: int


def phase_name(name: object) -> str:
    """Return the name of a phase, or raise `InvalidArgumentError`."""
    if isinstance(name, str) and name.strip() and name.isprintable() and len(name) <= MOST_CHARACTERS:
        return name
    raise InvalidArgumentError(
        f"must be one printable line of 1 to {MOST_CHARACTERS} characters",
        where="phase",
        cure='Give the phase a name of its own, phase="fine-tune" for instance',
    )


def entered(phases: Sequence[Phase], name: str | None, contract: Contract, steps: int) -> list[Phase]:
    """Return the phases of an account of `steps` steps that is opened for the phase `name`: its last one, or a new one.

    Guarantee: a phase is opened by its name alone, a name is used once, and unit and secrecy of the noise stay.

    Raises:
        ContractChangedError: another phase than the last one is meant, or the contract is not that of the phase.
    """
    last = phases[-1]
    if name == last.name:
        _require_same(last.contract, contract, [field.name for field in fields(Contract)], _anew(name))
        return list(phases)
    if name is None:
        raise ContractChangedError(
            f"it is in its phase {last.name!r}, and no phase is named",
            where="the ledger",
            cure=f"Pass phase={last.name!r} to go on with that one, or the name of a new one",
        )
    if name in (phase.name for phase in phases):
        raise ContractChangedError(
            f"its phase {name!r} has ended: {last.name!r} came after it",
            where="the ledger",
            cure="Give the new phase a name of its own",
        )
    _require_same(last.contract, contract, FIXED, "Begin a new ledger: in one account these stay as they are")
    new = Phase(name, contract, steps)
    return [*(phase for phase in phases if phase.begins < steps), new]


def _anew(name: str | None) -> str:
    more = "phase='a new name' for what differs" if name is None else "a new phase for what differs"
    return f"Use the old values, or {more} (one account for both), or a new ledger for a new run"


def _require_same(old: Contract, new: Contract, names: Sequence[str], cure: str) -> None:
    changed = [
        f"{name} (was {getattr(old, name)!r}, now {getattr(new, name)!r})"
        for name in names
        if getattr(old, name) != getattr(new, name)
    ]
    if changed:
        raise ContractChangedError(
            f"it was begun under another contract: {', '.join(changed)}", where="the ledger", cure=cure
        )


def joint_contract(phases: Sequence[Phase]) -> Contract:
    """Return what holds for all phases: declared where one is, and None for what differs."""
    contracts = [phase.contract for phase in phases]
    last = contracts[-1]
    if all(contract == last for contract in contracts):
        return last
    changes: dict[str, Any] = {
        name: None
        for name in ("expected_batch_size", "max_grad_norm", "population", "clipping", "strategy", "sparse_rows")
        if len({getattr(contract, name) for contract in contracts}) > 1
    }
    if len({contract.rounding for contract in contracts}) > 1:
        changes["rounding"] = _joint_rounding([contract.rounding for contract in contracts])
    sampling = DECLARED if any(contract.sampling == DECLARED for contract in contracts) else OBSERVED
    sources = {contract.noise_source for contract in contracts}
    source = next((worst for worst in (FIXED_KEY, NOT_OBSERVED) if worst in sources), last.noise_source)
    return replace(last, sampling=sampling, noise_source=source, **changes)


def _joint_rounding(found: Sequence[Rounding | None]) -> Rounding:
    """Return the largest of each number; it says whether some phases had no grid."""
    known = [rounding for rounding in found if rounding is not None]
    return Rounding(
        grid=max(rounding.grid for rounding in known),
        error=max(rounding.error for rounding in known),
        distance=max(rounding.distance for rounding in known),
        everywhere=len(known) == len(found) and all(rounding.everywhere for rounding in known),
    )


def conditions_of_phases(phases: Sequence[Phase], steps: int, rule: FilterRule | None) -> list[Condition]:
    """Return what the ε of phases rests on: noise that was not observed; of several, what each declared beforehand."""
    besides = [] if all(phase.contract.noise_is_observed for phase in phases) else [NOISE_NOT_OBSERVED]
    if len(phases) < 2:
        return besides
    ends = [*(phase.begins for phase in phases[1:]), steps]
    told = [_told(phase, end - phase.begins) for phase, end in zip(phases, ends, strict=True)]
    return [*besides, phases_fixed(told, is_filtered=rule is not None)]


def _told(phase: Phase, steps: int) -> str:
    contract = phase.contract
    parts = [f"{steps} step{'' if steps == 1 else 's'}", f"sampling {contract.sampling}"]
    if not contract.noise_is_observed:
        parts.append("noise not observed")
    if contract.population is not None:
        parts.append(f"N = {contract.population}")
    if contract.expected_batch_size is not None:
        parts.append(f"expected batch size {contract.expected_batch_size:g}")
    if contract.clipping is not None:
        parts.append(contract.clipping)
    if contract.sparse_rows is not None:
        parts.append(contract.sparse_rows)
    return f"{'the first' if phase.name is None else repr(phase.name)} ({', '.join(parts)})"


def up_to_step(events: Composition, steps: int) -> list[tuple[Event, int]]:
    """Return what was charged before the step that `steps` steps came before; all of it where there is no such one."""
    before: list[tuple[Event, int]] = []
    left = steps
    for event, count in events:
        if event.is_step and left < count:
            return [*before, (event, left)] if left else before
        left -= count if event.is_step else 0
        before.append((event, count))
    return before


def split(events: Composition, steps: int) -> tuple[list[tuple[Event, int]], list[tuple[Event, int]]]:
    """Return what was charged in the first `steps` steps, what is no step included, and what after them."""
    before: list[tuple[Event, int]] = []
    after: list[tuple[Event, int]] = []
    left = steps
    for event, count in events:
        taken = min(count, left) if event.is_step else count
        left -= taken if event.is_step else 0
        before += [(event, taken)] if taken else []
        after += [(event, count - taken)] if count > taken else []
    return before, after
