"""Whether the files of a run say the same, and which of them says what.

What may differ, because a run that is killed, goes on or is continued leaves it so:

- the ledger may be ahead of the summary, as long as it holds the record that the summary knows by its hash. A summary
  without a hash is of an older version; then the ledger may be ahead while the summary says that the run goes on;
- the metrics may be ahead of such a summary, and never of the ledger;
- the model may be behind the summary, after which it is written.

Everything else is a contradiction: a ledger that lacks the record or holds fewer steps, and any figure (ε, δ, steps, σ,
C, B, N, q, accuracy, parameters) that two files have differently.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from hushgrad._version import __version__
from hushgrad.accounting.composition import Composition
from hushgrad.accounting.conditions import CLOSED, DISCARDED, NEVER_EXAMINED, ORDER_OF_ROWS, UNCOUNTED
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.guarantee import Guarantee, delta_text, guarantee
from hushgrad.accounting.ledger.ledger import OBSERVED, Contract, LedgerView
from hushgrad.study.report.document import plain, up
from hushgrad.study.report.run_files import LEDGER, METRICS, MODEL, SUMMARY, RunFiles, anchor_in, first
from hushgrad.study.report.values import same, stated_epsilon

_CLAIM = re.compile(
    r"\((?P<epsilon>[^\s,()]+), (?P<delta>[^\s,()]+)\)-differential privacy.*?after (?P<steps>\d+) step"
)
_FIGURES = re.compile(r"\([^\s,()]+, [^\s,()]+\)(?=-differential privacy)|(?<=at most )\S+(?= above the exact value)")
_ROUNDING = 2e-3
"""Relative: statements round ε up to four digits."""

ONLY_IN_A_SESSION = (NEVER_EXAMINED.name, ORDER_OF_ROWS.name, CLOSED.name, DISCARDED, UNCOUNTED)
"""Conditions that a session may state before its ledger holds them, or without that."""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that files of a run say, what each of them says, and whether that can be."""

    what: str
    held: bool
    said: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        return {"what": self.what, "about": self.about, "held": self.held, "said": dict(self.said)}

    @property
    def about(self) -> str:
        """What it is about, without the names of the files."""
        return self.what.partition(" in ")[0]


@dataclass(frozen=True, slots=True)
class Claim:
    """What a statement in words claims: (ε, δ) after so many steps, ε rounded up."""

    epsilon: float
    delta: float
    steps: int

    @classmethod
    def of(cls, statement: Any) -> Claim | None:
        """Return the claim of a statement; None where it makes none."""
        found = _CLAIM.search(statement) if isinstance(statement, str) else None
        try:
            return None if found is None else cls(float(found["epsilon"]), float(found["delta"]), int(found["steps"]))
        except ValueError:
            return None

    def is_of(self, held: Guarantee) -> bool:
        """Is this what the statement of `held` claims, to the digits of a statement?"""
        return (
            (self.epsilon == held.epsilon or math.isclose(self.epsilon, held.epsilon, rel_tol=_ROUNDING, abs_tol=1e-9))
            and math.isclose(self.delta, held.delta, rel_tol=1e-5)
            and self.steps == held.steps
        )


def beyond(stated: Any, statement: str) -> str | None:
    """Return what a statement says after the words of another one; None where it does not begin with them.

    Figures are left out: their last digits may differ between machines.
    """
    words = [_FIGURES.sub("…", text) for text in (str(stated), statement)]
    return words[0].removeprefix(words[1]).strip() if words[0].startswith(words[1]) else None


def held_by(composition: Composition, delta: float, contract: Contract) -> Guarantee:
    """Return what a part of a ledger guarantees; asked for the same again, it is not computed again."""
    return _held_by(tuple(composition), delta, contract)


@lru_cache(maxsize=64)
def _held_by(events: tuple[tuple[Event, int], ...], delta: float, contract: Contract) -> Guarantee:
    return guarantee(list(events), delta, contract=contract)


def contradictions(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a sentence for each row of a report's facts that does not hold: what it is about, and who says what."""
    return tuple(
        f"{row['about']}: " + "; ".join(f"{file} says {value}" for file, value in row["said"].items())
        if row["said"]
        else f"{row['what']}: they do not"
        for row in facts["agreement"]
        if not row["held"]
    )


def agreement(files: RunFiles, delta: float) -> list[Row]:
    """Return, for each thing that more than one file says, whether they agree on it."""
    if files.ledger is None:
        return [*_without_a_ledger(files), *_metrics(files), *_model(files)]
    return [
        *_end_of_the_ledger(files, files.ledger),
        *_summary(files, files.ledger, delta),
        *_metrics(files),
        *_spent_in_metrics(files, files.ledger, delta),
        *_model(files),
    ]


def largest_epsilon(files: RunFiles, delta: float) -> float:
    """Return the largest ε that any file of a run says; infinity where one is missing or says no number."""
    found = [stated_epsilon(row["epsilon"]) for row in files.measurements if row["epsilon"] is not None]
    if files.summary is not None:
        found.append(stated_epsilon(files.said("epsilon")))
    ledger = files.ledger
    found.append(math.inf if ledger is None else held_by(ledger.events, delta, ledger.contract).epsilon)
    largest = max(found)
    words = [files.said("guarantee"), files.model.words.get("guarantee") if files.model else None]
    claims = [claim.epsilon for claim in map(Claim.of, words) if claim is not None]
    return max([largest, *(claim for claim in claims if claim > largest * (1 + _ROUNDING))])


def notices(files: RunFiles) -> list[str]:
    """Return what a reader should know of files that agree: which of them are ahead of others."""
    found = []
    steps = files.said("steps")
    if files.ledger is not None and isinstance(steps, int) and files.steps(files.ledger) > steps:
        more = files.steps(files.ledger) - steps
        because = "it was continued" if files.has_ended else "the run goes on, was killed, or was continued"
        found.append(
            f"{LEDGER} holds {more} step{'' if more == 1 else 's'} more than the {steps} that {SUMMARY} describes: "
            f"{because}. Every figure of privacy here is of all of them"
        )
    elif files.summary is not None and not files.has_ended:
        found.append(f"{SUMMARY} says that the run goes on; if it does not, it was killed after step {plain(steps)}")
    model_steps = _model_steps(files)
    if model_steps is not None and isinstance(steps, int) and model_steps < steps:
        found.append(f"{MODEL} is of step {model_steps}, older than the {steps} steps that {SUMMARY} describes")
    if files.model is None and files.has_ended and not files.is_of_an_own_function:
        found.append(f"{MODEL} is missing, though {SUMMARY} says that the run has ended: it was removed or moved")
    if files.is_torn:
        found.append(f"the last line of {METRICS} was cut off while it was written; what stands before it is whole")
    return found


def _end_of_the_ledger(files: RunFiles, ledger: LedgerView) -> Iterator[Row]:
    anchor = anchor_in(files.summary)
    if anchor is not None:
        short = anchor.seq > ledger.anchor.seq
        there = f"record {ledger.anchor.seq} is the last" if short else f"record {anchor.seq} has another"
        yield Row(
            "the end of the ledger in summary.json and in the ledger",
            files.known is not None,
            {
                SUMMARY: f"record {anchor.seq} has the hash {anchor.hash[:12]}…",
                LEDGER: "so, too" if files.known is not None else f"{there}: it was cut short, or is another run's",
            },
        )


def _summary(files: RunFiles, ledger: LedgerView, delta: float) -> Iterator[Row]:
    if files.summary is None:
        return
    contract, steps = ledger.contract, files.said("steps")
    described = files.described()
    held = held_by(described, delta, contract)
    charged = sum(count for _, count in described) - files.prepared if files.known else files.steps(ledger)
    ahead = files.known is None and anchor_in(files.summary) is None and not files.has_ended
    yield _compared(
        "steps in summary.json and in the ledger",
        steps,
        charged,
        held=same(steps, charged) or (ahead and isinstance(steps, int) and steps <= charged),
    )
    yield _compared("ε in summary.json and from its ledger", files.said("epsilon"), held.epsilon)
    yield _statement(files, held)
    yield from _terms(files, held)
    yield from _trusted(files)
    noises = [n for n in map(files.said, ("noise_multiplier", "vocabulary_noise_multiplier")) if n is not None]
    noises = sorted(set(noises)) if all(isinstance(n, int | float) for n in noises) else noises
    yield _compared("σ in summary.json and in the ledger", noises, sorted({e.noise_multiplier for e, _ in described}))
    rates = {event.poisson_rate for event, _ in described if event.poisson_rate is not None}
    declared = [
        ("C", "max_grad_norm", contract.max_grad_norm),
        ("B", "expected_batch_size", contract.expected_batch_size),
        ("q", "sampling_rate", rates.pop() if len(rates) == 1 else None),
        ("the loss reduction", "loss_reduction", contract.loss_reduction),
        ("N", "training_examples", contract.population if contract.sampling == OBSERVED else None),
    ]
    for what, key, value in declared:
        if value is not None and files.said(key) is not None:
            yield _compared(f"{what} in summary.json and in the ledger", files.said(key), value)


def _statement(files: RunFiles, held: Guarantee) -> Row:
    """Compare the statement in words. What the run knew beyond its ledger (its conditions) comes after it."""
    stated, claim = files.said("guarantee"), Claim.of(files.said("guarantee"))
    alike = _is_of_this_version(files)
    # The words of another version may differ; what they claim may not.
    fits = claim is not None and claim.is_of(held) and (not alike or beyond(stated, str(held)) is not None)
    said = f"({up(claim.epsilon)}, {delta_text(claim.delta)}) after {claim.steps} steps" if claim else "no (ε, δ)"
    given = f"({up(held.epsilon)}, {delta_text(held.delta)}) after {held.steps} steps"
    if not fits and said == given:
        said = "the same figures in other words"
    return Row("the statement in summary.json and from the ledger", fits, {SUMMARY: said, LEDGER: given})


def _terms(files: RunFiles, held: Guarantee) -> Iterator[Row]:
    """Compare what a summary says of the guarantee, each by itself. How sampling is put may differ between versions."""
    terms = [
        ("whether it is private", "private", held.private),
        ("the neighbouring relation", "adjacency", held.adjacency),
        ("the accountant", "accountant", held.accountant),
    ]
    if _is_of_this_version(files):
        terms.append(("the sampling", "sampling", held.sampling))
    for what, key, value in terms:
        if files.said(key) is not None or _is_of_this_version(files):
            yield _compared(f"{what} in summary.json and from the ledger", files.said(key), value)


def _trusted(files: RunFiles) -> Iterator[Row]:
    """Compare the names of what was taken on trust with the ledger's, as it was when the summary was written.

    A session knows some that are in no ledger until it is closed. It says those in its statement, too.
    """
    stated = files.said("taken_on_trust")
    if files.known is None or (stated is None and not _is_of_this_version(files)):
        return
    noted = guarantee([], 0.5, contract=files.known.contract, conditions=files.known.conditions).conditions
    names = sorted({condition.name for condition in noted})
    told = sorted(set(map(str, stated))) if isinstance(stated, list) else None
    fits = told is not None and set(names) <= set(told) <= {*names, *ONLY_IN_A_SESSION}
    yield Row(
        "what was taken on trust in summary.json and in the ledger",
        fits,
        {SUMMARY: "nothing" if not told else ", ".join(told), LEDGER: ", ".join(names) or "nothing"},
    )


def _is_of_this_version(files: RunFiles) -> bool:
    versions = files.said("versions")
    return isinstance(versions, dict) and versions.get("hushgrad") == __version__ and files.said("ledger") is not None


def _without_a_ledger(files: RunFiles) -> Iterator[Row]:
    """A run that says an ε must have a ledger; an ordinary run has none."""
    stated, noise = files.said("epsilon"), files.said("noise_multiplier")
    measured = any(row["epsilon"] is not None for row in files.measurements)
    claims = files.said("private") is True or noise is not None or (stated is not None and not same(stated, math.inf))
    yield Row(
        "the ledger of a run that states an ε",
        not (claims or measured),
        {
            SUMMARY: "nothing" if stated is None else f"ε = {_shown(stated)}",
            **({METRICS: "ε after steps"} if measured else {}),
            LEDGER: "nothing: it is missing",
        },
    )


def _metrics(files: RunFiles) -> Iterator[Row]:
    """Compare the lines of the metrics with one another and with the summary."""
    rows = files.measurements
    if not rows:
        if files.said("test_accuracy") is not None and not files.is_of_an_own_function:
            yield Row(
                "the measurements of a run that states an accuracy",
                False,
                {SUMMARY: f"test accuracy {_shown(files.said('test_accuracy'))}", METRICS: "nothing"},
            )
        return
    ordered = all(
        earlier["step"] < later["step"] and _grows(earlier["epsilon"], later["epsilon"])
        for earlier, later in pairwise(rows)
    )
    yield Row("the lines of metrics.jsonl follow one another", ordered, {})
    if files.summary is None:
        return
    steps, last = files.said("steps"), rows[-1]["step"]
    if steps is None:
        return
    ahead = not files.has_ended and isinstance(steps, int) and steps <= last
    yield Row(
        "steps in summary.json and in metrics.jsonl",
        same(steps, last) or ahead,
        {SUMMARY: plain(steps), METRICS: plain(last)},
    )
    measured = files.measured_accuracy()
    yield Row(
        "test accuracy in summary.json and in metrics.jsonl",
        same(files.said("test_accuracy"), measured),
        {SUMMARY: _shown(files.said("test_accuracy")), METRICS: _shown(measured)},
    )


def _grows(earlier: Any, later: Any) -> bool:
    if earlier is None or later is None:
        return earlier is None and later is None
    return stated_epsilon(earlier) <= stated_epsilon(later) or same(earlier, later)


def _spent_in_metrics(files: RunFiles, ledger: LedgerView, delta: float) -> Iterator[Row]:
    """Compare the last ε that was measured with what the ledger gives for the same steps."""
    if not files.measurements or files.measurements[-1]["epsilon"] is None:
        return
    last, charged = files.measurements[-1], files.steps(ledger)
    yield Row(
        "steps in metrics.jsonl and in the ledger",
        last["step"] <= charged,
        {METRICS: plain(last["step"]), LEDGER: plain(charged)},
    )
    spent = held_by(first(ledger.events, last["step"] + files.prepared), delta, ledger.contract).epsilon
    yield Row(
        "ε in metrics.jsonl and from the ledger",
        same(last["epsilon"], spent),
        {METRICS: f"{_shown(last['epsilon'])} after {last['step']} steps", LEDGER: _shown(spent)},
    )


def _model(files: RunFiles) -> Iterator[Row]:
    if files.model is None or files.summary is None:
        return
    counted, model_steps, steps = files.said("parameters"), _model_steps(files), files.said("steps")
    if counted is not None:
        yield Row(
            "parameters in summary.json and in the model",
            same(counted, files.model.parameters),
            {SUMMARY: plain(counted), MODEL: plain(files.model.parameters)},
        )
    digest = files.said("model_digest")
    if model_steps is None and digest is not None:
        yield Row(
            "the words in the header of the model",
            False,
            {SUMMARY: f"a model of {plain(steps)} steps", MODEL: "nothing of its steps"},
        )
    if digest is not None and model_steps in (None, steps):
        yield Row(
            "the values in summary.json and in the model",
            digest == files.model.digest,
            {SUMMARY: f"digest {str(digest)[:12]}…", MODEL: f"digest {files.model.digest[:12]}…"},
        )
    if model_steps is None or not isinstance(steps, int):
        return
    yield Row(
        "steps in summary.json and in the model",
        model_steps <= steps,
        {SUMMARY: plain(steps), MODEL: plain(model_steps)},
    )
    if model_steps == steps:
        words, stated = files.model.words.get("guarantee"), files.said("guarantee")
        told = {file: _claimed(text) for file, text in ((SUMMARY, stated), (MODEL, words))}
        yield Row("the statement in summary.json and in the model", words == stated, told)


def _model_steps(files: RunFiles) -> int | None:
    steps = None if files.model is None else files.model.words.get("steps", "")
    return int(steps) if steps and steps.isascii() and steps.isdecimal() and len(steps) < 16 else None


def _claimed(statement: Any) -> str:
    claim = Claim.of(statement)
    if claim is None:
        return "no (ε, δ)"
    return f"({up(claim.epsilon)}, {delta_text(claim.delta)}) after {claim.steps} steps"


def _compared(what: str, stated: Any, given: Any, *, held: bool | None = None) -> Row:
    held = same(stated, given) if held is None else held
    return Row(what, held, {SUMMARY: _shown(stated), LEDGER: _shown(given)})


def _shown(value: Any) -> str:
    """Return a value with more digits than two that differ can share."""
    return f"{value:.10g}" if isinstance(value, float) else plain(value)
