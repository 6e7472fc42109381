"""What a task learns from its training data, with noise, before training; charged in the ledger of the run.

It is a release like any other (`hushgrad.releases`): charged first, an event that is no step. Training is then a phase
of the same account, planned on what is left, and the ε that is stated covers both.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.composition import Composition, of_accounts, steps_of
from hushgrad.accounting.events.event import ADD_REMOVE_ONE
from hushgrad.accounting.guarantee import round_up
from hushgrad.errors import InvalidArgumentError
from hushgrad.randomness import KeyStream
from hushgrad.releases.reading import sum_over
from hushgrad.releases.releasing import Asked, release
from hushgrad.session.spending import events_at
from hushgrad.study.account import spent_words
from hushgrad.study.class_weights import counting, given_weights
from hushgrad.study.configuration import DEFAULT_DELTA, RunConfig
from hushgrad.study.tasks import Task
from hushgrad.study.tasks.task import Preparation

TRAINING = "training"
"""The name of the part of an account that trains on what was released before."""


@dataclass(frozen=True, eq=False, slots=True)
class Prepared:
    """A task that is ready, and the noise multipliers of its releases; None for one that there was none of.

    Attributes:
        noise_multiplier: of what the task itself had to learn (a counted vocabulary).
        class_noise_multiplier: of the counts of classes.
    """

    task: Task
    noise_multiplier: float | None = None
    class_noise_multiplier: float | None = None


@dataclass(frozen=True, slots=True)
class Learned:
    """What a run that goes on has learned and paid for already; None for what it has not."""

    vocabulary: tuple[int, ...] | None = None
    class_counts: tuple[float, ...] | None = None


NOTHING = Learned()


def prepare(config: RunConfig, task: Task, ledger: Path | None, learned: Learned = NOTHING) -> Prepared:
    """Return the task ready to be trained on, with the weights of its classes.

    `learned` is what a run that goes on has learned and paid for already: nothing is charged for that.

    `ledger` is where the run's steps will be charged. An ordinary run has none: it prepares its task with the same
    noise, uncharged. The noise is chosen so that each release alone costs its own ε at the run's δ.

    Guarantee: the preparation is charged in the ledger of training, before anything is learned from the records.

    Raises InvalidArgumentError for a private run without a ledger, or whose ledger does not hold what it has learned,
    and what `release` raises.
    """
    noise = class_noise = None
    if task.preparation is not None:
        task, noise = _learn(config, task, task.preparation, ledger, learned.vocabulary)
    if config.class_weights is not None and not isinstance(config.class_weights, str):
        task = replace(task, class_weights=given_weights(config.class_weights, task.class_names))
    counted = _counting(config, task)
    if counted is not None:
        task, class_noise = _learn(config, task, counted, ledger, learned.class_counts)
    if config.privacy is not None and task.releases:
        require_charged(ledger, task.releases)
    return Prepared(task, noise, class_noise)


def _learn(
    config: RunConfig, task: Task, preparation: Preparation, ledger: Path | None, learned: tuple[Any, ...] | None
) -> tuple[Task, float]:
    """Return the task with what one release of its records says, and the noise multiplier of that."""
    asked = _asked(config, task, preparation)
    if learned is None and config.privacy is None:
        total = sum_over(asked.query, preparation.records)
        learned = preparation.learned(asked.released(total, KeyStream.from_operating_system()))
    elif learned is None and ledger is None:
        raise InvalidArgumentError(
            "the preparation of a private run is a release, and must be charged",
            where="ledger",
            cure="Pass the ledger of the training",
        )
    elif learned is None:
        assert ledger is not None
        sigma, relation = asked.event.noise_multiplier, asked.event.adjacency
        found = release(
            preparation.query, preparation.records, ledger=ledger, noise_multiplier=sigma, adjacency=relation
        )
        learned = preparation.learned(found)
    return preparation.ready(learned), asked.event.noise_multiplier


def _counting(config: RunConfig, task: Task) -> Preparation | None:
    """Return the release of the counts of classes, where weights are to follow from them."""
    return None if config.class_weights_epsilon is None else counting(task, config.class_weights_epsilon)


def require_charged(ledger: Path | None, releases: int) -> None:
    """Raise InvalidArgumentError unless the account in `ledger` begins with so many releases."""
    first = itertools.takewhile(lambda counted: not steps_of([counted]), events_at(ledger))
    if sum(count for _, count in first) < releases:
        raise InvalidArgumentError(
            "the task's preparation is not charged in this ledger as a release",
            where="ledger",
            cure="Pass the ledger in which it was charged; where an earlier version charged it as a step, begin a new "
            "run",
        )


def check_budget(config: RunConfig, task: Task, before: Composition = ()) -> None:
    """Raise InvalidArgumentError if the run, preparation and all epochs, would spend more than its `max_epsilon`.

    `before` is what the account of the run holds already, which counts.

    What a run spends depends on its settings and on public counts alone, so this is known before it starts. The session
    holds the same budget while the run goes on.
    """
    privacy = config.privacy
    if privacy is None or privacy.max_epsilon is None or privacy.noise_multiplier is None:
        return  # a target is checked against the budget where both are given
    plan = privacy.plan(config.batch_size, task.population, config.epochs, privacy.noise_multiplier, task.people)
    planned = [*plan.composition()]
    for preparation in (task.preparation, _counting(config, task)):
        if preparation is not None:
            planned.append((_asked(config, task, preparation).event, 1))
    spent = epsilon(of_accounts([before, planned]), privacy.delta)
    if spent > privacy.max_epsilon:
        whose = f"account, which has spent {spent_words(before, privacy.delta)}," if before else "run"
        raise InvalidArgumentError(
            f"the {whose} would spend ε = {round_up(spent)} at δ = {privacy.delta:g}, beyond max_epsilon = "
            f"{privacy.max_epsilon:g}",
            cure=f"Raise noise_multiplier, lower epochs or spare_steps, or give target_epsilon={privacy.max_epsilon:g} "
            "in place of noise_multiplier to have the noise chosen",
        )


def _asked(config: RunConfig, task: Task, preparation: Preparation) -> Asked:
    """Return the release of a preparation: under the relation of training, with the noise that keeps it at its ε.

    Raises InvalidArgumentError where ε is for people: a release bounds what one of their records adds.
    """
    if task.people is not None:
        raise InvalidArgumentError(
            "what is counted before training is bounded for one record, and ε is to be for people with several",
            where="person",
            cure="Leave out what is counted, and give public numbers in its place",
        )
    privacy, delta, relation = config.privacy, DEFAULT_DELTA, ADD_REMOVE_ONE
    if privacy is not None:
        delta, relation = privacy.delta, privacy.scheme(config.batch_size, len(task.train)).adjacency
    return Asked.of(preparation.query, preparation.records, relation, None, preparation.epsilon, delta)
