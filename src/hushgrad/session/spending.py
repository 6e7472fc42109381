"""What a session has spent and may still spend: the ledger, and the limits of the plan."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hushgrad.accounting.budget import MOST, Budget
from hushgrad.accounting.composition import (
    Composition,
    adjacency_of,
    count_steps,
    finding_of,
    next_block,
    next_pass,
    require_established,
    steps_of,
)
from hushgrad.accounting.conditions import (
    NO_LEDGER_PATH,
    NOT_WATCHED,
    NOTED_AS,
    Condition,
    discarded,
    from_note,
    uncounted,
)
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.events.not_established import NotEstablished
from hushgrad.accounting.filter import PrivacyFilter, filter_of
from hushgrad.accounting.guarantee import Guarantee, guarantee
from hushgrad.accounting.ledger.contract import DECLARED, FIXED_KEY, OPERATING_SYSTEM, Contract, Rounding
from hushgrad.accounting.ledger.file import ledger_path
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.accounting.ledger.phases import phase_name, split, up_to_step
from hushgrad.accounting.ledger.receipt import Receipt
from hushgrad.accounting.ledger.records import LedgerHead
from hushgrad.accounting.ledger.view import LedgerView, read_ledger, view_of
from hushgrad.accounting.neighbours import epsilon_of_group
from hushgrad.arguments import whole_number
from hushgrad.errors import (
    BudgetExhaustedError,
    ContractChangedError,
    HushgradError,
    InvalidArgumentError,
    LedgerError,
    ProtocolError,
    UnreachableTargetError,
)
from hushgrad.mechanism import DPSGD, Mechanism
from hushgrad.parallel.messages import told_by_first
from hushgrad.parallel.world import ALONE, World, join_world
from hushgrad.session.blocks import steps_of_block
from hushgrad.session.loop import Turn
from hushgrad.strategies.banded import INDEPENDENT

MOST_PASSES = 10**5


class Spending:
    """The ledger of one session, opened once it is known how batches are drawn.

    Guarantee: a mechanism with a limit of steps or passes spends no more than it plans, also over several sessions
    with one ledger.
    Guarantee: a budget ends training at exactly the last step that fits into it, the same step every time, also after a
    crash and a resume. (Steps of a block cost by its length, and a resume begins another one: then it may come sooner.)

    With a `phase`, the limits of the mechanism are those of that phase; a budget is that of the whole account.

    `rounding` is what the noise says of the model's values for the ledger's contract.

    `lease` steps are put on disk at once (see `Ledger.charge`); a crash over-charges at most lease − 1 of them.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        path: str | os.PathLike[str] | None,
        *,
        noise_is_secret: bool,
        budget: Budget | PrivacyFilter | None = None,
        lease: int = 1,
        phase: str | None = None,
        batches_are_chosen: bool = False,
        world: World = ALONE,
        rounding: Rounding | None = None,
    ) -> None:
        if budget is not None and not isinstance(budget, Budget | PrivacyFilter):
            raise InvalidArgumentError(
                f"must be a Budget, got {type(budget).__name__}",
                where="budget",
                cure="Pass Budget(epsilon, delta), or PrivacyFilter(epsilon, delta) for fully adaptive composition",
            )
        if phase is not None and path is None:
            raise InvalidArgumentError(
                f"{phase_name(phase)!r} is a part of an account, and there is no ledger to hold it",
                where="phase",
                cure="Pass the path of one ledger to all phases: ledger=path",
            )
        self._phase = None if phase is None else phase_name(phase)
        self._mechanism = mechanism
        self._rounding = rounding
        self._now = (-1, mechanism)
        self._batches_are_chosen = batches_are_chosen
        self._world = world
        self.lost_steps = 0
        """How many steps came after the receipt that was looked for last."""
        self.is_kept = path is not None
        """Whether there is a file, which the first process of the world writes."""
        self._path = None if path is None or not world.is_first else ledger_path(path)
        self._told: _Told | None = None
        self._before: bytes | None = None  # what the first process's file holds, in the others
        self._untold: list[Condition] = []  # what the other processes have not been told
        self._budget = budget if isinstance(budget, Budget) else None
        self._filter = budget if isinstance(budget, PrivacyFilter) else None
        self._lease = whole_number("lease", lease, minimum=1)
        self._last_step = mechanism.steps
        self._last_pass = mechanism.passes
        self._noise_source = OPERATING_SYSTEM if noise_is_secret else FIXED_KEY
        self._ledger: Ledger | None = None
        self._blocks = mechanism.sampling.counts_in == "blocks"
        self._first = 0  # the number of the first pass of this session, or of the block in work
        self._next_step = 0  # of the block in work
        self._begins = 0  # how many steps were charged before the phase
        self._trusted: list[Condition] = []  # what the ledger does not hold yet
        require_established(events_at(self._path))
        self.uncounted = 0
        """How many steps the same model took in earlier sessions of this process that this ledger does not hold."""

    def hear(self) -> None:
        """Learn in the other processes what the first one's file holds; all of them call it, once."""
        path = self._path

        def kept() -> str | None:
            exists = not self._world.is_alone and path is not None and os.path.lexists(path)
            return path.read_text(encoding="utf-8") if exists and path is not None else None

        text = told_by_first(self._world, "look at the ledger", kept)
        self._before = text.encode() if text is not None and not self._world.is_first else None

    def _view(self) -> LedgerView | None:
        """Return what is kept of earlier sessions, while the ledger is not open; None where there is nothing."""
        if self._before is not None:
            return view_of(self._before)
        if self._path is None or not os.path.lexists(self._path):
            return None
        return read_ledger(self._path)

    @property
    def is_open(self) -> bool:
        """Whether the ledger was opened, which fixes how batches are drawn."""
        return self._ledger is not None

    def open(self, sampling: str, population: int | None) -> None:
        """Open the ledger, new or continued, unless it is open.

        Raises:
            ProtocolError: a sampling that nobody observes and that cannot be declared (disjoint batches).
            ContractChangedError: the ledger holds steps that are not part of this plan.
            AccountingError: it holds steps under another neighbouring relation.
            LedgerError: the file cannot be opened or trusted.
            NotEstablishedError: it holds a finding.
        """
        if self._ledger is not None:
            return
        scheme = self._mechanism.sampling
        is_independent = self._mechanism.noise.strategy == INDEPENDENT  # else it counts on when records come back
        can_be_declared = scheme.can_be_declared and scheme.counts_in == "steps" and is_independent
        if sampling == DECLARED and not (can_be_declared or self._batches_are_chosen):
            raise ProtocolError(
                f"{type(scheme).__name__} without a loader cannot be charged: nobody sees that it is kept to"
                + (" and where a pass ends" if scheme.counts_in == "passes" else ""),
                cure="Use session.batches",
            )
        first = self._mechanism.at(0).event()
        contract = self._contract(sampling, population)
        rule = None if self._filter is None else self._filter.rule(first)
        ledger: Ledger | None = None
        try:
            ledger = self._opened(contract, rule)
            earlier = [event for event, _ in ledger.events()]
            self._first = next_block(ledger.events()) if self._blocks else next_pass(ledger.events())
            adjacency_of([first, *earlier])  # of different neighbours no total can be told
            self._limit(ledger)
            self._ledger = ledger
        except BaseException:
            if ledger is not None:
                ledger.close()
            raise
        if self.uncounted:
            self.trust([uncounted(self.uncounted)])
        if self._path is not None and not ledger.is_watched:
            self.trust([NOT_WATCHED])

    def _opened(self, contract: Contract, rule: Event | None) -> Ledger:
        """Open the ledger; of several processes the first one opens the file, and the others keep the same account."""
        ledger: Ledger | None = None

        def open_first() -> dict[str, Any]:
            nonlocal ledger
            ledger = Ledger(self._path, contract=contract, phase=self._phase, rule=rule)
            besides = [] if self._path is None or ledger.is_watched else [NOT_WATCHED]
            return {**_Told.of(ledger).as_message(), "besides": [c.as_note() for c in besides]}

        try:
            said = told_by_first(self._world, "opening of the ledger", open_first)
            if ledger is not None:
                return ledger
        except BaseException:
            if ledger is not None:
                ledger.close()
            raise
        self._told = _Told.from_message(said)
        self._trusted += [found for note in said["besides"] if (found := from_note(note)) is not None]
        return Ledger(contract=contract, phase=self._phase, rule=rule, earlier=self._before)

    def _limit(self, ledger: Ledger) -> None:
        """Set how many steps or passes are planned and fit, those that the ledger holds of this plan included."""
        self._begins = ledger.phases[-1].begins
        before, within = split(ledger.events(), self._begins)
        self._require_planned(within)
        if self._mechanism.steps is not None:
            self._last_step = self._begins + self._mechanism.steps
        if self._mechanism.passes is not None:
            self._last_pass = next_pass(before) + self._mechanism.passes
        if ledger.filtering is not None:
            if self._budget is not None:
                raise InvalidArgumentError(
                    "the account is under a filter, which is its budget",
                    where="budget",
                    cure="Leave budget (max_epsilon) out: session.steps_left says how many steps fit",
                )
            fits = ledger.filtering.most(self._mechanism.at(0).event())  # refuses what no filter charges
            if not self._mechanism.is_scheduled:  # else each step is asked for by itself
                planned = math.inf if self._last_step is None else self._last_step
                self._last_step = int(min(planned, ledger.steps + fits))
        elif self._blocks:
            fits_beside = steps_of_block(self._mechanism, self._first, before, within, self._budget)
            if fits_beside is not None:
                self._last_step = ledger.steps + fits_beside
        elif self._budget is not None:
            self._limit_to(self._budget, before, within)

    def _limit_to(self, budget: Budget, before: list[tuple[Event, int]], within: list[tuple[Event, int]]) -> None:
        """Set how many steps or passes fit, those that the phase holds of this plan included.

        What a run before this one left is part of the plan, not of the question, so that the answer stays the same.
        """
        mechanism = self._mechanism
        if mechanism.sampling.counts_in == "passes":
            others = [part for part in within if part[0] != mechanism.event(part[0].data_pass or 0)]
            foreign = [*before, *others]
            indices = {event.data_pass for event, _ in foreign if event.data_pass is not None}
            beyond = max(indices, default=-1) + 1

            def passes(count: int) -> Composition:
                return [*foreign, *((mechanism.event(beyond + i), 1) for i in range(count))]

            self._last_pass = len(indices) + budget.most(passes, mechanism.passes or MOST_PASSES)
            return
        # With a schedule (which limits the steps) the ledger holds nothing else: `_require_planned` has seen to it.
        others = [] if mechanism.is_scheduled else [part for part in within if part[0] != mechanism.event()]
        foreign = [*before, *others]

        def steps(count: int) -> Composition:
            return [*foreign, *mechanism.first(count)]

        self._last_step = count_steps(foreign) + budget.most(steps, mechanism.steps or MOST)

    def _begin_block(self, ledger: Ledger, step: int) -> None:
        """What comes now follows nothing that was charged: another block, which is charged for what it adds."""
        self._first, self._next_step = next_block(ledger.events()), step
        self._limit(ledger)

    def require_pass(self, loader_pass: int) -> None:
        """Refuse a pass over the data beyond those that are planned or fit; `loader_pass` counts this session's."""
        passes = self._last_pass
        if passes is not None and self._first + loader_pass >= passes:
            raise BudgetExhaustedError(
                f"all {passes} passes over the data that {self._reason()} are used up; the model was not updated",
                cure="Stop here, or plan more",
            )

    def require_step(self, step: int) -> None:
        """Refuse a step beyond those that are planned or fit; `step` numbers the logical batches that were drawn."""
        if self._ledger is not None and self._blocks and step != self._next_step:
            self._begin_block(self._ledger, step)
        steps = self._last_step
        if steps is not None and self.steps >= steps:
            raise BudgetExhaustedError(
                f"all {steps} steps that {self._reason()} are used up; the model was not updated",
                cure="Stop here, or plan more",
            )

    def _reason(self) -> str:
        rule = None if self._ledger is None else self._ledger.filtering
        if rule is not None:
            return f"are planned or fit into the filter (epsilon = {rule.rule.epsilon:g}, delta = {rule.rule.delta:g})"
        if self._blocks and self._first:
            return "fit into the plan or the budget, beside the blocks of steps charged before"
        if self._budget is None:
            return "were planned"
        of_group = f" of {self._budget.group_size} records" if self._budget.group_size > 1 else ""
        return f"fit into epsilon = {self._budget.epsilon:g}{of_group} at delta = {self._budget.delta:g}"

    @property
    def steps_left(self) -> int | None:
        """How many more steps are planned and fit into the budget; None where nothing limits them."""
        limits = [] if self._last_step is None else [max(self._last_step - self.steps, 0)]
        allocation = self._mechanism.sampling.allocation
        if allocation is not None and self.passes_left is not None:
            limits.append(self.passes_left * allocation.bins + self._rest_of_pass(allocation.bins))
        return min(limits, default=None)

    @property
    def passes_left(self) -> int | None:
        """How many more passes over the data may be begun; None where nothing limits them."""
        return None if self._last_pass is None else max(self._last_pass - next_pass(self.events()), 0)

    def _rest_of_pass(self, steps: int) -> int:
        """Return how many of the `steps` of a pass are to come of the one that this session is in."""
        last = [] if self._ledger is None else steps_of(self.events())[-1:]
        return sum(steps - n for event, n in last if event.data_pass is not None and event.data_pass >= self._first)

    def current(self) -> Mechanism:
        """Return the mechanism of the next step to be charged (of the last one, where all are)."""
        if not self._mechanism.is_scheduled or self._mechanism.steps is None:
            return self._mechanism
        step = min(self.steps - self._begins, self._mechanism.steps - 1)
        if self._now[0] != step:  # made once: what clips a step and what makes its noise are one value
            self._now = (step, self._mechanism.at(step))
        return self._now[1]

    def charge(self, turn: Turn, notes: Callable[[], None] = lambda: None) -> None:
        """Charge one step; return when the charge is as durable as the ledger.

        Of several processes the first one charges, after it has run `notes`, and all return only then.
        """

        def charge_first() -> dict[str, Any]:
            notes()
            self.write_down()
            self._charge(turn)
            assert self._ledger is not None
            return _Told.of(self._ledger).as_message()

        said = told_by_first(self._world, "charge", charge_first)
        if not self._world.is_first:
            self.write_down()
            self._charge(turn)
            self._told = _Told.from_message(said)

    def release(self, event: Event) -> None:
        """Charge a statistic that is released beside the steps; return when it is on disk.

        Raises:
            ProtocolError: how batches are drawn is not known yet, or a budget is counted in blocks of steps.
            BudgetExhaustedError: it does not fit into the budget; nothing was charged.
        """
        if self._ledger is None:
            raise ProtocolError(
                "there is no ledger yet: it is begun when it is known how batches are drawn",
                cure="Make the session's loader first, or call hushgrad.release with the path of the ledger",
            )
        budget = self._budget
        if budget is not None:
            if self._blocks:
                raise ProtocolError(
                    "a budget whose steps are counted in blocks leaves no room for a release in their middle",
                    cure="Release before training: hushgrad.release(query, data, ledger=path), then a phase of its own",
                )
            after = budget.spent([*self.events(), (event, 1)])
            if after > budget.epsilon:
                raise BudgetExhaustedError(
                    f"the release does not fit into epsilon = {budget.epsilon:g} at delta = {budget.delta:g}; nothing "
                    f"was charged",
                    cure="Ask with more noise",
                )
        self.write_down()
        self._ledger.charge(event)
        if self._budget is not None or self._filter is not None or self._ledger.filtering is not None:
            try:
                self._limit(self._ledger)
            except UnreachableTargetError:
                self._last_step = self.steps  # what was released took the room of all further steps

    def settle(self, call: str, *, is_last: bool = False) -> None:
        """Write down what was taken on trust, and learn in all processes where the ledger stands; all call it.

        Where this `is_last`, what is left of a lease is returned, too.
        """

        def write_first() -> dict[str, Any]:
            self.write_down()
            if is_last:
                self.close()
            assert self._ledger is not None
            return _Told.of(self._ledger).as_message()

        said = told_by_first(self._world, call, write_first)
        if not self._world.is_first:
            self.write_down()
            self._told = _Told.from_message(said)

    def _charge(self, turn: Turn) -> None:
        if self._ledger is None:
            raise ProtocolError(
                "nothing can be charged before it is known how batches are drawn", cure="Open the spending first"
            )
        lease = self._lease
        if self._last_step is not None:
            lease = max(1, min(lease, self._last_step - self.steps))
        lease = self._mechanism.equal_steps(self.steps - self._begins, lease)
        index = self._first + (0 if self._blocks else turn.pass_index)
        self._ledger.charge(self.current().event(index), lease=lease)
        self._next_step = turn.step + 1

    @property
    def steps(self) -> int:
        """The number of steps charged, those of earlier sessions with this ledger included."""
        return count_steps(self.events()) if self._ledger is None else self._ledger.steps

    @property
    def anchor(self) -> LedgerHead | None:
        """The last record of the ledger; None while it is not open."""
        if self._told is not None:
            return self._told.anchor
        return None if self._ledger is None else self._ledger.anchor

    def receipt(self) -> Receipt:
        """Return what the ledger holds now. Raises `ProtocolError` where there is none yet."""
        if self._ledger is not None:
            told = self._told or _Told.of(self._ledger)
            return Receipt(told.run, self._ledger.steps, told.anchor, self.is_kept)
        view = self._view()
        if view is None:
            raise ProtocolError(
                "there is no ledger yet: it is begun when it is known how batches are drawn",
                cure="Ask for it once the session has a loader, or after its first backward",
            )
        return Receipt(view.run, view.steps, view.anchor, True)

    def lost_since(self, receipt: Receipt) -> int:
        """Return how many of the steps that this ledger holds came after `receipt`; they stay charged.

        Of several processes the first one looks, and all get its answer.

        Raises:
            LedgerError: this ledger is another one, or lacks what the receipt says, or none was kept.
            CheckpointError: the receipt speaks of other numbers of steps than the ledger held then.
        """
        self.lost_steps = told_by_first(self._world, "look at a receipt", lambda: self._lost_since(receipt))
        return self.lost_steps

    def _lost_since(self, receipt: Receipt) -> int:
        if self._path is None and self._ledger is not None and self._ledger.run == receipt.run:
            now = self._ledger.steps  # what it holds in memory is what it held then, and more
            receipt.require_steps(range(now if receipt.anchor == self._ledger.anchor else 0, now + 1))
            return now - receipt.steps
        on_disk = receipt.steps_of(self._path)
        return (on_disk if self._ledger is None else self._ledger.steps) - receipt.steps

    def events(self) -> list[tuple[Event, int]]:
        """Return what was charged, in order, as `(event, count)`."""
        # A ledger that is about to be continued has been spent from already.
        if self._ledger is not None:
            return self._ledger.events()
        view = self._view()
        return [] if view is None else view.events

    def epsilon(self, delta: float, accountant: str, group_size: int = 1) -> float:
        """Return ε at `delta` for everything that was charged."""
        return epsilon_of_group(self.events(), delta, group_size, accountant).upper

    def guarantee(
        self, delta: float, accountant: str, trusted: Iterable[Condition] = (), group_size: int = 1
    ) -> Guarantee:
        """Return the guarantee at `delta` for everything that was charged, under `trusted` and what was noted."""
        events, contract, noted = self._charged()
        besides = [] if self.is_kept else [NO_LEDGER_PATH]
        if self._path is not None and self._ledger is not None and not self._ledger.is_watched:
            besides.append(NOT_WATCHED)
        if self.uncounted:
            besides.append(uncounted(self.uncounted))
        conditions = [*noted, *self._trusted, *trusted, *besides]
        return guarantee(events, delta, accountant, contract, conditions, group_size)

    def _charged(self) -> tuple[Composition, Contract, tuple[Condition, ...]]:
        if self._ledger is not None:
            return self._ledger.events(), self._ledger.contract, self._ledger.conditions
        if (earlier := self._view()) is not None:
            return earlier.events, earlier.contract, earlier.conditions
        return [], self._contract(DECLARED, None), ()

    def unknown(self, conditions: Iterable[Condition]) -> list[Condition]:
        """Return those that neither the ledger holds nor is about to, each once."""
        known = [*self._trusted, *(() if self._ledger is None else self._ledger.conditions)]
        return [condition for condition in dict.fromkeys(conditions) if condition not in known]

    @property
    def unit(self) -> str:
        """Whose presence is protected."""
        return self._charged()[1].unit

    @property
    def noise_is_observed(self) -> bool:
        """Whether all steps that the ledger holds had their noise drawn here, and not by another library."""
        return self._charged()[1].noise_is_observed

    def trust(self, conditions: Iterable[Condition]) -> None:
        """Leave in the ledger what the run takes on trust, each condition once.

        In several processes it is told by this object at once, and written with the next charge, at the close or where
        a process fails: so all of them know where the ledger stands.

        Raises `LedgerError` where it could not be made durable.
        """
        self._keep(self.unknown(conditions))
        if self._world.is_alone:
            self.write_down()

    def write_down(self) -> None:
        """Leave in the ledger what was taken on trust so far.

        Raises `LedgerError` where it could not be made durable.
        """
        while self._trusted and self._ledger is not None and self._ledger.is_open:
            self._ledger.note(NOTED_AS, self._trusted.pop(0).as_note())

    def _keep(self, conditions: list[Condition]) -> None:
        self._trusted += conditions
        if not self._world.is_alone:
            self._untold += conditions

    def untold(self, conditions: Iterable[Condition]) -> list[Condition]:
        """Return what the other processes have to be told, with `conditions` as far as the ledger lacks them."""
        return list(dict.fromkeys([*self._untold, *self.unknown(conditions)]))

    def all_were_told(self) -> None:
        """All processes know what this one has taken on trust so far."""
        self._untold = []

    def discard(self) -> None:
        """Take note that a logical batch was drawn and dropped before its release."""
        self._keep([discarded(1)])
        with suppress(LedgerError):  # it is told by this object, also where the disk does not hold it
            self.write_down()

    def not_established(self, error: HushgradError) -> None:
        """Take note that steps charged before may have leaked: `error` says what was found.

        Guarantee: where any step was charged, every ε, guarantee, report and resume of this ledger says from here on
        that nothing is established, in this process also where the disk refuses. Without a step there is no account
        that it could end, and the error is an ordinary refusal.

        Raises `LedgerError` where it could not be made durable.
        """
        if self.steps and finding_of(self.events()) is None:
            if self._ledger is None:
                self._ledger = self._as_it_was()
            self._ledger.end(NotEstablished(code=error.code, place=error.where, what=error.what))

    def _as_it_was(self) -> Ledger:
        """Open the ledger in the phase that it is in: what this session planned does not begin."""
        assert self._path is not None  # without a file nothing is charged before it is open
        last = read_ledger(self._path).phases[-1]
        return Ledger(self._path, contract=last.contract, phase=last.name)

    def require_established(self) -> None:
        """Refuse to go on after a finding. Raises `NotEstablishedError`."""
        if self._ledger is not None:
            self._ledger.require_established()

    def note(self, about: str, finding: Mapping[str, str | int | float] | None) -> None:
        """Leave a finding of a monitor in the ledger, if there is one and the ledger takes it.

        Raises `LedgerError` where it could not be made durable.
        """
        if finding is not None and self._ledger is not None and self._ledger.is_open:
            self._ledger.note(about, finding)

    def close(self) -> None:
        """Unlock the file. What was charged can still be read."""
        if self._ledger is not None:
            self._ledger.close()

    def _contract(self, sampling: str, population: int | None) -> Contract:
        return Contract(
            sampling=sampling,
            noise_source=self._noise_source,
            expected_batch_size=self._mechanism.expected_batch_size,
            max_grad_norm=self._mechanism.sensitivity,
            clipping=self._mechanism.clipping.describe(),
            strategy=_strategy_of(self._mechanism),
            loss_reduction=self._mechanism.loss_reduction,
            population=population,
            unit=self._mechanism.sampling.unit,
            rounding=self._rounding,
            sparse_rows=None if self._mechanism.sparse_rows is None else self._mechanism.sparse_rows.describe(),
        )

    def _require_planned(self, earlier: list[tuple[Event, int]]) -> None:
        """The ε of a plan holds only if all that its phase holds is of that plan; that of others is told beside it."""
        mechanism = self._mechanism
        if mechanism.steps is None and mechanism.passes is None:
            return
        if mechanism.is_scheduled:
            total = sum(count for _, count in earlier)
            if not total or (total <= (mechanism.steps or 0) and list(mechanism.first(total)) == earlier):
                return
            raise ContractChangedError(
                "the ledger holds other steps than the first ones of the mechanism's schedule; together they would "
                "spend more than was planned",
                cure="Continue with the old values, or begin a new ledger for a new run",
            )
        foreign = [event for event, _ in earlier if event != mechanism.event(event.data_pass or event.in_block or 0)]
        if foreign:
            raise ContractChangedError(
                f"the ledger holds {foreign[0]}, the mechanism plans {mechanism.event()}; together they would spend "
                f"more than was planned",
                cure="Continue with the old values, or begin a new ledger for a new run",
            )


@dataclass(frozen=True)
class _Told:
    """Where the ledger of the first process stands, for the others' receipts."""

    run: str
    anchor: LedgerHead

    @classmethod
    def of(cls, ledger: Ledger) -> _Told:
        return cls(ledger.run, ledger.anchor)

    @classmethod
    def from_message(cls, said: Mapping[str, Any]) -> _Told:
        return cls(said["run"], LedgerHead(said["seq"], said["hash"]))

    def as_message(self) -> dict[str, Any]:
        return {"run": self.run, "seq": self.anchor.seq, "hash": self.anchor.hash}


def calibrated(
    plan: DPSGD,
    ledger: str | os.PathLike[str] | None,
    phase: str | None,
    *,
    epsilon: float,
    delta: float,
    accountant: str,
    group_size: int = 1,
) -> DPSGD:
    """Return a plan with the smallest noise that keeps the account of `ledger` to ε, earlier phases included.

    With a `group_size` k, ε is that of k records at once.

    Of several processes all call it, and the first one, which has the ledger, chooses.
    """

    def chosen() -> float:
        before = events_before(ledger, phase)
        target: dict[str, Any] = {"epsilon": epsilon, "delta": delta, "group_size": group_size}
        return plan.calibrate(**target, accountant=accountant, before=before).noise_multiplier

    return plan.with_noise_multiplier(told_by_first(join_world(), "choice of the noise", chosen))


def events_before(path: str | os.PathLike[str] | None, phase: str | None) -> Composition:
    """Return what the ledger at `path` holds of phases before the one that is to be opened; none without a phase.

    Raises `InvalidArgumentError` for an account under a filter: no plan can be made of what may be chosen by results.
    """
    if path is None or phase is None or not os.path.lexists(path):
        return []
    view = read_ledger(path)
    # What the phase itself has released beside its steps came on top of its plan, which stays the same.
    before = up_to_step(view.events, view.phases[-1].begins) if view.phases[-1].name == phase else view.events
    if filter_of(before) is not None:
        raise InvalidArgumentError(
            "the account is under a filter, and its epsilon is that of the filter's budget, whatever noise is chosen",
            where="target_epsilon",
            cure="Call make_private with a noise_multiplier; session.steps_left says how many steps fit",
        )
    return before


def steps_taken(path: str | os.PathLike[str] | None, phase: str | None) -> int:
    """Return how many steps the ledger at `path` holds of the phase that is to be opened; without a phase, of all."""
    if path is None or not os.path.lexists(path):
        return 0
    view = read_ledger(path)
    if phase is None:
        return view.steps
    return view.steps - view.phases[-1].begins if view.phases[-1].name == phase else 0


def _strategy_of(mechanism: Mechanism) -> str | None:
    """Return how noise is correlated between steps, for the contract; None where it is independent."""
    strategy = mechanism.noise.strategy
    return None if strategy == INDEPENDENT else strategy.describe()


def events_at(path: str | os.PathLike[str] | None) -> list[tuple[Event, int]]:
    """Return the verified events of the ledger at `path`; none where there is no path or no file yet."""
    if path is None or not os.path.lexists(path):
        return []
    return read_ledger(path).events
