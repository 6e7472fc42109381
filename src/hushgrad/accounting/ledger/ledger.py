"""The ledger: an append-only, hash-chained record of every step that ran. ε is a function of it and of nothing else.

A ledger lives in memory, and also in a file where a path is given. The order of a step is: charge (on disk), then draw
noise, then update. A crash can therefore leave a charge for a step that never happened, and never the reverse.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from hushgrad._version import __version__
from hushgrad.accounting.composition import adjacency_of
from hushgrad.accounting.conditions import NOTED_AS, Condition, from_note, joined
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.events.registry import event_from_json, event_to_json
from hushgrad.accounting.ledger.file import LedgerFile, ledger_path, read_bytes
from hushgrad.accounting.ledger.records import NO_HASH, Anchor, decode, encode
from hushgrad.arguments import count_of, non_negative_number, one_of, positive_number
from hushgrad.errors import ContractChangedError, HushgradError, InvalidArgumentError, LedgerError

FORMAT = 2
NOTE_VERSION = 1

ONE_RECORD = "one record"
"""The unit of privacy of every ledger so far: whose presence is protected."""

OBSERVED = "observed"
DECLARED = "declared by the caller"
OPERATING_SYSTEM = "operating system"
FIXED_KEY = "fixed key: NOT PRIVATE"


@dataclass(frozen=True, slots=True)
class Contract:
    """What is fixed for the life of a ledger and is not in its events.

    `sampling`: "observed" where hushgrad's own loader drew the batches, else "declared by the caller".
    `noise_source`: "operating system", or "fixed key: NOT PRIVATE".
    `expected_batch_size`: the public constant that the noised sum is divided by, in records; None if not declared.
    `max_grad_norm`: the largest norm with which one record enters the sum (the clip norm, of flat clipping), in units
    of the gradient; None if not declared.
    `loss_reduction`: "mean" or "sum".
    `population`: the declared public number of records, or None.
    `clipping`: the clip rule and all its constants, in its own words (`ClipRule.describe`); None if not declared.
    `unit`: whose presence is protected, "one record".
    """

    sampling: str
    noise_source: str
    expected_batch_size: float | None = None
    max_grad_norm: float | None = None
    loss_reduction: str = "mean"
    population: int | None = None
    clipping: str | None = None
    unit: str = ONE_RECORD

    def __post_init__(self) -> None:
        one_of("sampling", self.sampling, (OBSERVED, DECLARED))
        one_of("noise_source", self.noise_source, (OPERATING_SYSTEM, FIXED_KEY))
        one_of("loss_reduction", self.loss_reduction, ("mean", "sum"))
        if self.expected_batch_size is not None:
            object.__setattr__(
                self, "expected_batch_size", positive_number("expected_batch_size", self.expected_batch_size)
            )
        if self.max_grad_norm is not None:
            object.__setattr__(self, "max_grad_norm", non_negative_number("max_grad_norm", self.max_grad_norm))
        if self.population is not None:
            object.__setattr__(self, "population", count_of("population", self.population, minimum=1))
        for name, text in (("clipping", self.clipping), ("unit", self.unit)):
            if not ((text is None and name == "clipping") or (isinstance(text, str) and text and text.isprintable())):
                raise InvalidArgumentError(f"{name} must be one printable line of text, got {type(text).__name__}")

    @property
    def noise_is_secret(self) -> bool:
        """Whether the key of the noise came from the operating system."""
        return self.noise_source == OPERATING_SYSTEM


NoteValue = str | int | float


@dataclass(frozen=True, slots=True)
class Note:
    """A finding of a monitor, which costs nothing: what it is about, after how many steps, and what was found."""

    about: str
    steps: int
    values: Mapping[str, NoteValue]


@dataclass(frozen=True, slots=True)
class LedgerView:
    """What a ledger says: its contract, its events in order as `(event, count)`, its number of steps and its end.

    `notes` are what monitors found meanwhile. No ε depends on them.
    """

    contract: Contract
    events: list[tuple[Event, int]]
    steps: int
    anchor: Anchor
    run: str
    notes: list[Note] = field(default_factory=list)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What the run took on trust, as its notes say."""
        return _conditions(self.notes)


class Ledger:
    """The record of one training run, to which steps can only be added.

    Guarantee: `charge` returns after the charge is on disk; nothing lowers what was charged; a second writer, a damaged
    file and a changed contract are refused.
    Guarantee: with leases, a crash leaves the file with at most lease − 1 steps more than were taken, never fewer.

    `Ledger(contract=...)` is kept in memory. With a `path`, a missing file is created (mode 0600) and an existing one
    is verified and continued. The file is locked until `close()`, also by `with`. Not for use from several processes.
    Raises `LedgerError` where the file cannot be opened, locked or trusted, and `ContractChangedError` where it was
    begun under another contract.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, contract: Contract) -> None:
        self._contract = contract
        self._events: list[tuple[Event, int]] = []
        self._conditions: tuple[Condition, ...] = ()
        self._steps = 0
        self._seq = -1
        self._hash = NO_HASH
        self._state = "open"
        self._leased = 0
        self._file = None if path is None else LedgerFile.open(ledger_path(path))
        self._run = os.urandom(16).hex()
        try:
            if self._file is not None and not self._file.created:
                self._resume(self._file.read())
            else:
                header = {"format": FORMAT, "hushgrad": __version__, "run": self._run, "contract": asdict(contract)}
                self._append("header", header)
                if self._file is not None:
                    self._file.publish()
        except BaseException:
            if self._file is not None:
                self._file.remove_unpublished()
            self._release_file()
            raise

    @property
    def contract(self) -> Contract:
        """What is fixed for the life of this ledger."""
        return self._contract

    @property
    def steps(self) -> int:
        """The number of steps charged so far."""
        return self._steps

    @property
    def is_open(self) -> bool:
        """Whether it takes further charges: not after `close()`, nor after a write that failed."""
        return self._state == "open"

    @property
    def anchor(self) -> Anchor:
        """The last record. Kept elsewhere, it proves later that this ledger has lost no records."""
        return Anchor(self._seq, self._hash)

    def events(self) -> list[tuple[Event, int]]:
        """Return what was charged, in order, as `(event, count)` with equal neighbours merged; a new list."""
        return list(self._events)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What the run took on trust so far, in earlier sessions too."""
        return self._conditions

    def charge(self, event: Event, count: int = 1, *, lease: int = 1) -> None:
        """Charge `count` steps of `event`; return when they are on disk. Draw noise only after that.

        With a `lease` of more steps, that many of this event are put on disk at once, and the following charges of it
        need no disk. `close()`, and a charge of another event, return what was not taken; a crash does not.

        Raises `LedgerError` where the charge could not be made durable: then no noise may be drawn, the charge counts
        in this object (the file may or may not hold it), and the ledger takes no further charge until it is opened
        again. `AccountingError` for an event under another neighbouring relation than those before, and
        `InvalidArgumentError` for one of a kind that is not registered: nothing is charged then.
        """
        count = count_of("count", count, minimum=1)
        if self._state != "open":
            raise LedgerError(f"the ledger is {self._state} and takes no further charge; open it again by its path")
        lease = count_of("lease", lease, minimum=1)
        adjacency_of([event, *(last for last, _ in self._events[-1:])])
        if self._leased >= count and self._events[-1][0] == event:
            if self._file is not None:
                self._file.require_owner()
            self._leased -= count
            _accumulate(self._events, event, count)
            self._steps += count
            return
        written = event_to_json(event)
        self._return_lease()
        # In memory first: whatever happens while writing, ε never says less than the file.
        _accumulate(self._events, event, count)
        self._steps += count
        reserved = max(count, lease) if self._file is not None else count
        self._append("charge", {"event": written, "count": reserved})
        self._leased = reserved - count

    def note(self, about: str, values: Mapping[str, NoteValue]) -> None:
        """Record what a monitor found; return when it is on disk. It is no step, and changes no ε.

        What is noted must not depend on data: it is covered by no ε. What is left of a lease is returned.

        Raises `LedgerError` where it could not be made durable, and for a value that is no number or text.
        """
        if self._state != "open":
            raise LedgerError(f"the ledger is {self._state} and takes no further note; open it again by its path")
        body = {"version": NOTE_VERSION, "about": about, "values": dict(values)}
        found = _conditions([_read_note(body, self._steps)])
        if found:
            self._conditions = joined([*self._conditions, *found])
        self._return_lease()
        self._append("note", body)

    def _return_lease(self) -> None:
        """Give back the steps that were put on disk and not taken."""
        if self._leased:
            unused, self._leased = self._leased, 0
            self._append("returned", {"count": unused})

    def close(self) -> None:
        """Return what is left of a lease, unlock and close the file. What was charged can still be read."""
        try:
            if self._state == "open":
                self._return_lease()
        except LedgerError:
            # What cannot be returned stays charged in the file: more than was taken, never less.
            return
        finally:
            self._release_file()

    def _release_file(self) -> None:
        self._state = "closed"
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> str:
        raise TypeError("a Ledger cannot be pickled or copied: two copies would charge one budget twice; use its path")

    def _append(self, kind: str, body: dict[str, Any]) -> None:
        line, own = encode(kind, self._seq + 1, self._hash, body)
        if self._file is not None:
            self._state = "in doubt after a failed write"
            self._file.append(line)
        self._seq, self._hash, self._state = self._seq + 1, own, "open"

    def _resume(self, data: bytes) -> None:
        view = _view(data)
        changed = [
            f"{field.name} (was {getattr(view.contract, field.name)!r}, now {getattr(self._contract, field.name)!r})"
            for field in fields(Contract)
            if getattr(view.contract, field.name) != getattr(self._contract, field.name)
        ]
        if changed:
            raise ContractChangedError(
                f"the ledger was begun under another contract: {', '.join(changed)}; use the old values, or a new "
                f"ledger for a new run"
            )
        self._events, self._steps, self._run = view.events, view.steps, view.run
        self._conditions = view.conditions
        self._seq, self._hash = view.anchor.seq, view.anchor.hash
        self._append("resumed", {"hushgrad": __version__})


def read_ledger(path: str | os.PathLike[str], anchor: Anchor | None = None) -> LedgerView:
    """Verify the ledger at `path` and return what it says, without locking it.

    With an `anchor` (a `Ledger.anchor` kept elsewhere), also verify that the ledger still contains it.

    Guarantee: a damaged or edited file is refused, naming the first bad record. Raises `LedgerError`.
    """
    return _view(read_bytes(ledger_path(path)), anchor)


def view_when(path: str | os.PathLike[str], anchor: Anchor) -> LedgerView | None:
    """Return what the ledger at `path` said when `anchor` was its last record; None where it never was.

    Raises `LedgerError` for a ledger that is damaged before that record.
    """
    lines = read_bytes(ledger_path(path)).split(b"\n")
    if not 0 <= anchor.seq < len(lines) - 1:
        return None
    view = _view(b"\n".join([*lines[: anchor.seq + 1], b""]))
    return view if view.anchor == anchor else None


def _view(data: bytes, anchor: Anchor | None = None) -> LedgerView:
    events: list[tuple[Event, int]] = []
    notes: list[Note] = []
    contract, run, last, anchored = None, "", Anchor(-1, NO_HASH), anchor is None
    returnable = 0  # a lease can be returned only by the record that follows it, and never whole
    for record in decode(data):
        last = Anchor(record["seq"], record["hash"])
        anchored = anchored or last == anchor
        limit, returnable = returnable, 0
        try:
            if last.seq == 0:
                contract, run = _read_header(record)
            elif record["kind"] == "charge":
                event = event_from_json(record["event"])
                adjacency_of([event, *(earlier for earlier, _ in events[-1:])])
                count = count_of("count", record["count"], minimum=1)
                _accumulate(events, event, count)
                returnable = count - 1
            elif record["kind"] == "returned":
                unused = count_of("count", record["count"], minimum=1)
                if unused > limit:
                    raise LedgerError("it returns steps that the record before it did not reserve")
                event, count = events.pop()
                events.append((event, count - unused))
            elif record["kind"] == "note":
                notes.append(_read_note(record, sum(count for _, count in events)))
            elif record["kind"] != "resumed":
                raise LedgerError("its kind is unknown to this version of hushgrad; a newer one may read it")
        except (HushgradError, KeyError, TypeError) as error:
            raise LedgerError(f"record {last.seq} of the ledger cannot be understood: {error}") from None
    if contract is None:  # decode() refuses a file without records
        raise LedgerError("the ledger has no header")
    if not anchored:
        raise LedgerError(
            "the ledger lacks a record that it once had: it was cut short, or is the ledger of another run"
        )
    return LedgerView(contract, events, sum(count for _, count in events), last, run, notes)


def _read_header(record: dict[str, Any]) -> tuple[Contract, str]:
    if record["kind"] != "header" or type(record["format"]) is not int or not 1 <= record["format"] <= FORMAT:
        raise LedgerError(f"it is not a header of format 1 to {FORMAT}; another version of hushgrad may read it")
    said = record["contract"]
    if _NEW_IN_FORMAT_2 & set(said) != (_NEW_IN_FORMAT_2 if record["format"] == 2 else set()):
        raise LedgerError("its contract has other fields than its format has")
    contract = Contract(**said)
    return (_of_format_1(contract) if record["format"] == 1 else contract), str(record["run"])


_NEW_IN_FORMAT_2 = {"clipping", "unit"}


def _of_format_1(contract: Contract) -> Contract:
    """Return what format 1 left unsaid: its one clip rule was flat, to the norm it names, for one record."""
    if contract.max_grad_norm is None:
        return contract
    return replace(contract, clipping=f"FlatClipping(max_grad_norm={contract.max_grad_norm!r})", unit=ONE_RECORD)


def _read_note(record: Mapping[str, Any], steps: int) -> Note:
    about, values = record["about"], record["values"]
    if type(record["version"]) is not int or record["version"] != NOTE_VERSION:
        raise LedgerError(f"it is not a note of version {NOTE_VERSION}; a newer version of hushgrad may read it")
    if not isinstance(about, str) or not isinstance(values, dict):
        raise LedgerError("a note must be about something and have values")
    for name, value in values.items():
        if type(value) not in (str, int, float) or (isinstance(value, float) and not math.isfinite(value)):
            raise LedgerError(f"the value {name!r} of a note must be text or a finite number")
    return Note(about, steps, values)


def _conditions(notes: Sequence[Note]) -> tuple[Condition, ...]:
    found = (from_note(note.values) for note in notes if note.about == NOTED_AS)
    return joined(condition for condition in found if condition is not None)


def _accumulate(events: list[tuple[Event, int]], event: Event, count: int) -> None:
    if events and events[-1][0] == event:
        events[-1] = (event, events[-1][1] + count)  # in one piece: an interrupt must not find what was charged gone
    else:
        events.append((event, count))
