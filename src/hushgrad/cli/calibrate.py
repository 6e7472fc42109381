"""`hushgrad calibrate`: what a plan needs (noise), or allows (steps, rate), for a target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from hushgrad.accounting.accountants import epsilon as epsilon_of
from hushgrad.accounting.budget import Budget
from hushgrad.accounting.calibration import calibrate_noise_multiplier
from hushgrad.accounting.composition import Composition
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.accounting.guarantee import guarantee, round_up
from hushgrad.arguments import positive_number, probability, whole_number
from hushgrad.cli.options import ACCOUNTANT, DELTA, GROUP_SIZE, JSON
from hushgrad.cli.output import print_facts, print_json
from hushgrad.cli.plan import plan_from, plan_options

NOISE, STEPS, RATE = "noise-multiplier", "steps", "sampling-rate"
LEAST_RATE, MOST_STEPS = 1e-7, 10**7
LEAST_NOISE, MOST_NOISE = 0.1, 1e4

Cost = Callable[[Composition], float]


@click.command()
@click.option("--epsilon", "target_epsilon", type=float, help="Target epsilon, greater than 0.")
@click.option("--mu", "target_mu", type=float, help="In place of --epsilon: a target mu of Gaussian privacy.")
@click.option(
    "--true-positive-rate",
    type=float,
    help="In place of --epsilon: the most power of a membership attack with --false-positive-rate.",
)
@click.option("--false-positive-rate", type=float, help="With --true-positive-rate.")
@DELTA
@click.option(
    "--find",
    type=click.Choice([NOISE, STEPS, RATE]),
    default=NOISE,
    show_default=True,
    help="What to find: the least noise, the most steps, or the largest sampling rate.",
)
@click.option("--noise-multiplier", type=float, help="With --find steps or sampling-rate.")
@plan_options
@GROUP_SIZE
@ACCOUNTANT
@JSON
def calibrate(
    target_epsilon: float | None,
    target_mu: float | None,
    true_positive_rate: float | None,
    false_positive_rate: float | None,
    delta: float,
    find: str,
    noise_multiplier: float | None,
    group_size: int,
    accountant: str,
    as_json: bool,
    **plan: Any,
) -> None:
    """Find the least noise, the most steps or the largest sampling rate that keep a plan within a target.

    \b
    hushgrad calibrate --epsilon 3 --delta 1e-5 --sampling-rate 0.01 --steps 1000
    hushgrad calibrate --epsilon 3 --delta 1e-5 --batch-size 256 --dataset-size 60000 --epochs 15
    hushgrad calibrate --epsilon 3 --delta 1e-5 --find steps --sampling-rate 0.01 --noise-multiplier 1.1
    hushgrad calibrate --epsilon 3 --delta 1e-5 --sampling-rate 0.01 --steps 1000 --group-size 16
    hushgrad calibrate --mu 0.5 --delta 1e-5 --find sampling-rate --steps 1000 --noise-multiplier 1.1
    """
    if group_size != 1 and (find != NOISE or target_epsilon is None):
        raise click.UsageError("--group-size goes with --epsilon, and --find noise-multiplier")
    target, facts = _target(target_epsilon, target_mu, true_positive_rate, false_positive_rate)
    cost = _cost(delta, accountant, target_mu, false_positive_rate)
    if find == NOISE:
        if noise_multiplier is not None:
            raise click.UsageError("--noise-multiplier is what is found; give it with --find steps or sampling-rate")
        planned = plan_from(**plan)
        composition, facts = planned.composition, {**facts, **planned.facts}
        found = (
            _noise(composition, cost, target)
            if target_epsilon is None
            else calibrate_noise_multiplier(
                target_epsilon=target,
                target_delta=delta,
                composition=composition,
                accountant=accountant,
                group_size=group_size,
            )
        )
        released = composition(found)
    else:
        if noise_multiplier is None:
            raise click.UsageError(f"--find {find} needs --noise-multiplier")
        sigma = positive_number("noise_multiplier", noise_multiplier)
        facts = {**facts, "noise_multiplier": sigma}
        if find == STEPS:
            rate = _rate(**plan)
            facts["sampling_rate"] = rate
            found = _steps(rate, sigma, cost, target, delta, accountant, is_epsilon=target_epsilon is not None)
            released = [(PoissonSampled(rate, sigma), int(found))]
        else:
            steps = _only_steps(**plan)
            facts["steps"] = steps
            found = _largest_rate(sigma, steps, cost, target)
            released = [(PoissonSampled(found, sigma), steps)]
    if group_size != 1:
        facts["group_size"] = group_size
    result = guarantee(released, delta, accountant, group_size=group_size)
    name = find.replace("-", "_")
    if as_json:
        print_json({name: int(found) if find == STEPS else found, **facts, **result.as_json()})
        return
    text = str(int(found)) if find == STEPS else round_up(found, 6) if find == NOISE else f"{found:.12g}"
    shown = {name: text, "epsilon": round_up(result.epsilon), "delta": delta}
    print_facts({**shown, **facts, "accountant": accountant}, str(result))


def _target(
    epsilon: float | None, mu: float | None, power: float | None, false_positive_rate: float | None
) -> tuple[float, dict[str, Any]]:
    if sum(value is not None for value in (epsilon, mu, power)) != 1:
        raise click.UsageError("give one of --epsilon, --mu and --true-positive-rate")
    if (power is None) != (false_positive_rate is None):
        raise click.UsageError("give --true-positive-rate and --false-positive-rate together")
    if epsilon is not None:
        return positive_number("target_epsilon", epsilon), {"target_epsilon": epsilon}
    if mu is not None:
        return positive_number("target_mu", mu), {"target_mu": mu}
    assert power is not None
    facts = {"target_true_positive_rate": power, "false_positive_rate": false_positive_rate}
    return positive_number("true_positive_rate", power), facts


def _cost(delta: float, accountant: str, mu: float | None, false_positive_rate: float | None) -> Cost:
    from hushgrad.accounting import risk

    if mu is not None:
        return risk.gaussian_mu
    if false_positive_rate is not None:
        return lambda composition: risk.true_positive_rate(composition, false_positive_rate)
    return lambda composition: epsilon_of(composition, delta, accountant)


def _noise(composition: Callable[[float], Composition], cost: Cost, target: float) -> float:
    from hushgrad.accounting.search import smallest

    return smallest(lambda sigma: cost(composition(sigma)), target=target, low=LEAST_NOISE, high=MOST_NOISE)


def _steps(
    rate: float, sigma: float, cost: Cost, target: float, delta: float, accountant: str, *, is_epsilon: bool
) -> float:
    def plan(count: float) -> Composition:
        return [(PoissonSampled(rate, sigma), int(count))]

    if is_epsilon:
        return Budget(target, delta, accountant).most(plan)
    from hushgrad.accounting.search import largest

    return largest(lambda count: cost(plan(count)), target=target, low=1, high=MOST_STEPS, whole=True)


def _largest_rate(sigma: float, steps: int, cost: Cost, target: float) -> float:
    from hushgrad.accounting.search import largest

    return largest(
        lambda rate: cost([(PoissonSampled(min(rate, 1.0), sigma), steps)]), target=target, low=LEAST_RATE, high=1.0
    )


def _rate(
    sampling: str, sampling_rate: float | None, batch_size: int | None, dataset_size: int | None, **rest: Any
) -> float:
    if sampling != "poisson" or any(value is not None for value in rest.values()):
        raise click.UsageError(
            "--find steps takes --sampling-rate, or --batch-size and --dataset-size, and no other plan"
        )
    if sampling_rate is not None:
        return probability("sampling_rate", sampling_rate)
    if batch_size is None or dataset_size is None:
        raise click.UsageError("--find steps needs --sampling-rate, or --batch-size and --dataset-size")
    size, records = (
        whole_number("batch_size", batch_size, minimum=1),
        whole_number("dataset_size", dataset_size, minimum=1),
    )
    return probability("sampling_rate = batch_size / dataset_size", size / records)


def _only_steps(sampling: str, steps: int | None, **rest: Any) -> int:
    if sampling != "poisson" or steps is None or any(value is not None for value in rest.values()):
        raise click.UsageError("--find sampling-rate takes --steps and --noise-multiplier, and no other plan")
    return whole_number("steps", steps, minimum=1)
