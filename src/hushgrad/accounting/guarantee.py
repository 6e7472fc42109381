"""A privacy guarantee as a value, and as the statement that belongs beside every ε."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any

from hushgrad.accounting.accountants import ACCOUNTANTS, DEFAULT_ACCOUNTANT, OWN_ACCOUNTANTS
from hushgrad.accounting.bounds import EpsilonBounds
from hushgrad.accounting.composition import Composition, count_steps, finding_of, normal_form, releases_of
from hushgrad.accounting.conditions import (
    DECLARED_SAMPLING,
    FIXED_KEY,
    NOISE_NOT_OBSERVED,
    READ_BY_ITSELF,
    Condition,
    joined,
    third_party,
)
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.events.registry import is_own, order_of
from hushgrad.accounting.ledger.contract import DECLARED, ONE_RECORD, Contract, Rounding, noun_of
from hushgrad.accounting.neighbours import epsilon_of_group
from hushgrad.notebook import headline, paragraphs
from hushgrad.printable import full_name

_DIGITS = 4

ONE_IS_ONE = "one record is one row of the dataset: of a person with several, equal ones too, this holds for each alone"

FILTER = "Rényi filter"
"""Who says the ε of an account under a filter, whichever accountant is asked."""

_FULLY_ADAPTIVE = (
    "fully adaptive composition: what a step runs may follow from what earlier ones released, and epsilon is that of "
    "the whole budget ({:g} at delta = {}, by the Rényi order {}), fixed before the first step, however much is spent"
)

TOLD_OTHERWISE = (DECLARED_SAMPLING, FIXED_KEY)
"""Conditions that a note or a warning already states."""


def round_up(value: float, digits: int = _DIGITS) -> str:
    """Return `value` >= 0 as text with `digits` significant digits, rounded up, never down; "inf" for infinity."""
    if math.isinf(value):
        return "inf"
    exact = Decimal(value)
    if exact == 0:
        return "0"
    rounded = exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), ROUND_CEILING)
    return f"{rounded.normalize():f}" if -5 < exact.adjusted() < 15 else f"{rounded.normalize():e}"


def delta_text(delta: float) -> str:
    """Return δ as short text, never rounded down: an ε at a smaller δ would be another claim."""
    text = f"{delta:g}"
    if float(text) >= delta:
        return text
    exact = Decimal(delta)
    return f"{float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - 5), ROUND_CEILING)):g}"


def as_sentence(note: str) -> str:
    """Return a note or a condition as a sentence of a guarantee."""
    return f"{note[0].upper()}{note[1:]}."


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What is guaranteed, about whom, and under which conditions.

    `epsilon` >= 0 (infinity: nothing is guaranteed) at `delta`; `adjacency`, the neighbouring relation; `sampling`, how
    examples were drawn; `accountant`, who computed it; `steps`, how many were charged; `unit`, whose data is protected;
    `noise_is_secret`, False where the noise came from a fixed key; `noise_is_observed`, False where another library
    drew some of it, which nobody here vouches for; `notes`, further sentences; `numerics`, how ε was computed;
    `numerical_error`, how far ε may lie above the exact value, None where the accountant cannot say;
    `conditions`, what the run took on trust; `delta_of_rounding`, what is to be added to `delta` where noise was drawn
    on a grid, for the distance of its law from rounded Gaussian noise. `str()` is the whole of it as sentences.
    """

    epsilon: float
    delta: float
    adjacency: str
    sampling: str
    accountant: str
    steps: int
    unit: str = ONE_RECORD
    noise_is_secret: bool = True
    noise_is_observed: bool = True
    notes: tuple[str, ...] = ()
    numerics: str = ""
    numerical_error: float | None = None
    conditions: tuple[Condition, ...] = ()
    delta_of_rounding: float = 0.0

    @property
    def private(self) -> bool:
        """Whether anything is guaranteed: ε is finite and the noise cannot be predicted."""
        return math.isfinite(self.epsilon) and self.noise_is_secret

    def __str__(self) -> str:
        """Return the guarantee in sentences, ε rounded up; "NOT PRIVATE" comes first, or "NOT VOUCHED FOR"."""
        return " ".join([*self._warnings(), self._claim(), *self._rests_on()])

    def _repr_html_(self) -> str:
        warnings = "".join(headline(warning, good=False) for warning in self._warnings())
        good = self.private and self.noise_is_observed
        return f"{warnings}{headline(self._claim(), good=good)}{paragraphs(self._rests_on())}"

    def _claim(self) -> str:
        more = f" + {round_up(self.delta_of_rounding, 2)}" if self.delta_of_rounding else ""
        figures = f"({round_up(self.epsilon)}, {delta_text(self.delta)}{more})"
        return (
            f"{figures}-differential privacy (epsilon, delta) for {self.unit} under {self.adjacency} neighbours, after "
            f"{self.steps} step{'' if self.steps == 1 else 's'}."
        )

    def _rests_on(self) -> list[str]:
        sentences = [f"Sampling: {self.sampling}."]
        sentences.append(f"Accountant: {self.accountant}" + (f" ({self.numerics})." if self.numerics else "."))
        told = [*self.notes, *(part.sentence for part in self.conditions if part not in TOLD_OTHERWISE)]
        return sentences + [as_sentence(note) for note in told if note]

    def _warnings(self) -> list[str]:
        warnings = []
        if math.isinf(self.epsilon):
            warnings.append("NOT PRIVATE: epsilon is infinite.")
        if not self.noise_is_secret:
            warnings.append("NOT PRIVATE: the noise key is fixed.")
        if not self.noise_is_observed:
            warnings.append("NOT VOUCHED FOR: the noise of some of these steps was not observed.")
        return warnings

    def as_json(self) -> dict[str, Any]:
        """Return the guarantee as a JSON object. JSON has no infinity: an infinite ε is the string "inf"."""
        return {
            "epsilon": self.epsilon if math.isfinite(self.epsilon) else "inf",
            "delta": self.delta,
            "delta_of_rounding": self.delta_of_rounding,
            "private": self.private,
            "adjacency": self.adjacency,
            "sampling": self.sampling,
            "accountant": self.accountant,
            "steps": self.steps,
            "unit": self.unit,
            "noise_is_secret": self.noise_is_secret,
            "noise_is_observed": self.noise_is_observed,
            "notes": list(self.notes),
            "conditions": [condition.as_note() for condition in self.conditions],
            "numerics": self.numerics,
            "numerical_error": self.numerical_error,
            "sentence": str(self),
        }


def guarantee(
    composition: Composition,
    delta: float,
    accountant: str = DEFAULT_ACCOUNTANT,
    contract: Contract | None = None,
    conditions: Iterable[Condition] = (),
    group_size: int = 1,
) -> Guarantee:
    """Return what `composition` guarantees at `delta`, under the conditions of `contract` and those given besides.

    With a `group_size` k it is for k records at once: all those of a person with at most k (`epsilon_of_group`).

    Guarantee: every condition of the ε is in the result's sentence: neighbouring relation, sampling and whether it was
    observed, declared constants, accountant, noise of 0 or from a fixed key, and all that the run took on trust.

    Without a contract (a plan, not a run) nothing is said about the source of noise. Raises as `epsilon` does.
    """
    bounds = epsilon_of_group(composition, delta, group_size, accountant)
    value = bounds.upper
    form = normal_form(composition)
    notes, trusted = [], list(conditions)
    if form.filter is not None:
        notes.append(_FULLY_ADAPTIVE.format(form.filter.epsilon, delta_text(form.filter.delta), form.filter.order))
    elif accountant not in OWN_ACCOUNTANTS:
        trusted.append(third_party("accountant", accountant))
    charged = {type(event) for event, count in composition if count}
    trusted += [third_party("event", full_name(kind)) for kind in charged if not is_own(kind)]
    if any(event.is_release and not event.is_step for event, count in composition if count):
        trusted.append(READ_BY_ITSELF)
    found = finding_of(composition)
    if found is not None:
        notes.append(f"nothing is established for any of these steps, because it was found after them: {found}")
    elif form.noiseless:
        notes.append("the noise multiplier is 0 in at least one step")
    elif math.isinf(value):
        notes.append("epsilon is too large for the accountant to tell from infinity")
    unit = ONE_RECORD if contract is None else contract.unit
    counted = "" if unit == ONE_RECORD else f" {noun_of(unit)}s"
    if group_size > 1:
        notes.append(
            f"the epsilon is that of {group_size} {noun_of(unit)}s at once, which {group_size} times that of one may "
            f"not reach; for a person it holds if nobody has more than {group_size}"
        )
        unit = f"any {group_size} {noun_of(unit)}s together"
    elif unit == ONE_RECORD:
        notes.append(ONE_IS_ONE)
    if contract is not None:
        notes.append(f"sampling was {contract.sampling}")
        if contract.sampling == DECLARED:
            trusted.append(DECLARED_SAMPLING)
        if not contract.noise_is_secret:
            trusted.append(FIXED_KEY)
        if not contract.noise_is_observed:
            trusted.append(NOISE_NOT_OBSERVED)
        if contract.population is not None:
            notes.append(f"N = {contract.population}{counted} is declared public")
        if contract.strategy is not None:
            notes.append(
                f"the noise of a step is correlated with that of earlier ones by {_in_short(contract.strategy)}"
            )
        if contract.expected_batch_size is not None:
            notes.append(f"the expected batch size {contract.expected_batch_size:g}{counted} is declared public")
        if contract.sparse_rows is not None:
            notes.append(
                f"rows of tables were chosen by noised counts of the {noun_of(contract.unit)}s that touch them, and "
                f"these alone got noise and update ({contract.sparse_rows}): counts and gradients are in one charge, "
                f"and which rows were chosen is released; how many rows were touched shows in memory and running time, "
                f"which is not covered"
            )
        if contract.rounding is not None:
            notes.append(_on_grid(contract.rounding))
    return Guarantee(
        epsilon=value,
        delta=float(delta),
        adjacency=form.adjacency,
        sampling=_sampling(composition, ONE_RECORD if contract is None else contract.unit),
        accountant=accountant if form.filter is None else FILTER,
        steps=count_steps(composition),
        unit=unit,
        noise_is_secret=contract is None or contract.noise_is_secret,
        noise_is_observed=contract is None or contract.noise_is_observed,
        notes=tuple(notes),
        numerics="" if form.noiseless or form.filter else _numerics(accountant, form.is_sampled, bounds),
        numerical_error=bounds.error if _states_error(accountant, bounds) and not form.filter else None,
        conditions=joined(trusted),
        delta_of_rounding=_delta_of_rounding(contract, value, composition),
    )


def _in_short(strategy: str) -> str:
    """Return a strategy without its constants, which the ledger holds."""
    return f"a {strategy.partition(':')[0]} whose constants the ledger holds"


def _on_grid(rounding: Rounding) -> str:
    where = "sums were rounded" if rounding.everywhere else "in some of these steps sums were rounded"
    return (
        f"{where} to a grid of spacing {round_up(rounding.grid, 3)} and got noise on that grid, made for an error of "
        f"the sum of up to {round_up(rounding.error, 3)}: what was released is a function of whole numbers, so that "
        f"its low bits say nothing more; in one step the law of that noise is at most "
        f"{round_up(rounding.distance, 2)} from that of rounded Gaussian noise, which is what delta is larger by"
    )


def _delta_of_rounding(contract: Contract | None, epsilon: float, composition: Composition) -> float:
    """Return (1 + e^ε) · distance of all: for laws so far from those of an (ε, δ) mechanism δ is larger by that."""
    in_steps = 0.0 if contract is None or contract.rounding is None else contract.rounding.distance
    distance = in_steps * count_steps(composition)
    distance += math.fsum(event.distance_of_noise * count for event, count in composition)
    if not distance or math.isinf(epsilon):
        return 0.0
    return min(1.0, (1 + math.exp(min(epsilon, 700.0))) * distance)


def _sampling(composition: Composition, unit: str) -> str:
    """Return how records were drawn; what an event says of a record holds for one of whatever is protected."""
    kinds: dict[type[Event], list[tuple[Event, int]]] = {}
    for event, count in releases_of(composition):
        if count:
            kinds.setdefault(type(event), []).append((event, count))
    said = [kind.sentence(kinds[kind], alone=len(kinds) == 1) for kind in sorted(kinds, key=order_of)]
    return "; ".join(said).replace("every record", f"every {noun_of(unit)}") or "nothing was drawn yet"


def _states_error(accountant: str, bounds: EpsilonBounds) -> bool:
    """Return whether it is known how far ε may lie above the exact value: not where its lower bound is only 0."""
    return ACCOUNTANTS[accountant].states_error and (bounds.lower > 0 or bounds.upper == 0)


def _numerics(accountant: str, sampled: bool, bounds: EpsilonBounds) -> str:
    chosen = ACCOUNTANTS[accountant]
    if not sampled and chosen.exact_without_sampling:
        return "exact formula for Gaussian noise without sampling"
    if not _states_error(accountant, bounds) or bounds.upper == 0:
        return chosen.description
    return f"{chosen.description}: at most {round_up(bounds.error, 1)} above the exact value"
