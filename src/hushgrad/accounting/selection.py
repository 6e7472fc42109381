"""What a search over hyper-parameters costs, when every run sees the private data.

Publishing the best of several runs is not free. Two honest ways:

- a fixed number of runs, all of which may be published: they compose (`all_runs`);
- a random number of runs, of which only the best is published: Papernot & Steinke (2021, arXiv:2110.03620). The number
  is drawn from a truncated negative binomial distribution (`shape` η: 1 is geometric, 0 logarithmic) or a Poisson one,
  before anything is looked at, and the private data may decide only which run is best.
"""

from __future__ import annotations

import math

from hushgrad.accounting.composition import Composition, is_numbered, normal_form, of_accounts
from hushgrad.accounting.floating_point import usual_floating_point
from hushgrad.accounting.rdp import without_warnings
from hushgrad.arguments import open_unit_interval, positive_number, real_number, whole_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.extras import needs_extra

with needs_extra("cross-check", "what a search over settings costs"):
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.dp_event import ComposedDpEvent, DpEvent, RepeatAndSelectDpEvent, SelfComposedDpEvent
    from dp_accounting.rdp import RdpAccountant

POISSON = math.inf
GEOMETRIC = 1.0
LOGARITHMIC = 0.0


def all_runs(composition: Composition, runs: int) -> Composition:
    """Return the composition of `runs` runs, each of which may be looked at and published."""
    number = whole_number("runs", runs, minimum=1)
    numbered = [(event, count) for event, count in composition if is_numbered(event)]
    others = [(event, count * number) for event, count in composition if not is_numbered(event)]
    return [*others, *of_accounts([numbered] * number)]


@usual_floating_point()
def selection_epsilon(composition: Composition, delta: float, mean_runs: float, shape: float = GEOMETRIC) -> float:
    """Return ε of publishing the best of a random number of runs of `composition`, `mean_runs` on average.

    `mean_runs` >= 1; `shape` is η, or `POISSON`. The number of runs must be drawn from exactly that
    distribution; for Poisson it may be 0, and then nothing is published.

    Guarantee: an upper bound (theorems 2 and 6 of Papernot & Steinke, from Rényi divergences).
    """
    delta = open_unit_interval("delta", delta)
    mean = positive_number("mean_runs", mean_runs)
    if mean < 1:
        raise InvalidArgumentError(
            f"must be >= 1, got {mean}: with less, mostly nothing would run",
            where="mean_runs",
            cure="Pass 1 or a greater number",
        )
    if shape != POISSON and real_number("shape", shape) < 0:
        raise InvalidArgumentError(
            f"must be >= 0 or POISSON, got {shape}", where="shape", cure="Pass GEOMETRIC, LOGARITHMIC or POISSON"
        )
    form = normal_form(composition).without_allocation()  # passes as if it were known who is in which step of them
    form.require_plain("the cost of a search")
    if form.noiseless:
        return math.inf
    if form.empty:
        return 0.0
    steps: list[DpEvent] = [
        SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), count)
        for rate, noise, count in form.sampled
    ]
    if form.gaussian_precision:
        steps.append(GaussianDpEvent(1 / math.sqrt(form.gaussian_precision)))
    accountant = RdpAccountant()
    with without_warnings():
        accountant.compose(RepeatAndSelectDpEvent(ComposedDpEvent(steps), mean, shape))
        return max(0.0, float(accountant.get_epsilon(delta)))
