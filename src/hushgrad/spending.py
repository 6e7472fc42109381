"""What a session has spent and may still spend: the ledger, and the limits of the plan."""

from __future__ import annotations

import os

from hushgrad.accounting.accountants import epsilon as epsilon_of
from hushgrad.accounting.composition import adjacency_of
from hushgrad.accounting.events import DisjointPass, Event
from hushgrad.accounting.guarantee import Guarantee, guarantee
from hushgrad.accounting.ledger import DECLARED, FIXED_KEY, OPERATING_SYSTEM, Contract, Ledger, read_ledger
from hushgrad.errors import BudgetExhaustedError, ContractChangedError, ProtocolError
from hushgrad.mechanism import DPSGD
from hushgrad.sampling.specs import DisjointBatches


class Spending:
    """The ledger of one session, opened once it is known how batches are drawn.

    Guarantee: a mechanism with a limit of steps or passes spends no more than it plans, also over several sessions
    with one ledger.
    """

    def __init__(self, mechanism: DPSGD, path: str | os.PathLike[str] | None, *, noise_is_secret: bool) -> None:
        self._mechanism = mechanism
        self._path = path
        self._noise_source = OPERATING_SYSTEM if noise_is_secret else FIXED_KEY
        self._ledger: Ledger | None = None
        self._first_pass = 0

    @property
    def is_open(self) -> bool:
        """Whether the ledger was opened, which fixes how batches are drawn."""
        return self._ledger is not None

    def open(self, sampling: str, population: int | None) -> None:
        """Open the ledger, new or continued, unless it is open.

        Raises:
            ProtocolError: disjoint batches that nobody observes.
            ContractChangedError: the ledger holds steps that are not part of this plan.
            AccountingError: it holds steps under another neighbouring relation.
            LedgerError: the file cannot be opened or trusted.
        """
        if self._ledger is not None:
            return
        if sampling == DECLARED and isinstance(self._mechanism.sampling, DisjointBatches):
            raise ProtocolError(
                "DisjointBatches without a loader cannot be charged: nobody sees where a pass ends. Use session.batches"
            )
        ledger = Ledger(self._path, contract=self._contract(sampling, population))
        earlier = [event for event, _ in ledger.events()]
        try:
            adjacency_of([self._mechanism.event(), *earlier])  # of different neighbours no total can be told
            self._require_planned(earlier)
        except BaseException:
            ledger.close()
            raise
        passes = [event.pass_index for event in earlier if isinstance(event, DisjointPass)]
        self._first_pass = max(passes, default=-1) + 1
        self._ledger = ledger

    def require_pass(self, loader_pass: int) -> None:
        """Refuse a pass over the data beyond the planned ones; `loader_pass` counts this session's from 0."""
        passes = self._mechanism.passes
        if passes is not None and self._first_pass + loader_pass >= passes:
            raise BudgetExhaustedError(
                f"all {passes} planned passes over the data are spent; the model was not updated"
            )

    def require_step(self) -> None:
        """Refuse a step beyond the planned ones."""
        steps = self._mechanism.steps
        if steps is not None and self.steps >= steps:
            raise BudgetExhaustedError(
                f"all {steps} planned steps are spent; the model was not updated. Stop here, or plan more steps"
            )

    def charge(self, loader_pass: int = 0) -> None:
        """Charge one step; return when the charge is as durable as the ledger."""
        if self._ledger is None:
            raise ProtocolError("nothing can be charged before it is known how batches are drawn")
        self._ledger.charge(self._mechanism.event(self._first_pass + loader_pass))

    @property
    def steps(self) -> int:
        """The number of steps charged, those of earlier sessions with this ledger included."""
        return sum(count for _, count in self.events())

    def events(self) -> list[tuple[Event, int]]:
        """Return what was charged, in order, as `(event, count)`."""
        # A ledger that is about to be continued has been spent from already.
        return events_at(self._path) if self._ledger is None else self._ledger.events()

    def epsilon(self, delta: float, accountant: str) -> float:
        """Return ε at `delta` for everything that was charged."""
        return epsilon_of(self.events(), delta, accountant)

    def guarantee(self, delta: float, accountant: str) -> Guarantee:
        """Return the guarantee at `delta` for everything that was charged."""
        if self._ledger is not None:
            return guarantee(self._ledger.events(), delta, accountant, self._ledger.contract)
        if self._path is not None and os.path.lexists(self._path):
            earlier = read_ledger(self._path)
            return guarantee(earlier.events, delta, accountant, earlier.contract)
        return guarantee([], delta, accountant, self._contract(DECLARED, None))

    def close(self) -> None:
        """Unlock the file. What was charged can still be read."""
        if self._ledger is not None:
            self._ledger.close()

    def _contract(self, sampling: str, population: int | None) -> Contract:
        return Contract(
            sampling=sampling,
            noise_source=self._noise_source,
            expected_batch_size=self._mechanism.expected_batch_size,
            max_grad_norm=self._mechanism.clipping.max_grad_norm,
            loss_reduction=self._mechanism.loss_reduction,
            population=population,
        )

    def _require_planned(self, earlier: list[Event]) -> None:
        """The ε of a plan holds only if all that its ledger holds is of that plan."""
        if self._mechanism.steps is None and self._mechanism.passes is None:
            return
        foreign = [
            event
            for event in earlier
            if event != self._mechanism.event(event.pass_index if isinstance(event, DisjointPass) else 0)
        ]
        if foreign:
            raise ContractChangedError(
                f"the ledger holds {foreign[0]}, the mechanism plans {self._mechanism.event()}; together they would "
                f"spend more than was planned. Continue with the old values, or begin a new ledger for a new run"
            )


def events_at(path: str | os.PathLike[str] | None) -> list[tuple[Event, int]]:
    """Return the verified events of the ledger at `path`; none where there is no path or no file yet."""
    if path is None or not os.path.lexists(path):
        return []
    return read_ledger(path).events
