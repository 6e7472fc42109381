"""Does the summary of a run say what its ledger says?"""

from __future__ import annotations

import math
from collections.abc import Iterator

from hushgrad._version import __version__
from hushgrad.accounting.composition import Composition, count_steps, finding_of
from hushgrad.accounting.conditions import (
    CLOSED,
    DISCARDED,
    NEVER_EXAMINED,
    ORDER_OF_ROWS,
    ROWS_OF_USERS,
    UNCOUNTED,
)
from hushgrad.accounting.guarantee import Guarantee, delta_text, guarantee
from hushgrad.accounting.ledger.contract import OBSERVED, ONE_RECORD
from hushgrad.accounting.ledger.view import LedgerView
from hushgrad.study.account import own_contract
from hushgrad.study.class_weights import balanced_weights, given_weights
from hushgrad.study.report.comparison import Comparison, compared, shown
from hushgrad.study.report.document import up
from hushgrad.study.report.run_files import LEDGER, SUMMARY, RunFiles, anchor_in
from hushgrad.study.report.statements import Claim, beyond, held_by
from hushgrad.study.report.values import same

ONLY_IN_A_SESSION = (NEVER_EXAMINED.name, ORDER_OF_ROWS.name, ROWS_OF_USERS.name, CLOSED.name, DISCARDED, UNCOUNTED)
"""Conditions that a session may state before its ledger holds them, or without that."""


def end_of_the_ledger(files: RunFiles, ledger: LedgerView) -> Iterator[Comparison]:
    """Compare the end of the ledger that the summary knows with the ledger."""
    anchor = anchor_in(files.summary)
    if anchor is not None:
        short = anchor.seq > ledger.anchor.seq
        there = f"record {ledger.anchor.seq} is the last" if short else f"record {anchor.seq} has another"
        yield Comparison(
            "the end of the ledger in summary.json and in the ledger",
            files.known is not None,
            {
                SUMMARY: f"record {anchor.seq} has the hash {anchor.hash[:12]}…",
                LEDGER: "so, too" if files.known is not None else f"{there}: it was cut short, or is another run's",
            },
        )


def summary_rows(files: RunFiles, ledger: LedgerView, delta: float) -> Iterator[Comparison]:
    """Compare each thing that the summary says with what the ledger says of it."""
    if files.summary is None:
        return
    then, steps = files.known or ledger, files.said("steps")
    contract = own_contract(then, files.phase)
    described = files.described()
    held = held_by(described, delta, then.contract)
    charged = (count_steps(described) - files.before if files.known else files.steps(ledger)) - files.lost
    ahead = files.known is None and anchor_in(files.summary) is None and not files.has_ended
    yield compared(
        "steps in summary.json and in the ledger",
        steps,
        charged,
        held=same(steps, charged) or (ahead and isinstance(steps, int) and steps <= charged),
    )
    yield from _established(files, ledger)
    yield compared("ε in summary.json and from its ledger", files.said("epsilon"), held.epsilon)
    yield _statement(files, held)
    yield from _terms(files, held)
    yield from _trusted(files)
    stated = files.said("noise_multiplier")
    yield compared("σ in summary.json and in the ledger", [] if stated is None else [stated], files.noises(described))
    counted = files.said("vocabulary_noise_multiplier")
    if counted is not None:
        found = [event.noise_multiplier for event, _ in described[:1]]
        yield compared("σ of the vocabulary in summary.json and in the ledger", [counted], found)
    yield from _class_weights(files, described)
    rates = {event.poisson_rate for event, _ in files.own(described) if event.poisson_rate is not None}
    declared = [
        ("C", "max_grad_norm", contract.max_grad_norm),
        ("B", "expected_batch_size", contract.expected_batch_size),
        ("q", "sampling_rate", rates.pop() if len(rates) == 1 else None),
        ("the loss reduction", "loss_reduction", contract.loss_reduction),
        (
            "N",
            "training_examples" if contract.unit == ONE_RECORD else "training_people",
            contract.population if contract.sampling == OBSERVED else None,
        ),
    ]
    for what, key, value in declared:
        if value is not None and files.said(key) is not None:
            yield compared(f"{what} in summary.json and in the ledger", files.said(key), value)


def _class_weights(files: RunFiles, described: Composition) -> Iterator[Comparison]:
    """Compare the weights of classes with what they follow from: numbers given, or counts that were released."""
    asked, stated = files.said("class_weights"), files.said("weights_of_classes")
    if asked is None and stated is None:
        return
    given: list[float] | None = None
    if isinstance(asked, str):
        given = None if files.class_counts is None else list(balanced_weights(files.class_counts))
        noise = files.said("class_counts_noise_multiplier")
        released = [event.noise_multiplier for event, _ in described if event.is_release and not event.is_step]
        what = "σ of the counts of classes in summary.json and in the ledger"
        yield compared(what, noise, released, held=any(same(noise, one) for one in released))
    elif asked is not None:
        given = list(given_weights([(str(name), float(weight)) for name, weight in asked], files.said("classes") or []))
    yield Comparison(
        "weights of classes in summary.json and by what they follow from",
        same(stated, given),
        {SUMMARY: shown(stated), "what they follow from": shown(given)},
    )


def _established(files: RunFiles, ledger: LedgerView) -> Iterator[Comparison]:
    """Compare a summary with what was found after it: a finding ends the account of the steps before it, too."""
    found, stated = finding_of(ledger.events), files.said("epsilon")
    if found is not None:
        yield Comparison(
            "whether the ε of summary.json is established",
            same(stated, math.inf),
            {SUMMARY: f"ε = {shown(stated)}", LEDGER: f"not established: {found}"},
        )


def _statement(files: RunFiles, held: Guarantee) -> Comparison:
    """Compare the statement in words. What the run knew beyond its ledger (its conditions) comes after it."""
    stated, claim = files.said("guarantee"), Claim.of(files.said("guarantee"))
    alike = _is_of_this_version(files)
    # The words of another version may differ; what they claim may not.
    fits = claim is not None and claim.is_of(held) and (not alike or beyond(stated, str(held)) is not None)
    said = f"({up(claim.epsilon)}, {delta_text(claim.delta)}) after {claim.steps} steps" if claim else "no (ε, δ)"
    given = f"({up(held.epsilon)}, {delta_text(held.delta)}) after {held.steps} steps"
    if not fits and said == given:
        said = "the same figures in other words"
    return Comparison("the statement in summary.json and from the ledger", fits, {SUMMARY: said, LEDGER: given})


def _terms(files: RunFiles, held: Guarantee) -> Iterator[Comparison]:
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
            yield compared(f"{what} in summary.json and from the ledger", files.said(key), value)


def _trusted(files: RunFiles) -> Iterator[Comparison]:
    """Compare the names of what was taken on trust with the ledger's, as it was when the summary was written.

    A session knows some that are in no ledger until it is closed. It says those in its statement, too.
    """
    stated = files.said("taken_on_trust")
    if files.known is None or (stated is None and not _is_of_this_version(files)):
        return
    known = files.known
    noted = guarantee(known.events, 0.5, contract=known.contract, conditions=known.conditions).conditions
    names = sorted({condition.name for condition in noted})
    told = sorted(set(map(str, stated))) if isinstance(stated, list) else None
    fits = told is not None and set(names) <= set(told) <= {*names, *ONLY_IN_A_SESSION}
    yield Comparison(
        "what was taken on trust in summary.json and in the ledger",
        fits,
        {SUMMARY: "nothing" if not told else ", ".join(told), LEDGER: ", ".join(names) or "nothing"},
    )


def _is_of_this_version(files: RunFiles) -> bool:
    versions = files.said("versions")
    return isinstance(versions, dict) and versions.get("hushgrad") == __version__ and files.said("ledger") is not None
