"""The ledger: an append-only, hash-chained list of every step that ran. ε is a function of it and of nothing else.

A ledger lives in memory, and also in a file where a path is given. The order of a step is: charge (on disk), then draw
noise, then update. A crash can therefore leave a charge for a step that never happened, and never the reverse.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from hushgrad._version import __version__
from hushgrad.accounting.composition import adjacency_of, require_established
from hushgrad.accounting.conditions import Condition, joined
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.events.not_established import NotEstablished
from hushgrad.accounting.events.registry import event_to_json
from hushgrad.accounting.ledger.contract import Contract
from hushgrad.accounting.ledger.file import LedgerFile, ledger_path
from hushgrad.accounting.ledger.history import History
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
from hushgrad.errors import ContractChangedError, LedgerError


class Ledger:
    """The ledger of one training run. Steps can only be added to it.

    Guarantee: `charge` returns after the charge is on disk; nothing lowers what was charged; a second writer, a damaged
    file and a changed contract are refused, as is an older copy where this machine wrote the later records.
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
        self._history: History | None = None
        try:
            if self._file is not None and not self._file.created:
                self._resume(self._file.read())
            else:
                header = {"format": FORMAT, "hushgrad": __version__, "run": self._run, "contract": asdict(contract)}
                if self._file is not None:
                    self._history = History.open(self._run, self._file.final, None)
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
        """What the run took on trust so far, in earlier sessions too."""
        return self._conditions

    def charge(self, event: Event, count: int = 1, *, lease: int = 1) -> None:
        """Charge `count` steps of `event`; return when they are on disk. Draw noise only after that.

        With a `lease` of more steps, that many of this event are put on disk at once, and the following charges of it
        need no disk. `close()`, and a charge of another event, return what was not taken; a crash does not.

        Raises `LedgerError` where the charge could not be made durable: then no noise may be drawn, the charge counts
        in this object (the file may or may not hold it), and the ledger takes no further charge until it is opened
        again. `NotEstablishedError` after a finding. `AccountingError` for an event under another neighbouring relation
        than those before, and
        `InvalidArgumentError` for one of a kind that is not registered: nothing is charged then.
        """
        count = count_of("count", count, minimum=1)
        if self._state != "open":
            raise self._takes_no_more("charge")
        self.require_established()
        lease = count_of("lease", lease, minimum=1)
        adjacency_of([event, *(last for last, _ in self._events[-1:])])
        if self._leased >= count and self._events[-1][0] == event:
            if self._file is not None:
                self._file.require_owner()
            self._leased -= count
            accumulate(self._events, event, count)
            self._steps += count
            return
        written = event_to_json(event)
        self._return_lease()
        # In memory first: whatever happens while writing, ε never says less than the file.
        accumulate(self._events, event, count)
        self._steps += count
        reserved = max(count, lease) if self._file is not None else count
        self._append("charge", {"event": written, "count": reserved})
        self._leased = reserved - count

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
        if self._history is not None:
            self._history.close()
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
        if self._history is not None:
            self._history.keep(self.anchor)

    def _resume(self, data: bytes) -> None:
        view = view_of(data)
        changed = [
            f"{field.name} (was {getattr(view.contract, field.name)!r}, now {getattr(self._contract, field.name)!r})"
            for field in fields(Contract)
            if getattr(view.contract, field.name) != getattr(self._contract, field.name)
        ]
        if changed:
            raise ContractChangedError(
                f"it was begun under another contract: {', '.join(changed)}",
                where="the ledger",
                cure="Use the old values, or a new ledger for a new run",
            )
        require_established(view.events)
        self._events, self._steps, self._run = view.events, view.steps, view.run
        self._conditions = view.conditions
        self._seq, self._hash = view.anchor.seq, view.anchor.hash
        assert self._file is not None
        self._history = History.open(self._run, self._file.path, data)
        self._append("resumed", {"hushgrad": __version__})
