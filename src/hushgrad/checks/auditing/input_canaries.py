"""Canaries in the data: odd records, each in the training data or not by a coin, whose losses tell which were.

For your own model, loop and data: what reaches the model is what an attacker of a released model has, so bounds are
weaker than those of `audit`, whose canaries are gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from hushgrad.accounting.composition import Composition, adjacency_of
from hushgrad.accounting.events.event import ADD_REMOVE_ONE
from hushgrad.arguments import whole_number
from hushgrad.checks.auditing.audit import AuditReport, guess, guessed_bounds
from hushgrad.errors import InvalidArgumentError

Scores = NDArray[np.float64]


class _Relabelled(Dataset[Any]):
    """Some records of a dataset, each with another class than its own."""

    def __init__(self, dataset: Any, places: list[int], shifts: list[int], classes: int, change: Any) -> None:
        self._dataset, self._places, self._shifts = dataset, places, shifts
        self._classes, self._change = classes, change

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Any:
        return self._change(self._dataset[self._places[index]], self._shifts[index], self._classes)


def _other_class(record: Any, shift: int, classes: int) -> Any:
    inputs, label = record
    return inputs, (label + shift) % classes


@dataclass(frozen=True, eq=False)
class InputCanaries:
    """Canaries of one training.

    Attributes:
        training: what is trained on: all records that are no canaries, and the canaries that take part.
        canaries: all canaries, in order: their losses after training are what `report` takes.
        members: [count] bool, whether each takes part. Look at it only to score.
    """

    training: Dataset[Any]
    canaries: Dataset[Any]
    members: NDArray[np.bool_]

    def report(
        self,
        losses: Tensor | Scores,
        charged: Composition,
        *,
        delta: float,
        before: Tensor | Scores | None = None,
        guesses: int | None = None,
        confidence: float = 0.99,
    ) -> AuditReport:
        """Return lower bounds on ε from the losses of the canaries, beside what was charged.

        A canary that takes no part is absent, so the claim is one for add/remove-one neighbours.

        Args:
            losses: [count], of each canary under the trained model (in evaluation mode).
            charged: `session.charged`.
            delta: δ of all figures.
            before: [count], losses under a model that saw none of them (the one before training): subtracted.
            guesses: how many canaries are guessed, the most certain ones; by default half. Chosen before losses are
                looked at: the best of several choices is no bound.
            confidence: with which each bound holds.

        Raises `InvalidArgumentError` for losses that are not one finite number for each canary, and for a charge under
        another relation, which says nothing of a record that is absent.
        """
        count, relation = len(self.members), adjacency_of(event for event, _ in charged)
        if relation != ADD_REMOVE_ONE:
            raise InvalidArgumentError(
                f"a canary that takes no part is absent, and what was charged is told for {relation} neighbours",
                where="charged",
                cure="Train on odd.training by a sampling charged under add/remove-one (Poisson sampling, balls "
                "in bins); hushgrad audit audits the others",
            )
        scores = -_losses("losses", losses, count)
        if before is not None:
            scores = scores + _losses("before", before, count)
        right, made = guess(scores, self.members, count // 2 if guesses is None else guesses)
        bounds = guessed_bounds(made, right, count, charged, delta=delta, confidence=confidence)
        return AuditReport.of(bounds, delta, count, charged)


def _losses(name: str, values: Any, count: int) -> Scores:
    try:
        given = values.detach().cpu() if isinstance(values, Tensor) else values
        found = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.shape != (count,) or not np.isfinite(found).all():
        raise InvalidArgumentError(
            f"must be one finite number for each of the {count} canaries, in their order",
            where=name,
            cure="Pass the losses of odd.canaries, each reduced to one number",
        )
    return found


def input_canaries(
    dataset: Any,
    count: int,
    *,
    classes: int,
    seed: int,
    change: Callable[[Any, int, int], Any] = _other_class,
) -> InputCanaries:
    """Choose `count` records of a dataset as canaries, mislabel each, and let each take part by a fair coin.

    ::

        odd = input_canaries(dataset, 1000, classes=10, seed=1)
        ...  # train privately on odd.training
        print(odd.report(losses, session.charged, delta=1e-5))

    Args:
        dataset: map-style, records `(inputs, label)`.
        count: how many canaries, at least 20 and at most the records.
        classes: how many classes there are, at least 2.
        seed: of the choice and the coins. For an audit of what others run: not known to whoever trains.
        change: what makes a canary of `(record, shift, classes)`; by default its label becomes label + shift.

    Raises `InvalidArgumentError` for numbers out of range.
    """
    number = whole_number("count", count, minimum=20)
    whole_number("classes", classes, minimum=2)
    if number > len(dataset):
        raise InvalidArgumentError(
            f"must be at most the {len(dataset)} records, got {number}", where="count", cure="Take fewer canaries"
        )
    source = np.random.default_rng(whole_number("seed", seed, minimum=0))
    order = source.permutation(len(dataset))
    places, rest = order[:number].tolist(), sorted(order[number:].tolist())
    shifts = source.integers(1, classes, size=number).tolist()
    members = source.random(number) < 0.5
    made = partial(_Relabelled, dataset, classes=classes, change=change)
    taking_part = np.flatnonzero(members).tolist()
    present = made(places=[places[at] for at in taking_part], shifts=[shifts[at] for at in taking_part])
    return InputCanaries(ConcatDataset([Subset(dataset, rest), present]), made(places=places, shifts=shifts), members)
