"""An audit of a mechanism as its sessions run it: canaries go in by a coin, and are guessed from what is released.

The canaries are gradient Dirac canaries: each example's gradient is enormous and lies on a coordinate of its own, so
that it is clipped to C and reaches the update in full. No attack on this mechanism is stronger, step by step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hushgrad.accounting.accountants import epsilon as epsilon_of
from hushgrad.accounting.composition import Composition, normal_form
from hushgrad.accounting.events.event import ADD_REMOVE_ONE, REPLACE_ONE, ZERO_OUT
from hushgrad.accounting.events.gaussian import Gaussian
from hushgrad.accounting.events.registry import event_from_json
from hushgrad.accounting.neighbours import epsilon_under
from hushgrad.arguments import whole_number
from hushgrad.checks.auditing.bounds import (
    OWN_CURVE,
    AuditBound,
    Scores,
    one_run_bound,
    one_run_curve_bound,
    one_run_gaussian_bound,
    white_box_bound,
    white_box_bound_of,
)
from hushgrad.errors import InvalidArgumentError
from hushgrad.mechanism import Mechanism
from hushgrad.session.privatize import privatize
from hushgrad.strategies.banded import INDEPENDENT

Members = NDArray[np.bool_]
_HUGE = 1e4


@dataclass(frozen=True, slots=True)
class AuditReport:
    """Lower bounds beside the ε that is claimed, at one δ. `claimed` is that of what each bound looks at.

    `releases` are the events of the audited run, `present` and `absent` the numbers of scores of the per-step bound.
    """

    bounds: tuple[AuditBound, ...]
    claimed: Mapping[str, float]
    delta: float
    canaries: int
    present: int
    absent: int
    releases: Composition

    @classmethod
    def of(cls, bounds: Sequence[AuditBound], delta: float, canaries: int, charged: Composition) -> AuditReport:
        """Return the report of a run whose canaries were guessed from what came of it, and no step was looked at."""
        return cls(tuple(bounds), _claims(charged, delta, is_played=False), delta, canaries, 0, 0, charged)

    @property
    def passed(self) -> bool:
        """Whether no bound is above the claim."""
        return not any(bound.rejects(self.claimed[bound.method]) for bound in self.bounds)

    def __str__(self) -> str:
        """Return a sentence for each bound."""
        lines = []
        for bound in self.bounds:
            claim = self.claimed[bound.method]
            word = "REJECTED" if bound.rejects(claim) else "not contradicted"
            lines.append(f"Claimed epsilon {claim:.4g} is {word}: {bound}.")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return the report as a JSON object, with all that its bounds can be computed from again."""
        return {
            "passed": self.passed,
            "delta": self.delta,
            "canaries": self.canaries,
            "present": self.present,
            "absent": self.absent,
            "releases": [{**event.to_json(), "count": count} for event, count in self.releases],
            "bounds": [
                {
                    "method": bound.method,
                    "epsilon_at_least": bound.epsilon,
                    "epsilon_claimed": self.claimed[bound.method],
                    "rejected": bound.rejects(self.claimed[bound.method]),
                    "confidence": bound.confidence,
                    "observations": bound.trials,
                    "statistic": bound.statistic,
                }
                for bound in self.bounds
            ],
        }


def recomputed(value: Mapping[str, Any]) -> AuditReport:
    """Return the audit that `AuditReport.as_json` gave, with bounds and claims computed anew from what was observed.

    Raises `InvalidArgumentError` for anything else.
    """
    try:
        delta, count = value["delta"], value["canaries"]
        present, absent = value["present"], value["absent"]
        releases = []
        for release in value["releases"]:
            event = {name: item for name, item in release.items() if name != "count"}
            releases.append((event_from_json(event), whole_number("count", release["count"], minimum=1)))
        bounds = []
        for bound in value["bounds"]:
            statistic, made, confidence = bound["statistic"], bound["observations"], bound["confidence"]
            if bound["method"] == "per-step white-box":
                bounds.append(white_box_bound_of(statistic, present, absent, delta=delta, confidence=confidence))
            elif bound["method"] == "one run":
                bounds.append(one_run_bound(made, statistic, count, delta=delta, confidence=confidence))
            elif bound["method"] == "one run, f-DP":
                bounds.append(one_run_gaussian_bound(made, statistic, count, delta=delta, confidence=confidence))
            elif bound["method"] == OWN_CURVE:
                plan = partial(_with_noise, releases)
                bounds.append(
                    one_run_curve_bound(made, statistic, count, plan=plan, delta=delta, confidence=confidence)
                )
            else:
                raise InvalidArgumentError(
                    "the result of an audit has a bound by a method that is not known",
                    cure="Read it with the version of hushgrad that wrote it",
                )
        claims = _claims(releases, delta, is_played=bool(present or absent))
        return AuditReport(tuple(bounds), claims, delta, count, present, absent, releases)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise InvalidArgumentError(
            "this is not the result of an audit, or it was damaged", cure="Run the audit again"
        ) from error


def _claims(releases: Composition, delta: float, *, is_played: bool) -> dict[str, float]:
    """Return what is claimed of a step in which a canary takes part, and of the whole run.

    Of a run that an audit did not play (input canaries) what is claimed of the whole, under its own relation.
    """
    if not is_played:
        return dict.fromkeys(("one run", "one run, f-DP", OWN_CURVE), epsilon_of(releases, delta))
    event = releases[0][0]
    moved = 2 if event.adjacency == REPLACE_ONE else 1  # how far the sum moves, in C
    step = epsilon_of([(Gaussian(event.noise_multiplier / moved), 1)], delta)
    is_cut = bool(normal_form(releases).truncated)
    whole = epsilon_under(releases, delta, ZERO_OUT).upper if is_cut else epsilon_of(releases, delta)
    return {"per-step white-box": step, "one run": whole, "one run, f-DP": whole, OWN_CURVE: whole}


class DiracCanaries(nn.Module):
    """A model of one number per canary: example j's loss is a huge multiple of the j-th, and nothing else."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.values = nn.Linear(count, 1, bias=False)
        nn.init.zeros_(self.values.weight)

    def forward(self, places_B: Tensor) -> Tensor:
        """Return the losses `[B]` of the canaries at these places."""
        one_hot = nn.functional.one_hot(places_B, self.values.in_features).to(self.values.weight.dtype)
        losses: Tensor = _HUGE * self.values(one_hot).squeeze(1)
        return losses


def audit(
    mechanism: Mechanism,
    *,
    delta: float,
    confidence: float = 0.99,
    canaries: int = 2000,
    steps: int = 20,
    guesses: int | None = None,
    seed: int = 0,
) -> AuditReport:
    """Audit what a session does with a mechanism, in one run.

    Half of the canaries take part, chosen by a coin. The session's own loader draws them, as the mechanism says, and
    the released updates are recorded. Who does not take part is absent (add/remove-one), adds nothing (zero-out) or the
    opposite (replace-one), by the relation that the sampling is charged under; of draws that may be cut, which know
    their population, zero-out, and so is the claim. The bounds: per-step white-box, of a step in which a canary takes
    part (the Gaussian mechanism without amplification); and of the whole run, from guesses of which canaries took part,
    after Steinke et al. (2305.08846), by the trade-off curve of Gaussian privacy (2410.22235) and, where records are
    drawn by chance, by the curve of what ran.

    Args:
        mechanism: what the session runs; of its expected batch size, which changes no bound, the audit takes what fits.
        delta: δ of all figures.
        confidence: with which each bound holds.
        canaries: how many, at least 20.
        steps: how many steps.
        guesses: how many canaries are guessed, the most certain ones; by default half.
        seed: of the coins; draws and noise have a secret key.

    Raises `InvalidArgumentError` for no noise, and for noise that is correlated between steps.
    """
    if mechanism.noise_multiplier == 0 or mechanism.noise.strategy != INDEPENDENT:
        raise InvalidArgumentError(
            "an audit needs noise that is drawn anew in every step, and a noise multiplier > 0",
            cure="Pass such a mechanism",
        )
    count = whole_number("canaries", canaries, minimum=20)
    number = whole_number("steps", steps, minimum=1)
    chosen = count // 2 if guesses is None else whole_number("guesses", guesses, minimum=1)
    members = np.random.default_rng(whole_number("seed", seed, minimum=0)).random(count) < 0.5
    played = _play(mechanism, members, number)
    bounds = []
    if min(len(played.present), len(played.absent)) >= 2:
        bounds.append(white_box_bound(played.present, played.absent, delta=delta, confidence=confidence))
    right, made = guess(played.total, members, chosen)
    bounds += guessed_bounds(made, right, count, played.charged, delta=delta, confidence=confidence)
    return AuditReport(
        tuple(bounds),
        _claims(played.charged, delta, is_played=True),
        delta,
        count,
        len(played.present),
        len(played.absent),
        played.charged,
    )


def guessed_bounds(
    guesses: int, right: int, canaries: int, charged: Composition, *, delta: float, confidence: float
) -> list[AuditBound]:
    """Return the bounds of one run from how many guesses were right, by all methods that fit what was charged."""
    bounds = [
        one_run_bound(guesses, right, canaries, delta=delta, confidence=confidence),
        one_run_gaussian_bound(guesses, right, canaries, delta=delta, confidence=confidence),
    ]
    form = normal_form(charged)
    if (form.sampled or form.allocated) and not (form.truncated or form.fixed_size):  # else no curve is sharp
        plan = partial(_with_noise, charged)
        bounds.append(one_run_curve_bound(guesses, right, canaries, plan=plan, delta=delta, confidence=confidence))
    return bounds


@dataclass(frozen=True, slots=True)
class _Played:
    """Marks of canaries in steps that took them, marks of those that took no part, their sums, and what was charged."""

    present: Scores
    absent: Scores
    total: Scores
    charged: Composition


def _play(mechanism: Mechanism, members: Members, steps: int) -> _Played:
    """Run so many steps of a session over the canaries, and read its updates."""
    sampling = mechanism.sampling
    is_cut = sampling.largest_batch is not None and sampling.adjacency != REPLACE_ONE
    relation = ZERO_OUT if is_cut else sampling.adjacency
    count = len(members)
    places = np.flatnonzero(members) if relation == ADD_REMOVE_ONE else np.arange(count)
    weights = np.where(members, 1.0, -1.0 if relation == REPLACE_ONE else 0.0).astype(np.float32)
    dataset = TensorDataset(torch.from_numpy(places), torch.from_numpy(weights[places]))
    size, batches = _batches_of(mechanism, len(places))
    model = DiracCanaries(count)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session = privatize(model, optimizer, replace(mechanism, expected_batch_size=size))
    releases: list[Scores] = []
    handle = optimizer.register_step_pre_hook(lambda *_: releases.append(_gradient(model)))
    present: list[Scores] = []
    absent: list[Scores] = []
    total = np.zeros(count)
    try:
        loader = session.batches(dataset, batches=batches)
        for _, (numbers, parts) in zip(range(steps), _endless(loader), strict=False):
            drawn = list(session.current_batch.indices) if session.current_batch is not None else []
            session.backward(parts * model(numbers))
            optimizer.step()
            taken = np.zeros(count, dtype=bool)
            taken[places[drawn]] = True
            # The loss pushes a canary's value down, so its mark is positive in the gradient.
            marks = releases[-1]
            present.append(marks[taken & members])
            absent.append(marks[taken & ~members] if relation == REPLACE_ONE else marks[~(taken & members)])
            total += marks
        charged = session.charged
    finally:
        handle.remove()
        session.close()
    return _Played(np.concatenate(present), np.concatenate(absent), total, charged)


def _batches_of(mechanism: Mechanism, population: int) -> tuple[float, list[range] | None]:
    """Return the expected batch size for so many records and, where the sampling takes them, batches in order."""
    sampling = mechanism.sampling
    if not sampling.takes_batches:
        return sampling.expected_batch_size(population) or mechanism.expected_batch_size, None
    size = max(1, round(mechanism.expected_batch_size))
    return size, [range(first, min(first + size, population)) for first in range(0, population, size)]


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def _with_noise(composition: Composition, times: float) -> Composition:
    """Return the same steps with `times` as much noise."""
    return [
        (replace(event, noise_multiplier=event.noise_multiplier * times), count)  # type: ignore[type-var]
        for event, count in composition
    ]


def guess(scores: Scores, members: Members, guesses: int) -> tuple[int, int]:
    """Guess the highest scores as members and the lowest as non-members; return `(right, guesses)`.

    Scores may come from anywhere: sums of updates, or losses of input canaries before and after training (a mislabelled
    example that took part has a lower loss: its score is minus the loss).

    Args:
        scores: one for each canary.
        members: whether each canary took part; must have been decided by independent fair coins.
        guesses: how many to guess; an odd number is rounded down to an even one.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(members, dtype=np.bool_)
    if values.shape != truth.shape or values.ndim != 1:
        raise InvalidArgumentError(
            f"scores and members must have one shape [m], got {values.shape}, {truth.shape}",
            cure="Pass one score and one membership for each canary",
        )
    half = min(whole_number("guesses", guesses, minimum=2), len(values)) // 2
    order = np.argsort(values, kind="stable")
    right = int(truth[order[len(order) - half :]].sum()) + int((~truth[order[:half]]).sum())
    return right, 2 * half


def _gradient(model: DiracCanaries) -> Scores:
    gradient = model.values.weight.grad
    if gradient is None:
        raise InvalidArgumentError("the session wrote no update", cure="Report this with the version of hushgrad")
    return gradient.detach().double().reshape(-1).numpy().copy()
