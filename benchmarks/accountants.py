"""`python -m benchmarks.accountants`: times of the accountants, a second method on random plans, and the small deltas.

    python -m benchmarks.accountants times      the reference table, beside dp-accounting and Opacus
    python -m benchmarks.accountants random     random plans, the saddle-point accountant against the other two
    python -m benchmarks.accountants tails      delta <= 1e-9: who reports too little, and simulation as a witness
    python -m benchmarks.accountants rooms      what truncation costs with how much room
    python -m benchmarks.accountants passes     random allocation: the interval, Poisson sampling beside it, and times
    python -m benchmarks.accountants corners    where it is slow: large targets, few steps at small rates, trade-offs

Each figure of another library is computed in a process of its own with a limit of time. All run on one thread.
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from scipy.special import logsumexp

from hushgrad.accounting import (
    Budget,
    DisjointPass,
    PoissonSampled,
    RandomAllocation,
    TruncatedPoisson,
    calibrate_noise_multiplier,
    epsilon,
    epsilon_bounds,
    poisson_steps,
)
from hushgrad.accounting.risk import trade_off_curve
from hushgrad.accounting.saddle_point.contour import saddle_point
from hushgrad.accounting.saddle_point.loss_sum import LossSum
from hushgrad.accounting.saddle_point.step_measure import REMOVE, SampledStep
from hushgrad.errors import AccountingError
from hushgrad.sampling import TruncatedPoissonSampling

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 60.0
ROOMS = (
    (0.01, 10_000, 1.0, 1000, 1e-5),
    (256 / 60_000, 60_000, 1.1, 3500, 1e-5),
    (0.05, 2000, 2.0, 500, 1e-5),
    (0.01, 10_000, 1.0, 1000, 1e-9),
    (0.01, 1_000_000, 1.0, 1000, 1e-5),
    (1e-4, 10_000_000, 1.0, 10_000, 1e-8),
)
TAILS = (
    (0.001, 0.7, 100_000, 1e-11),
    (0.01, 1.0, 1000, 1e-12),
    (0.01, 1.0, 1000, 1e-15),
    (0.001, 1.0, 1_000_000, 1e-10),
    (0.004266666666666667, 1.1, 14_062, 1e-12),
    (0.05, 2.0, 2000, 1e-13),
)

PASSES = (
    (0.6, 100, 1),
    (0.8, 100, 1),
    (1.0, 100, 1),
    (1.0, 32, 1),
    (1.0, 32, 15),
    (1.5, 32, 15),
    (2.0, 32, 15),
    (0.7, 1000, 3),
    (1.0, 235, 15),
)
"""Noise multiplier, bins, passes."""

Plan = tuple[float, float, int, float]
"""Sampling rate, noise multiplier, steps, delta."""


def dp_accounting_pld(plan: Plan) -> float:
    """Return the epsilon of dp-accounting's PLDAccountant with its defaults."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.pld import PLDAccountant

    rate, noise, steps, delta = plan
    accountant = PLDAccountant()
    accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps)
    return float(accountant.get_epsilon(delta))


def opacus_prv(plan: Plan) -> float:
    """Return the epsilon of Opacus' PRVAccountant with its defaults."""
    from opacus.accountants import PRVAccountant

    rate, noise, steps, delta = plan
    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps)]
    return float(accountant.get_epsilon(delta))


def _answer(method: Callable[[Plan], float], plan: Plan, pipe: Any) -> None:
    try:
        before = time.process_time()
        value = method(plan)
        pipe.send((value, time.process_time() - before))
    except Exception as error:  # a foreign library's failure is its answer
        pipe.send((type(error).__name__, math.nan))


def limited(method: Callable[[Plan], float], plan: Plan) -> tuple[float | str, float]:
    """Return the value and the CPU seconds of a method, or why there is none."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_answer, args=(method, plan, theirs))
    process.start()
    try:
        return ours.recv() if ours.poll(LIMIT + 15) else (f"> {LIMIT:g} s", math.nan)
    finally:
        process.kill()
        process.join()


def afresh(question: Callable[[], Any]) -> tuple[Any, float]:
    """Return the answer and its CPU seconds; nothing is remembered from earlier."""
    from hushgrad.accounting.saddle_point import accountant as module
    from hushgrad.accounting.saddle_point import search, step_measure

    for cached in (search.of_direction, module._delta_of_direction, step_measure.measure, step_measure._interval):
        cached.cache_clear()
    before = time.process_time()
    return question(), time.process_time() - before


def ours(plan: Plan) -> tuple[float, float, float]:
    """Return the upper bound, the error bound and the CPU seconds; nothing is remembered from earlier."""
    rate, noise, steps, delta = plan
    bounds, spent = afresh(lambda: epsilon_bounds([(PoissonSampled(rate, noise), steps)], delta))
    return bounds.upper, bounds.error, spent


def simulated(plan: Plan, epsilon: float, draws: int) -> tuple[float, float]:
    """Return δ(`epsilon`) in the direction "remove" by importance sampling, and its standard error.

    Each step's loss is drawn under the tilt e^{c·L} at the saddle point, from a table of 1,000 cells per standard
    deviation; the weight of a run of steps is e^{T·K(c) − c·ΣL}. Nothing of the accountant enters but the choice of c.
    """
    rate, noise, steps, delta = plan
    tilt = saddle_point(LossSum(((SampledStep(rate, noise, REMOVE), steps),), 0.0, 1e-8 * delta), epsilon)
    chance = np.random.default_rng(20240611)
    x = np.arange(-10 * noise, 1 + 10 * noise, noise / 1000)
    loss = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * noise**2))
    log_weights = -((x / noise) ** 2) / 2 - math.log(1000 * math.sqrt(2 * math.pi)) + loss + tilt * loss
    cumulant = float(logsumexp(log_weights))
    cells = np.exp(log_weights - cumulant)
    cells /= cells.sum()
    values = np.empty(draws)
    for i in range(draws):
        total = float(chance.multinomial(steps, cells) @ loss)
        values[i] = max(-math.expm1(min(epsilon - total, 1.0)), 0.0) * math.exp(steps * cumulant - tilt * total)
    return float(values.mean()), float(values.std() / math.sqrt(draws))


def _table(heads: list[str], rows: list[list[str]]) -> None:
    click.echo("| " + " | ".join(heads) + " |")
    click.echo("|" + "---|" * len(heads))
    for row in rows:
        click.echo("| " + " | ".join(row) + " |")


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


@click.group()
def main() -> None:
    """Measure the accountants."""


@main.command()
@click.option("--ours-only", is_flag=True, help="Leave the other libraries out.")
def times(ours_only: bool) -> None:
    """Print CPU seconds on the reference table."""
    table = json.loads((ROOT / "tests" / "accounting" / "golden" / "accounting.json").read_text())["rows"]
    rows, seconds = [], []
    for row in table:
        plan = (row["sampling_rate"], row["noise_multiplier"], row["steps"], row["delta"])
        value, error, spent = ours(plan)
        seconds.append(spent)
        cells = [row["name"], f"{value:.7g}", f"{error:.1e}", f"{spent:.2f}"]
        for method in () if ours_only else (dp_accounting_pld, opacus_prv):
            other, spent = limited(method, plan)
            cells += [_shown(other), f"{spent:.2f}"]
        rows.append(cells)
    heads = ["row", "ε", "error at most", "s"]
    _table(heads if ours_only else [*heads, "dp-accounting PLD", "s", "Opacus PRV", "s"], rows)
    click.echo(f"\nmedian {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s")
    before = time.process_time()
    epsilon_bounds([(PoissonSampled(0.01, 1 + i / 1000), 1) for i in range(1000)], 1e-5)
    click.echo(f"1,000 different noise levels {time.process_time() - before:.2f} s")
    for rate, steps, target, delta in ((0.01, 1000, 3.0, 1e-5), (0.004, 14_000, 1.0, 1e-6), (0.001, 10**6, 8.0, 1e-10)):
        before = time.process_time()
        calibrate_noise_multiplier(target_epsilon=target, target_delta=delta, composition=poisson_steps(rate, steps))
        click.echo(f"calibration to ({target:g}, {delta:g}), {steps} steps {time.process_time() - before:.2f} s")
    before = time.process_time()
    most = Budget(3.0, 1e-6).most(lambda count: [(PoissonSampled(0.004, 1.1), count)])
    click.echo(f"budget of ({3.0:g}, 1e-06): {most} steps {time.process_time() - before:.2f} s")


@main.command(name="random")
@click.option("--plans", default=1000, show_default=True)
@click.option("--pld-every", default=1, show_default=True, help="Ask pld, which is slow, only on every so many plans.")
@click.option("--seconds", default=math.inf, help="Stop after this time, and say how many plans were tried.")
@click.option("--seed", default=5, show_default=True)
def random_plans(plans: int, pld_every: int, seconds: float, seed: int) -> None:
    """Compare with privacy loss distributions (delta >= 1e-8) and Rényi bounds (all) on random plans."""
    chance = random.Random(seed)
    spent_on: list[float] = []
    errors: list[float] = []
    beyond: list[float] = []
    wrong, refused, against_pld = 0, 0, 0
    end = time.monotonic() + seconds
    for number in range(plans):
        if time.monotonic() > end:
            break
        least = -8 if number % 3 else -15
        plan = (
            10 ** chance.uniform(-6, 0), 10 ** chance.uniform(math.log10(0.3), math.log10(50)),
            int(10 ** chance.uniform(0, 6)), 10 ** chance.uniform(least, -3),
        )  # fmt: skip
        value, error, spent = ours(plan)
        spent_on.append(spent)
        errors.append(error / value if value else 0.0)
        if not (0 <= error <= value < math.inf):
            wrong += 1
            click.echo(f"not a bound: {plan} {value} {error}")
        composition = [(PoissonSampled(plan[0], plan[1]), plan[2])]
        for name in ("pld", "rdp") if number % pld_every == 0 else ("rdp",):
            try:
                other = epsilon_bounds(composition, plan[3], name).upper
            except AccountingError:
                refused += 1
                continue
            if other < (value - error) * (1 - 1e-9):
                wrong += 1
                click.echo(f"{name} {other} below the lower bound {value - error}: {plan}")
            if name == "pld":
                against_pld += 1
                beyond.append(other / value - 1 if value > 1e-6 else 0.0)
    ordered = sorted(spent_on)
    plans = len(ordered)
    click.echo(
        f"{plans} plans, {against_pld} of them also by pld, {refused} answers refused by pld or rdp; contradictions: "
        f"{wrong}\nseconds: median {ordered[plans // 2]:.3f}, 99% {ordered[int(plans * 0.99)]:.2f}, worst "
        f"{ordered[-1]:.2f}\nstated error / ε: median {statistics.median(errors):.1e}, worst {max(errors):.1e}\n"
        f"pld over saddle-point: median {statistics.median(beyond):.1e}, least {min(beyond):.1e}, most "
        f"{max(beyond):.1e}"
    )


@main.command()
@click.option("--draws", default=20_000, show_default=True)
def tails(draws: int) -> None:
    """Print what everybody says at small deltas, and δ at that ε by simulation: above δ, the ε is too small."""
    rows = []
    for plan in TAILS:
        rate, noise, steps, delta = plan
        value, error, _ = ours(plan)
        count = max(200, min(draws, 20_000_000 // steps * 100))
        for name, (said, _) in (
            ("hushgrad", (value, 0.0)),
            ("dp-accounting PLD", limited(dp_accounting_pld, plan)),
            ("Opacus PRV", limited(opacus_prv, plan)),
        ):
            if isinstance(said, str) or not math.isfinite(said):
                rows.append([f"q={rate:.4g}, σ={noise:g}, T={steps}, δ={delta:g}", name, _shown(said), "", ""])
                continue
            found, deviation = simulated(plan, said, count)
            verdict = "too small" if found - 5 * deviation > delta else "holds" if found <= delta * 1.1 else ""
            rows.append([
                f"q={rate:.4g}, σ={noise:g}, T={steps}, δ={delta:g}", name, f"{said:.6g}",
                f"{found:.3g} ± {deviation:.1g}", verdict,
            ])  # fmt: skip
        click.echo(f"{plan}: ours ± {error:.1e}", err=True)
    _table(["plan", "accountant", "ε", "δ at that ε, simulated", ""], rows)


@main.command()
def rooms() -> None:
    """Print by how much truncation raises ε, with room of so many standard deviations above the expected size."""
    widths, rows = (4, 5, 6, 8), []
    for rate, population, noise, steps, delta in ROOMS:
        plain = epsilon([(PoissonSampled(rate, noise), steps)], delta)
        row = [f"q={rate:.4g}, N={population}, σ={noise:g}, T={steps}, δ={delta:g}", f"{plain:.5g}"]
        for width in widths:
            most = TruncatedPoissonSampling.with_room(rate, population, standard_deviations=width).max_batch_size
            truncated = epsilon([(TruncatedPoisson(rate, noise, population, most), steps)], delta)
            row.append(f"{most}: +{truncated / plain - 1:.1e}")
        rows.append(row)
    _table(["plan", "ε of Poisson sampling", *(f"{width} standard deviations" for width in widths)], rows)


@main.command()
def passes() -> None:
    """Print what passes over random batches (balls in bins) cost at delta = 1e-5, and CPU seconds."""
    from hushgrad.accounting.allocation import one_pass

    print("| σ, t, passes | ε between | how far apart | Poisson at 1/t | without amplification | s | calibration, s |")
    print("|---|---|---|---|---|---|---|")
    for noise, bins, count in PASSES:

        def plan(noise: float, bins: int = bins, count: int = count) -> Any:
            return [(RandomAllocation(bins, noise, index), 1) for index in range(count)]

        for cached in (one_pass.pass_losses, one_pass._ratio):
            cached.cache_clear()
        bounds, spent = afresh(partial(epsilon_bounds, plan(noise), 1e-5))
        target = partial(calibrate_noise_multiplier, target_epsilon=bounds.upper, target_delta=1e-5, composition=plan)
        _, calibrated = afresh(target)
        poisson = epsilon([(PoissonSampled(1 / bins, noise), bins * count)], 1e-5)
        known = epsilon([(DisjointPass(noise, index), 1) for index in range(count)], 1e-5)
        print(
            f"| {noise}, {bins}, {count} | {math.floor(bounds.lower * 1e4) / 1e4} and "
            f"{math.ceil(bounds.upper * 1e4) / 1e4} | "
            f"{bounds.error / bounds.upper:.2%} | {poisson:.4g} | {known:.4g} | {spent:.2f} | {calibrated:.2f} |"
        )


@main.command()
def corners() -> None:
    """Print the median and the worst CPU seconds where the accountants have the most to do."""
    targets, curves, rates = (50.0, 200.0, 400.0, 1000.0, 3000.0, 10_000.0), (0.5, 1.0, 4.0), (1e-4, 1e-3, 0.01, 0.1)
    work: dict[str, dict[str, Callable[[], Any]]] = {"calibration": {}, "few steps": {}, "trade-off at 4 rates": {}}
    for rate, steps in ((0.1, 100), (0.01, 1000), (0.001, 10_000), (0.3, 5), (0.004, 14_000), (0.01, 50), (1e-4, 100)):
        for target in targets:
            work["calibration"][f"q={rate:g}, T={steps}, ε={target:g}"] = partial(
                calibrate_noise_multiplier,
                target_epsilon=target,
                target_delta=1e-5,
                composition=poisson_steps(rate, steps),
            )
    for rate, noise, steps in itertools.product((1e-4, 1e-3, 0.01), (0.4, 0.6, 1.0, 2.0, 8.0), (2, 3, 5, 10, 20, 40)):
        for delta in (1e-5, 1e-8):
            work["few steps"][f"q={rate:g}, σ={noise:g}, T={steps}, δ={delta:g}"] = partial(
                epsilon_bounds, [(PoissonSampled(rate, noise), steps)], delta
            )
    for rate, noise, steps in itertools.product((1e-4, 1e-3, 0.01, 0.1), curves, (3, 10, 40, 1000, 100_000)):
        work["trade-off at 4 rates"][f"q={rate:g}, σ={noise:g}, T={steps}"] = partial(
            trade_off_curve, [(PoissonSampled(rate, noise), steps)], rates
        )
    rows = []
    for name, questions in work.items():
        found = sorted((afresh(question)[1], label) for label, question in questions.items())
        seconds = [spent for spent, _ in found]
        slow = sum(spent > 1 for spent in seconds)
        rows.append([
            name, str(len(found)), f"{statistics.median(seconds):.2f}", f"{seconds[-1]:.1f}", str(slow), found[-1][1],
        ])  # fmt: skip
    _table(["what", "plans", "median s", "worst s", "above 1 s", "the worst one"], rows)


if __name__ == "__main__":
    main()
