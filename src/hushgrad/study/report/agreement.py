"""Do the files of a run agree, and what does each of them say?

Some differences are normal, because a run that is killed, still going on or continued leaves them:

- the ledger may be ahead of the summary, as long as it holds the record that the summary knows by its hash. A summary
  without a hash is of an older version; then the ledger may be ahead while the summary says that the run goes on;
- the metrics may be ahead of such a summary, and never of the ledger;
- the model may be behind the summary, after which it is written.

Everything else is a contradiction: a ledger that lacks that record or holds fewer steps, and any figure (ε, δ, steps,
σ, C, B, N, q, accuracy, recall, parameters) in which two files differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from hushgrad.study.report.comparison import Comparison, shown
from hushgrad.study.report.document import plain
from hushgrad.study.report.metrics_agreement import metrics_rows, spent_in_metrics
from hushgrad.study.report.model_agreement import model_rows, steps_of_model
from hushgrad.study.report.result import result_rows
from hushgrad.study.report.run_files import LEDGER, METRICS, MODEL, SUMMARY, RunFiles
from hushgrad.study.report.statements import ROUNDING, Claim, held_by
from hushgrad.study.report.summary_agreement import end_of_the_ledger, summary_rows
from hushgrad.study.report.values import same, stated_epsilon


def agreement(files: RunFiles, delta: float) -> list[Comparison]:
    """Return, for each thing that more than one file says, whether they agree on it."""
    if files.ledger is None:
        return [*_without_a_ledger(files), *metrics_rows(files), *result_rows(files), *model_rows(files)]
    return [
        *end_of_the_ledger(files, files.ledger),
        *summary_rows(files, files.ledger, delta),
        *metrics_rows(files),
        *result_rows(files),
        *spent_in_metrics(files, files.ledger, delta),
        *model_rows(files),
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
    return max([largest, *(claim for claim in claims if claim > largest * (1 + ROUNDING))])


def notices(files: RunFiles) -> list[str]:
    """Return what a reader should know about files that agree: which of them are ahead of others."""
    found = []
    if files.phase is not None and files.ledger is not None:
        others = files.ledger.steps - files.steps(files.ledger)
        found.append(
            f"The ledger is shared with other runs on the same data: {others} of its {files.ledger.steps} steps are "
            f"theirs, and every figure of privacy here is of all of them"
        )
    steps = files.said("steps")
    more = files.steps(files.ledger) - files.lost - steps if files.ledger and isinstance(steps, int) else 0
    if more > 0:
        because = "it was continued" if files.has_ended else "the run goes on, was killed, or was continued"
        found.append(
            f"{LEDGER} holds {more} step{'' if more == 1 else 's'} more than the {steps} that {SUMMARY} describes: "
            f"{because}. Every figure of privacy here is of all of them"
        )
    elif files.summary is not None and not files.has_ended:
        found.append(f"{SUMMARY} says that the run goes on; if it does not, it was killed after step {plain(steps)}")
    if files.lost:
        found.append(
            f"{files.lost} step{' was' if files.lost == 1 else 's were'} taken away by crashes after a checkpoint: "
            f"every figure of privacy here counts them, and the model has not seen them"
        )
    model_steps = steps_of_model(files)
    if model_steps is not None and isinstance(steps, int) and model_steps < steps:
        found.append(f"{MODEL} is of step {model_steps}, older than the {steps} steps that {SUMMARY} describes")
    if files.model is None and files.has_ended and not files.is_of_an_own_function:
        found.append(f"{MODEL} is missing, though {SUMMARY} says that the run has ended: it was removed or moved")
    if files.is_torn:
        found.append(f"the last line of {METRICS} was cut off while it was written; what stands before it is whole")
    return found


def _without_a_ledger(files: RunFiles) -> Iterator[Comparison]:
    """A run that says an ε must have a ledger; an ordinary run has none."""
    stated, noise = files.said("epsilon"), files.said("noise_multiplier")
    measured = any(row["epsilon"] is not None for row in files.measurements)
    claims = files.said("private") is True or noise is not None or (stated is not None and not same(stated, math.inf))
    yield Comparison(
        "the ledger of a run that states an ε",
        not (claims or measured),
        {
            SUMMARY: "nothing" if stated is None else f"ε = {shown(stated)}",
            **({METRICS: "ε after steps"} if measured else {}),
            LEDGER: "nothing: it is missing",
        },
    )
