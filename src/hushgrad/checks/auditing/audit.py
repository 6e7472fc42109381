"""An audit of a mechanism as its sessions run it: canaries go in by a coin, and are guessed from what is released.

The canaries are gradient Dirac canaries: each example's gradient is enormous and lies on a coordinate of its own, so
that it is clipped to C and reaches the update in full. No attack on this mechanism is stronger, step by step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hushgrad.accounting.accountants import epsilon as epsilon_of
from hushgrad.accounting.composition import Composition
from hushgrad.accounting.events.gaussian import Gaussian
from hushgrad.accounting.events.registry import event_from_json
from hushgrad.arguments import whole_number
from hushgrad.checks.auditing.bounds import (
    AuditBound,
    one_run_bound,
    one_run_gaussian_bound,
    white_box_bound,
    white_box_bound_of,
)
from hushgrad.errors import InvalidArgumentError
from hushgrad.mechanism import Mechanism
from hushgrad.session.privatize import privatize

Scores = NDArray[np.float64]
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
            else:
                raise InvalidArgumentError(
                    "the result of an audit has a bound by a method that is not known",
                    cure="Read it with the version of hushgrad that wrote it",
                )
        return AuditReport(tuple(bounds), _claims(releases, delta), delta, count, present, absent, releases)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise InvalidArgumentError(
            "this is not the result of an audit, or it was damaged", cure="Run the audit again"
        ) from error


def _claims(releases: Composition, delta: float) -> dict[str, float]:
    """Return what is claimed of a step in which a canary takes part, and of the whole run."""
    step = epsilon_of([(Gaussian(releases[0][0].noise_multiplier), 1)], delta)
    whole = epsilon_of(releases, delta)
    return {"per-step white-box": step, "one run": whole, "one run, f-DP": whole}


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

    Half of the canaries take part, chosen by a coin. Every step takes each of them with the mechanism's own sampling
    rate, and the released updates are recorded. Three bounds follow: per-step white-box, of a step in which a canary
    takes part (the Gaussian mechanism without amplification), and of the whole run, from guesses of which canaries took
    part, after Steinke et al. (2305.08846) and by the trade-off curve (2410.22235).

    Args:
        mechanism: what the session runs.
        delta: δ of all figures.
        confidence: with which each bound holds.
        canaries: how many, at least 20.
        steps: how many steps.
        guesses: how many canaries are guessed, the most certain ones; by default half.
        seed: of the coins and of which canaries a step takes; noise has its own secret key.

    Raises `InvalidArgumentError` for disjoint batches, whose steps cannot be repeated at will, and no noise.
    """
    rate = mechanism.sampling.poisson_rate
    if rate is None or mechanism.sampling.largest_batch is not None or mechanism.noise_multiplier == 0:
        raise InvalidArgumentError(
            "an audit needs Poisson sampling and a noise multiplier > 0", cure="Pass such a mechanism"
        )
    count = whole_number("canaries", canaries, minimum=20)
    number = whole_number("steps", steps, minimum=1)
    chosen = count // 2 if guesses is None else whole_number("guesses", guesses, minimum=1)
    source = np.random.default_rng(whole_number("seed", seed, minimum=0))
    members = source.random(count) < 0.5
    model = DiracCanaries(count)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session = privatize(model, optimizer, mechanism)
    releases: list[Scores] = []
    handle = optimizer.register_step_pre_hook(lambda *_: releases.append(_gradient(model)))
    present, absent, total = [], [], np.zeros(count)
    try:
        for _ in range(number):
            drawn = members & (source.random(count) < rate)
            places = torch.from_numpy(np.flatnonzero(drawn))
            session.backward(model(places) if len(places) else torch.zeros(0))
            optimizer.step()
            # The loss pushes a canary's value down, so its mark is positive in the gradient.
            present.append(releases[-1][drawn])
            absent.append(releases[-1][~drawn])
            total += releases[-1]
        charged = session.charged
    finally:
        handle.remove()
        session.close()
    bounds = []
    if sum(map(len, present)) >= 2:
        step_bound = white_box_bound(
            np.concatenate(present), np.concatenate(absent), delta=delta, confidence=confidence
        )
        bounds.append(step_bound)
    right, made = guess(total, members, chosen)
    bounds.append(one_run_bound(made, right, count, delta=delta, confidence=confidence))
    bounds.append(one_run_gaussian_bound(made, right, count, delta=delta, confidence=confidence))
    return AuditReport(
        tuple(bounds),
        _claims(charged, delta),
        delta,
        count,
        sum(map(len, present)),
        sum(map(len, absent)),
        charged,
    )


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
