"""How well a score tells training records from others: the area under the ROC curve, and hits at few false alarms.

A score that a model's owner can compute (minus the loss, Yeom et al. 2018, arXiv:1709.01604) is the weakest of attacks,
and what is reported most (Carlini et al. 2022, arXiv:2112.03570, ask for the hit rate at few false alarms beside the
area). It can show that a model leaks; that it does not show so proves nothing: ε bounds every attack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from hushgrad.accounting.composition import Composition
from hushgrad.accounting.risk import membership_advantage, trade_off_curve
from hushgrad.arguments import open_unit_interval
from hushgrad.checks.auditing.bounds import Scores, finite_scores
from hushgrad.text_table import text_table

FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its interval at the report's confidence."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return them in percent."""
        return f"{100 * self.estimate:.2f}% ({100 * self.low:.2f} to {100 * self.high:.2f})"


@dataclass(frozen=True, slots=True)
class HitRate:
    """How many of the training records have scores that at most a share of the others reach.

    `false_positive_rate` is that share; `true_positive_rate` what was found; `allowed` the most that every attack has
    under the ε of what was charged, None where that is not known.
    """

    false_positive_rate: float
    true_positive_rate: Interval
    allowed: float | None


@dataclass(frozen=True, slots=True)
class MembershipReport:
    """What a score tells of `members` training records and `others`; intervals at `confidence`.

    The intervals are over records, for this one model: another training would give another one. `area` is 0.5 for
    guesses. `allowed_area` and the allowed hit rates are bounds on every attack under what was charged, of which this
    is one.
    """

    area: Interval
    hit_rates: tuple[HitRate, ...]
    members: int
    others: int
    confidence: float
    allowed_area: float | None

    def __str__(self) -> str:
        """Return a table and a sentence."""
        rows = [
            [
                f"{100 * rate.false_positive_rate:g}%",
                str(rate.true_positive_rate),
                "" if rate.allowed is None else f"{100 * rate.allowed:.2f}%",
            ]
            for rate in self.hit_rates
        ]
        most = "" if self.allowed_area is None else f"; epsilon allows {100 * self.allowed_area:.2f}%"
        return "\n".join(
            [
                text_table(["false alarms", "members found", "epsilon allows"], rows),
                "",
                f"Area under the ROC curve: {self.area}{most}. Blind guesses have 50%. ({self.members} training "
                f"records, {self.others} others, intervals at {self.confidence:g}.)",
            ]
        )

    def as_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return asdict(self)


def membership_report(
    members: Scores,
    others: Scores,
    *,
    charged: Composition | None = None,
    confidence: float = 0.95,
    false_positive_rates: Sequence[float] = FALSE_POSITIVE_RATES,
) -> MembershipReport:
    """Return how well scores tell training records from others, which were drawn like them and not trained on.

    The interval of the area is DeLong's, on the scale of its logit. The threshold for a share α of m others is their
    (⌊αm⌋ + 1)-th largest score, so that no more than αm lie above it. A hit rate's interval is for the threshold that a
    share α of *all* others exceed, which the m only estimate: where a score has the j-th largest place among them, the
    share beyond it is Beta(j, m + 1 − j), whatever the law of scores. So its lower end is Clopper and Pearson's at a
    threshold that fewer exceed, its upper end at one that more do, each for certain but for a quarter of 1 −
    `confidence`. Few others tell nothing of few false alarms, and the interval says so.

    Args:
        members: [n], higher where a record is taken for a training record; minus its loss, for instance.
        others: [m].
        charged: what the training was charged (`session.charged`), for what ε allows.
        confidence: of each interval.
        false_positive_rates: each in (0, 1).

    Raises `InvalidArgumentError` for fewer than two scores of either kind, or scores that are not finite.
    """
    level = open_unit_interval("confidence", confidence)
    cure = "Give one finite score for each record"
    one, other = finite_scores("members", members, cure=cure), finite_scores("others", others, cure=cure)
    rates = [open_unit_interval("false_positive_rate", rate) for rate in false_positive_rates]
    misses = None if charged is None else trade_off_curve(charged, rates)
    falling = np.sort(other)[::-1]
    hits = [
        HitRate(rate, _hits(one, falling, rate, level), None if misses is None else 1 - misses[place])
        for place, rate in enumerate(rates)
    ]
    most = None if charged is None else (1 + membership_advantage(charged)) / 2
    return MembershipReport(_area(one, other, level), tuple(hits), len(one), len(other), level, most)


def _area(one: Scores, other: Scores, level: float) -> Interval:
    """Return the share of pairs in which the member has the larger score, ties as half (DeLong et al. 1988)."""
    n, m = len(one), len(other)
    ranks = stats.rankdata(np.concatenate([one, other]))
    of_members = (ranks[:n] - stats.rankdata(one)) / m
    of_others = 1 - (ranks[n:] - stats.rankdata(other)) / n
    area = float(of_members.mean())
    std = math.sqrt(float(of_members.var(ddof=1)) / n + float(of_others.var(ddof=1)) / m)
    if not 0 < area < 1:
        return Interval(area, 0.0, 1.0)
    if std == 0:
        return Interval(area, area, area)
    middle, reach = math.log(area / (1 - area)), stats.norm.ppf((1 + level) / 2) * std / (area * (1 - area))
    low, high = (1 / (1 + math.exp(-min(max(at, -700.0), 700.0))) for at in (middle - reach, middle + reach))
    return Interval(area, low, high)


def _hits(one: Scores, falling: Scores, rate: float, level: float) -> Interval:
    """Return how many of `one` lie above what a share `rate` of all others exceed; `falling` are those that are known.

    Of tied scores those above a threshold alone count for the lower end, and those at it, too, for the upper one.
    """
    n, m, tail = len(one), len(falling), (1 - level) / 4
    found = int((one > falling[min(math.floor(rate * m), m - 1)]).sum())
    places = np.arange(1, m + 1)
    fewer = np.flatnonzero(stats.beta.sf(rate, places, m + 1 - places) <= tail)
    more = np.flatnonzero(stats.beta.cdf(rate, places, m + 1 - places) <= tail)
    low, high = 0.0, 1.0
    if len(fewer) and (sure := int((one > falling[fewer[-1]]).sum())):
        low = float(stats.beta.ppf(tail, sure, n - sure + 1))
    if len(more) and (most := int((one >= falling[more[0]]).sum())) < n:
        high = float(stats.beta.ppf(1 - tail, most + 1, n - most))
    return Interval(found / n, low, high)
