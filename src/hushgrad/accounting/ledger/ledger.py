"""The ledger: an append-only, hash-chained list of every step that ran. ε is a function of it and of nothing else.

A ledger lives in memory, and also in a file where a path is given. The order of a step is: charge (on disk), then draw
noise, then update. A crash can therefore leave a charge for a step that never happened, and never the reverse.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hushgrad._version import __version__
from hushgrad.accounting.composition import adjacency_of, next_block, require_established
from hushgrad.accounting.conditions import Condition, joined
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.events.not_established import NotEstablished
from hushgrad.accounting.events.registry import event_to_json
from hushgrad.accounting.filter import Filtering, filter_of
from hushgrad.accounting.ledger.contract import Contract
from hushgrad.accounting.ledger.file import LedgerFile, ledger_path
from hushgrad.accounting.ledger.history import History, without_unfinished
from hushgrad.accounting.ledger.phases import Phase, conditions_of_phases, entered, joint_contract, phase_name
from hushgrad.accounting.ledger.records import NO_HASH, LedgerHead, encode
from hushgrad.accounting.ledger.view import (
    FORMAT,
    NOTE_VERSION,
    NoteValue,
    accumulate,
    conditions_of,
    read_note,
    view_of,
)
from hushgrad.arguments import count_of
from hushgrad.errors import AccountingError, ContractChangedError, LedgerError


class Ledger:
    """The ledger of one training run, in one phase or several. Steps can only be added to it.

    Guarantee: `charge` returns after the charge is on disk; nothing lowers what was charged; a second writer, a damaged
    file and a changed contract are refused, as is an older copy where this machine wrote the later records.
    Guarantee: with leases, a crash leaves the file with at most lease − 1 steps more than were taken, never fewer.

    `phase` names the part of the account that the contract is for: the last one, which is continued, or a new one, with
    another contract of the same unit and noise source, which begins with the first charge (see `phases`). `rule`, an
    event with a `filter_rule`, puts a new account under that filter; an account that is continued must have it, or is
    refused.

    `Ledger(contract=...)` is kept in memory; with `earlier`, it goes on from the bytes of a file that another process
    writes. With a `path`, a missing file is created (mode 0600) and an existing one
    is verified and continued. The file is locked until `close()`, also by `with`. Not for use from several processes.

    Guarantee: `with Ledger(path, ...) as ledger, ledger:` leaves the file unlocked wherever an interrupt ends it.
    (Twice, because one may end the first `close` as it begins; then comes the second.)

    Raises `LedgerError` where the file cannot be opened, locked or trusted, and `ContractChangedError` where it was
    begun under another contract.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        contract: Contract,
        phase: str | None = None,
        rule: Event | None = None,
        earlier: bytes | None = None,
    ) -> None:
        name = None if phase is None else phase_name(phase)
        self._phases = [Phase(name, contract, 0)]
        self._unwritten: Phase | None = None if name is None else self._phases[0]
        self._filtering: Filtering | None = None
        self._events: list[tuple[Event, int]] = []
        self._conditions: tuple[Condition, ...] = ()
        self._steps = 0
        self._seq = -1
        self._hash = NO_HASH
        self._state = "open"
        self._leased = 0
        self._least_block = 0  # blocks below were ended, by a resume or by a later one
        self._file: LedgerFile | None = None
        self._history: History | None = None
        self._run = os.urandom(16).hex()
        try:
            if path is not None:
                self._file = LedgerFile.open(ledger_path(path))
            if self._file is not None and not self._file.created:
                earlier = without_unfinished(self._file.read())
            if earlier is not None:
                self._resume(earlier, name, contract, rule)
            else:
                header = {"format": FORMAT, "hushgrad": __version__, "run": self._run, "contract": contract.to_json()}
                if self._file is not None:
                    self._history = History.open(self._run, self._file.final, None)
                self._append("header", header)
                if rule is not None:
                    self._append("charge", {"event": event_to_json(rule), "count": 1})
                    accumulate(self._events, rule, 1)
                if self._file is not None:
                    self._file.publish()
            if (found := filter_of(self._events)) is not None:
                self._filtering = Filtering(found, self._events)
        except BaseException:
            try:
                if self._file is not None:
                    self._file.remove_unpublished()
            finally:
                self._release_file()
            raise

    @property
    def contract(self) -> Contract:
        """What is fixed for the life of this ledger; of several phases, what holds for all of them."""
        return joint_contract(self._phases)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The parts of the account, in order; the last one is in work."""
        return tuple(self._phases)

    @property
    def filtering(self) -> Filtering | None:
        """The filter that decides which steps fit, where the account is under one."""
        return self._filtering

    @property
    def steps(self) -> int:
        """The number of steps charged so far."""
        return self._steps

    @property
    def run(self) -> str:
        """The random name that it got when it was begun."""
        return self._run

    @property
    def is_watched(self) -> bool:
        """Whether this machine keeps how far the file goes, which shows later that one is an older copy."""
        return self._history is not None and self._history.is_kept

    @property
    def is_open(self) -> bool:
        """Whether it takes further charges: not after `close()`, nor after a write that failed."""
        return self._state == "open"

    @property
    def anchor(self) -> LedgerHead:
        """The last record. Kept elsewhere, it proves later that this ledger has lost no records."""
        return LedgerHead(self._seq, self._hash)

    def events(self) -> list[tuple[Event, int]]:
        """Return what was charged, in order, as `(event, count)` with equal neighbours merged; a new list."""
        return list(self._events)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What the run took on trust so far, in earlier sessions and phases too."""
        rule = None if self._filtering is None else self._filtering.rule
        return joined([*self._conditions, *conditions_of_phases(self._phases, self._steps, rule)])

    def charge(self, event: Event, count: int = 1, *, lease: int = 1) -> None:
        """Charge `count` steps or releases of `event`; return when they are on disk. Draw noise only after that.

        With a `lease` of more steps, that many of this event are put on disk at once, and the following charges of it
        need no disk. `close()`, and a charge of another event, return what was not taken; a crash does not.

        Raises `LedgerError` where the charge could not be made durable: then no noise may be drawn, the charge counts
        in this object (the file may or may not hold it), and the ledger takes no further charge until it is opened
        again. `NotEstablishedError` after a finding. `AccountingError` for an event under another neighbouring relation
        than those before, or of a block that has ended, `BudgetExhaustedError` for one that the account's filter does
        not admit, and `InvalidArgumentError` for one of a kind that is not registered: nothing is charged then.
        """
        count = count_of("count", count, minimum=1)
        if self._state != "open":
            raise self._takes_no_more("charge")
        self.require_established()
        lease = count_of("lease", lease, minimum=1)
        adjacency_of([event, *(last for last, _ in self._events[-1:])])
        self._require_block(event)
        if self._leased >= count and self._events[-1][0] == event:
            if self._file is not None:
                self._file.require_owner()
            if self._filtering is not None:
                self._filtering.admit(event, count, count)
            self._leased -= count
            accumulate(self._events, event, count)
            self._steps += count if event.is_step else 0
            return
        written = event_to_json(event)
        if not event.is_release:
            raise LedgerError("what released nothing cannot be charged", where="the ledger", cure="Charge what ran")
        self._return_lease()
        if self._filtering is not None:
            lease = self._filtering.admit(event, count, lease)
        self._write_phase()
        # In memory first: whatever happens while writing, ε never says less than the file.
        accumulate(self._events, event, count)
        self._steps += count if event.is_step else 0
        reserved = max(count, lease) if self._file is not None else count
        self._append("charge", {"event": written, "count": reserved})
        self._leased = reserved - count

    def _require_block(self, event: Event) -> None:
        """Refuse a step of a block that has ended: groups and noise of what came since are others."""
        if event.in_block is None:
            return
        if event.in_block < self._least_block:
            raise AccountingError(
                f"a step of block {event.in_block} is charged after that block has ended: of a resumed run the groups "
                f"and the noise are others, and what they add would not be counted",
                where="the ledger",
                cure="Number blocks on: the next one is next_block(ledger.events())",
            )
        self._least_block = event.in_block

    def require_established(self) -> None:
        """Refuse to go on after a finding. Raises `NotEstablishedError`."""
        if self._events and self._events[-1][0].finding is not None:  # nothing is charged after it
            require_established(self._events)

    def end(self, finding: NotEstablished) -> None:
        """End the account: nothing it holds is established, and it takes no further charge. Return when on disk.

        Guarantee: from here on every ε of this ledger is infinite, in this object also where the disk refuses.

        Raises `LedgerError` where it could not be made durable: the file then says less than is known.
        """
        self._events.append((finding, 1))  # in memory first, as a charge
        try:
            if self._state != "open":
                raise self._takes_no_more("finding")
            self._return_lease()
            self._append("charge", {"event": event_to_json(finding), "count": 1})
        except LedgerError as error:
            raise LedgerError(
                f"it could not be made to hold what was found ({finding.finding}), so its file states an epsilon that "
                f"does not hold: {error.what}",
                where="the ledger",
                cure="Do not continue or quote that file, and release nothing that was trained with it",
            ) from error

    def note(self, about: str, values: Mapping[str, NoteValue]) -> None:
        """Record what a monitor found; return when it is on disk. It is no step, and changes no ε.

        What is noted must not depend on data: it is covered by no ε. What is left of a lease is returned.

        Raises `LedgerError` where it could not be made durable, and for a value that is no number or text.
        """
        if self._state != "open":
            raise self._takes_no_more("note")
        body = {"version": NOTE_VERSION, "about": about, "values": dict(values)}
        found = conditions_of([read_note(body, self._steps)])
        if found:
            self._conditions = joined([*self._conditions, *found])
        self._return_lease()
        self._append("note", body)

    def _takes_no_more(self, what: str) -> LedgerError:
        return LedgerError(
            f"it is {self._state}, and takes no further {what}", where="the ledger", cure="Open it again by its path"
        )

    def _return_lease(self) -> None:
        """Give back the steps that were put on disk and not taken."""
        if self._leased:
            unused, self._leased = self._leased, 0
            self._append("returned", {"count": unused})

    def _write_phase(self) -> None:
        """Begin the phase in work, unless it has: a phase in which nothing is charged leaves nothing behind."""
        if self._unwritten is not None:
            phase = self._unwritten
            self._append("phase", {"name": phase.name, "contract": phase.contract.to_json()})
            self._unwritten = None

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
        try:
            if self._history is not None:
                self._history.close()
        finally:
            if self._file is not None:
                self._file.close()

    if TYPE_CHECKING:

        def __enter__(self) -> Ledger: ...
    else:
        # Returns the ledger, by code that no handler of a signal comes between: whoever has made it is in the block.
        __enter__ = property(weakref.ref)

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
        if self._history is not None:
            self._history.keep(self.anchor)

    def _resume(self, data: bytes, name: str | None, contract: Contract, rule: Event | None) -> None:
        view = view_of(data)
        phases = entered(view.phases, name, contract, view.steps)
        _require_same_filter(view.events, rule)
        require_established(view.events)
        self._events, self._steps, self._run = view.events, view.steps, view.run
        self._conditions = joined(conditions_of(view.notes))
        self._least_block = next_block(view.events)
        self._phases = phases
        self._unwritten = None if name == view.phases[-1].name else phases[-1]
        self._seq, self._hash = view.anchor.seq, view.anchor.hash
        if self._file is not None:
            self._history = History.open(self._run, self._file.path, data)
            self._file.cut_to(len(data))
        self._append("resumed", {"hushgrad": __version__})


def _require_same_filter(events: list[tuple[Event, int]], rule: Event | None) -> None:
    """Refuse a filter that an account was not begun with: what was released before it was fixed is not covered."""
    had, asked = filter_of(events), None if rule is None else rule.filter_rule
    if asked is not None and (had is None or (had.epsilon, had.delta) != (asked.epsilon, asked.delta)):
        raise ContractChangedError(
            "it was begun without a filter"
            if had is None
            else f"its filter has epsilon = {had.epsilon:g} at delta = {had.delta:g}, and another one is asked for",
            where="the ledger",
            cure="Fix the budget of a filter before the first step of its account: begin a new ledger for it"
            if had is None
            else "Leave the filter out in later phases: that of the account goes on",
        )
