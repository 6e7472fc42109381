"""What a ledger says, read from its file and verified: contract, events, notes and end, as values."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hushgrad.accounting.composition import adjacency_of, count_steps
from hushgrad.accounting.conditions import NOTED_AS, OLDER_COPY, Condition, from_note, joined
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.events.registry import event_from_json
from hushgrad.accounting.filter import filter_of
from hushgrad.accounting.ledger.contract import ONE_RECORD, Contract
from hushgrad.accounting.ledger.file import ledger_path, read_bytes
from hushgrad.accounting.ledger.history import is_behind, last_seen, without_unfinished
from hushgrad.accounting.ledger.phases import FIXED, Phase, conditions_of_phases, joint_contract, phase_name
from hushgrad.accounting.ledger.records import NO_HASH, RESTORE, LedgerHead, decode, record_at
from hushgrad.arguments import count_of
from hushgrad.errors import HushgradError, LedgerError

FORMAT = 2
NOTE_VERSION = 1

_NEWER = "Read it with a newer version of hushgrad"
_OTHER_PROGRAM = f"{_NEWER}, or in a program that registers its kind of event (hushgrad.accounting.register_event)"

NoteValue = str | int | float


@dataclass(frozen=True, slots=True)
class Note:
    """A finding of a monitor, which costs nothing: what it is about, after how many steps, and what was found."""

    about: str
    steps: int
    values: Mapping[str, NoteValue]


@dataclass(frozen=True, slots=True)
class LedgerView:
    """What a ledger says: its phases, its events in order as `(event, count)`, its number of steps and its end.

    `contract` is what holds for all phases; where they differ in something it says None, and the conditions say all.
    `notes` are what monitors found meanwhile. No ε depends on them. `is_behind`: whether this machine wrote records of
    the run that the file lacks, so that it is an older copy or another one was continued. `at_anchor`: how many steps
    may have been taken when the anchor that was asked for was the last record: one number, several within a lease.
    """

    phases: tuple[Phase, ...]
    events: list[tuple[Event, int]]
    steps: int
    anchor: LedgerHead
    run: str
    notes: list[Note] = field(default_factory=list)
    is_behind: bool = False
    at_anchor: range | None = None

    @property
    def contract(self) -> Contract:
        """What holds for all phases."""
        return joint_contract(self.phases)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What the run took on trust, as its notes and its phases say."""
        phases = conditions_of_phases(self.phases, self.steps, filter_of(self.events))
        return joined([*conditions_of(self.notes), *phases, *([OLDER_COPY] if self.is_behind else [])])


def read_ledger(path: str | os.PathLike[str], anchor: LedgerHead | None = None) -> LedgerView:
    """Verify the ledger at `path` and return what it says, without locking it.

    With an `anchor` (a `Ledger.anchor` kept elsewhere), also verify that the ledger still contains it.

    A last line that was never whole, as a process leaves that is killed while it writes, is left out where this machine
    knows that (`history.without_unfinished`).

    Guarantee: a damaged or edited file is refused, naming the first bad record. Raises `LedgerError`.
    """
    data = without_unfinished(read_bytes(ledger_path(path)))
    view = view_of(data, anchor)
    if (seen := last_seen(view.run)) is not None and is_behind(data, seen):  # or it was written to meanwhile
        view = replace(view, is_behind=is_behind(read_bytes(ledger_path(path)), seen))
    return view


def view_when(path: str | os.PathLike[str], anchor: LedgerHead) -> LedgerView | None:
    """Return what the ledger at `path` said when `anchor` was its last record; None where it never was.

    Raises `LedgerError` for a ledger that is damaged before that record.
    """
    lines = read_bytes(ledger_path(path)).split(b"\n")
    if not 0 <= anchor.seq < len(lines) - 1:
        return None
    view = view_of(b"\n".join([*lines[: anchor.seq + 1], b""]))
    return view if view.anchor == anchor else None


def view_of(data: bytes, anchor: LedgerHead | None = None) -> LedgerView:
    """Return what the content of a ledger file says, verified; with an `anchor`, also that it holds that record."""
    events: list[tuple[Event, int]] = []
    notes: list[Note] = []
    phases: list[Phase] = []
    run, last = "", LedgerHead(-1, NO_HASH)
    at_anchor: range | None = None
    returnable = 0  # a lease can be returned only by the record that follows it, and never whole
    for record in decode(data):
        last = LedgerHead(record["seq"], record["hash"])
        limit, returnable = returnable, 0
        try:
            if last.seq == 0:
                contract, run = _read_header(record)
                phases.append(Phase(None, contract, 0))
            elif record["kind"] == "charge":
                event = event_from_json(record["event"])
                if event.filter_rule is not None and events:
                    raise LedgerError("it fixes a filter after the first charge", cure=RESTORE)
                adjacency_of([event, *(earlier for earlier, _ in events[-1:])])
                count = count_of("count", record["count"], minimum=1)
                accumulate(events, event, count)
                returnable = count - 1
            elif record["kind"] == "returned":
                unused = count_of("count", record["count"], minimum=1)
                if unused > limit:
                    raise LedgerError("it returns steps that the record before it did not reserve", cure=RESTORE)
                event, count = events.pop()
                events.append((event, count - unused))
            elif record["kind"] == "phase":
                phases = _entered(phases, record, count_steps(events))
            elif record["kind"] == "note":
                notes.append(read_note(record, count_steps(events)))
            elif record["kind"] != "resumed":
                raise LedgerError("its kind is unknown to this version of hushgrad", cure=_NEWER)
        except HushgradError as error:
            place = f"{error.where}: " if error.where else ""
            what = f"it cannot be understood: {place}{error.what}"
            cure = error.cure if isinstance(error, LedgerError) else _OTHER_PROGRAM
            raise LedgerError(what, where=record_at(last.seq), cure=cure) from None
        except (KeyError, TypeError) as error:
            what = f"it cannot be understood: {type(error).__name__}: {error}"
            raise LedgerError(what, where=record_at(last.seq), cure=_OTHER_PROGRAM) from None
        if last == anchor:
            steps = count_steps(events)
            at_anchor = range(steps - returnable, steps + 1)
    if not phases:  # decode() refuses a file without records
        raise LedgerError("it has no header", where="the ledger", cure=RESTORE)
    if anchor is not None and at_anchor is None:
        raise LedgerError(
            "it lacks a record that it once had: it was cut short, or is the ledger of another run",
            where="the ledger",
            cure=RESTORE,
        )
    return LedgerView(tuple(phases), events, count_steps(events), last, run, notes, at_anchor=at_anchor)


def _read_header(record: dict[str, Any]) -> tuple[Contract, str]:
    if record["kind"] != "header" or type(record["format"]) is not int or not 1 <= record["format"] <= FORMAT:
        raise LedgerError(
            f"it is not a header of format 1 to {FORMAT}", cure="Read it with another version of hushgrad"
        )
    said = record["contract"]
    if _NEW_IN_FORMAT_2 & set(said) != (_NEW_IN_FORMAT_2 if record["format"] == 2 else set()):
        raise LedgerError("its contract has other fields than its format has", cure=RESTORE)
    contract = Contract(**said)
    return (_of_format_1(contract) if record["format"] == 1 else contract), str(record["run"])


def _entered(phases: list[Phase], record: dict[str, Any], steps: int) -> list[Phase]:
    """Return the phases with that of a record. Raises `LedgerError` where it is none that this program writes."""
    new = Phase(phase_name(record["name"]), Contract(**record["contract"]), steps)
    before = [phase for phase in phases if phase.begins < steps]
    if any(phase.name == new.name for phase in before) or any(
        getattr(phases[0].contract, name) != getattr(new.contract, name) for name in FIXED
    ):
        raise LedgerError("it begins a phase that cannot follow those before it", cure=RESTORE)
    return [*before, new]


_NEW_IN_FORMAT_2 = {"clipping", "unit"}


def _of_format_1(contract: Contract) -> Contract:
    """Return what format 1 left unsaid: its one clip rule was flat, to the norm it names, for one record."""
    if contract.max_grad_norm is None:
        return contract
    return replace(contract, clipping=f"FlatClipping(max_grad_norm={contract.max_grad_norm!r})", unit=ONE_RECORD)


def read_note(record: Mapping[str, Any], steps: int) -> Note:
    """Return the note in a ledger record, written after `steps` steps. Raises `LedgerError` for what is no note."""
    about, values = record["about"], record["values"]
    if type(record["version"]) is not int or record["version"] != NOTE_VERSION:
        raise LedgerError(f"it is not a note of version {NOTE_VERSION}", cure=_NEWER)
    if not isinstance(about, str) or not isinstance(values, dict):
        raise LedgerError(
            "a note must be about something, in text, and have values by name",
            cure="Pass text, and a mapping of values",
        )
    for name, value in values.items():
        if type(value) not in (str, int, float) or (isinstance(value, float) and not math.isfinite(value)):
            raise LedgerError(
                "a note's value must be text or a finite number", where=repr(name), cure="Convert it before it is noted"
            )
    return Note(about, steps, values)


def conditions_of(notes: Sequence[Note]) -> tuple[Condition, ...]:
    """Return the conditions that are among notes, each once."""
    found = (from_note(note.values) for note in notes if note.about == NOTED_AS)
    return joined(condition for condition in found if condition is not None)


def accumulate(events: list[tuple[Event, int]], event: Event, count: int) -> None:
    """Add `count` steps of `event` to the end of `events`, joined with the last ones where those are equal."""
    if events and events[-1][0] == event:
        events[-1] = (event, events[-1][1] + count)  # in one piece: an interrupt must not find what was charged gone
    else:
        events.append((event, count))
