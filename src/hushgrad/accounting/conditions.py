"""Conditions that a run took on trust: what its ε rests on and nobody checked, each as a name and a sentence.

Ledgers hold these names and sentences, so they are data: a new wording would stand beside the old one in a ledger that
is continued.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hushgrad.printable import printable

_LONGEST_NAME = 300

NOTED_AS = "taken on trust"
"""The subject of those notes of a ledger that hold conditions."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that a guarantee rests on and that this run did not establish.

    `name` is short and stable; `sentence` says all of it; `count` says how often it happened, where that is known. None
    of them holds a value of the data.
    """

    name: str
    sentence: str
    count: int = 0

    def as_note(self) -> dict[str, str | int | float]:
        """Return the condition as the values of a ledger's note."""
        values: dict[str, str | int | float] = {"name": self.name, "sentence": self.sentence}
        return {**values, "count": self.count} if self.count else values


DECLARED_SAMPLING = Condition("declared sampling", "sampling was declared by the caller")
FIXED_KEY = Condition(
    "fixed key", "noise and sampling came from a fixed key, for tests: whoever knows it can take the noise away"
)
NOISE_NOT_OBSERVED = Condition(
    "noise not observed",
    "steps that another library ran are charged as that library's record says: that its noise was drawn with this "
    "noise multiplier on the sum, once for each step and from a source that nobody can predict, that its gradients "
    "were clipped example by example and that its records were drawn as declared, was not observed and is on trust",
)
NO_LEDGER_PATH = Condition(
    "no ledger path", "the ledger was kept in memory: what other processes or an earlier start of this one trained on "
    "these records is not counted",
)  # fmt: skip
NOT_WATCHED = Condition(
    "no history of ledgers",
    "this machine does not keep how far the ledger went (HUSHGRAD_STATE): that its file is not an older copy, and that "
    "no other copy was continued, is on trust",
)
OLDER_COPY = Condition(
    "an older copy",
    "this machine wrote records of this run that the ledger lacks: it is an older copy, or another copy was continued, "
    "and what was trained there is not counted here",
)
OWN_LOSS = Condition(
    "own scalar loss",
    "the loop ran backward on a scalar loss of its own: its graph shows one part for each record, and that no part "
    "holds values of other records (targets, weights and factors, which the graph does not show) is on trust",
)
UNREAD_LOSS = Condition(
    "own scalar loss, not read",
    "the loop ran backward on a scalar loss of its own whose graph could not be read: that it is the declared mean or "
    "sum of one loss for each record is on trust",
)
LOSS_OF_MODEL = Condition(
    "scalar loss of the model",
    "the model returned a scalar loss of its own: that it is the declared mean or sum of one loss for each record was "
    "examined on the first batch, and is on trust in others",
)
INNER_LOSS = Condition(
    "loss of inner values",
    "what the model computes inside and did not return (activations that were kept, a balance loss) entered the loss: "
    "that it is one value for each record is on trust",
)
OUTSIDE_CALL = Condition(
    "outside of the model's call",
    "a part of the model was called by itself, or a method of it in place of the model: what that code does between "
    "its parts, by value, was not seen",
)
VALUES_READ = Condition(
    "values read by the loop",
    "the loop read numbers of the batch's records (item, tolist, numpy, a comparison, lists and arrays of the item) "
    "before it had its losses, or computed in another thread: that nothing it computes there changes one record's "
    "input or loss because of others is on trust",
)
KEPT_BY_DATASET = Condition(
    "values kept by the dataset",
    "the dataset keeps values that follow the records which were read (a maximum, a mean, a list of numbers): that "
    "neither the loop nor a later record is changed by them is on trust",
)
LOSSES_CHANGE = Condition(
    "losses that change between batches",
    "a loss, what the model, a criterion, collate_fn or the dataset is given, reads or is set to, or what is trained, "
    "was computed or chosen otherwise in different batches: that it follows the number of the step and released "
    "values, and not the records drawn, their number or their length, is on trust",
)
NEVER_EXAMINED = Condition(
    "never examined",
    "a session had batches of one record only, so that records do not influence each other was not examined",
)
WITHOUT_LOADER = Condition(
    "losses without a loader",
    "session.backward had losses of a loop without hushgrad's loader: the model was examined, but what the loop "
    "computes between records, model and losses was not seen: that each loss follows from one record and its own "
    "outputs alone is on trust",
)
ORDER_OF_ROWS = Condition(
    "order of rows",
    "padding was told from records by its place, and that the loop keeps the order of rows could not be looked at",
)
ROWS_OF_USERS = Condition(
    "rows of users",
    "whose a row is was told by its place, and that the loop keeps the order of rows could not be looked at",
)
USERS_TOLD = Condition(
    "users of records",
    "which records are one user's was told by the caller, one id for each record: that equal ids are all that is one "
    "user's, and stand in the order of the records, is on trust",
)
ONE_RECORD_IS_ALL = Condition(
    "one record for each user",
    "that each record of the data set is all that is one user's was told by the caller, and is on trust",
)
ROUNDED_TOGETHER = Condition(
    "rounded together",
    "gradients passed through 16 bits in batches whose number of rows follows the draw: that kernels round a record's "
    "values the same whatever the number of rows is on trust",
)
LOSS_SCALE = Condition(
    "loss scale",
    "the loss scale is a function of the caller's: that it follows the number of the step and released values, and no "
    "loss and no gradient that overflowed, is on trust",
)
CHANGED_IN_ITEM = Condition(
    "values changed within an item",
    "a value of the optimizer's groups (the learning rate, say) changed between an item of the loader and its step: "
    "that it follows the number of the step and not the records drawn, their number included, is on trust",
)
WRITTEN_BY_THE_LOOP = Condition(
    "parameters written by the loop",
    "trained parameters were written to between two steps (clamped, averaged, loaded), by the loop and not by the "
    "optimizer: that what was written follows from nothing but released values is on trust",
)
CONSTANTS_OF_A_TERM = Condition(
    "constants of a regularizer",
    "a term of parameters alone was declared (session.regularizer) that reads other tensors, frozen before the first "
    "batch: that they hold nothing of these records is on trust",
)
NUMBERS_IN_FORWARD = Condition(
    "numbers read in the forward",
    "a forward that selects rows by values of its batch took numbers of the batch out of torch (item, tolist, a "
    "comparison, how many rows were selected): that nothing which it decides by them changes one record's output "
    "because of others was examined on the first batch and on secret later ones, and is on trust in all others",
)
DECLARED_PUBLIC = Condition(
    "declared public",
    "a tensor that the model is given beside the batch was declared public (session.public): that it holds nothing of "
    "these records is on trust",
)
READ_BY_ITSELF = Condition(
    "read by itself",
    "a statistic was released of what the caller's function, model and dataset give for each record: that no constant "
    "read off the data (a mean, a maximum, a list of values) and no other record enters there is on trust",
)
STREAM = Condition(
    "each record once",
    "the data are a stream, which the library reads in its own order: that it yields each record at most once in a "
    "pass, in a place that does not follow from other records' values, is on trust",
)
DISCARDED, UNCOUNTED = "discarded batches", "uncounted steps"
CLOSED = Condition("closed session", "the session was closed: how the model was trained after that is not covered")


def third_party(part: str, name: str) -> Condition:
    """Return that `part` (say, "clip rule") was a class of somebody else's, called `name`."""
    return Condition(
        f"third-party {part}",
        f"the {part} was {printable(name, _LONGEST_NAME)}, which is not hushgrad's: that it does what was charged is "
        f"on trust",
    )


def hooks_on_the_optimizer(name: str) -> Condition:
    """Return that a hook called `name`, registered after `make_private`, sees each update before the optimizer."""
    return Condition(
        "hooks on the optimizer",
        f"a hook on the optimizer's step ({printable(name, _LONGEST_NAME)}) ran between noise and update: that what it "
        f"changes follows from nothing but released values is on trust",
    )


def not_examined(note: str) -> Condition:
    """Return that the probe could not examine something; `note` says what and why."""
    return Condition("not examined", f"not examined: {note}")


def not_read(why: str) -> Condition:
    """Return that a loss of the loop's own could not be read; `why` names the operator and the line."""
    return Condition(UNREAD_LOSS.name, f"{UNREAD_LOSS.sentence} ({printable(why, _LONGEST_NAME)})")


def discarded(count: int) -> Condition:
    """Return that `count` logical batches were drawn and dropped."""
    return Condition(
        DISCARDED,
        f"{count} logical {'batch was' if count == 1 else 'batches were'} discarded, which this holds for if it did "
        f"not depend on their examples",
        count,
    )


def uncounted(steps: int) -> Condition:
    """Return that the same model took `steps` steps in sessions with other ledgers."""
    return Condition(
        UNCOUNTED,
        f"{steps} earlier step{'' if steps == 1 else 's'} of this model, in sessions with other ledgers, are not "
        f"counted here: one ledger for all of them counts them",
    )


def phases_fixed(told: Sequence[str], *, is_filtered: bool) -> Condition:
    """Return what the ε of an account of several phases rests on; `told` says of each what it declared public."""
    what = (
        f"the account has {len(told)} phases, composed as if every record were in all of them, and each declares its "
        f"constants public: {', '.join(told)}"
    )
    if is_filtered:
        return Condition(
            "phases", f"{what}. What a phase runs may follow from what earlier ones released: a filter charges it"
        )
    return Condition(
        "phases fixed beforehand",
        f"{what}. This is the ordinary composition: that what each phase runs (noise, rate, clip rule, number of "
        f"steps, and that there is one) does not follow from what earlier ones released is on trust",
    )


def joined(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    """Return each condition once, by name and then as they came; discarded batches are added up."""
    given = list(conditions)
    dropped = sum(condition.count for condition in given if condition.name == DISCARDED)
    once = dict.fromkeys(condition for condition in given if condition.name != DISCARDED)
    return tuple(sorted([*once, *([discarded(dropped)] if dropped else [])], key=lambda condition: condition.name))


def from_note(values: Mapping[str, object]) -> Condition | None:
    """Return the condition that a note holds, None for a note that holds none."""
    name, sentence, count = values.get("name"), values.get("sentence"), values.get("count", 0)
    if not isinstance(name, str) or not isinstance(sentence, str) or not isinstance(count, int) or count < 0:
        return None
    return Condition(name, sentence, count)
