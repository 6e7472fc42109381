"""`hushgrad calibrate`: the noise multiplier that a plan needs for a target ε."""

from __future__ import annotations

from typing import Any

import click

from hushgrad.accounting.accountants import ACCOUNTANTS, DEFAULT_ACCOUNTANT
from hushgrad.accounting.calibration import calibrate_noise_multiplier
from hushgrad.accounting.guarantee import guarantee, round_up
from hushgrad.cli.output import print_facts, print_json
from hushgrad.cli.plan import plan_from, plan_options


@click.command()
@click.option("--epsilon", "target_epsilon", type=float, required=True, help="Target epsilon, greater than 0.")
@click.option("--delta", type=float, required=True, help="In (0, 1); usual: less than 1 / the number of records.")
@plan_options
@click.option("--accountant", type=click.Choice(sorted(ACCOUNTANTS)), default=DEFAULT_ACCOUNTANT, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def calibrate(target_epsilon: float, delta: float, accountant: str, as_json: bool, **plan: Any) -> None:
    """Find the smallest noise multiplier that keeps a plan within a target epsilon.

    \b
    hushgrad calibrate --epsilon 3 --delta 1e-5 --sampling-rate 0.01 --steps 1000
    hushgrad calibrate --epsilon 3 --delta 1e-5 --batch-size 256 --dataset-size 60000 --epochs 15
    """
    planned = plan_from(**plan)
    noise_multiplier = calibrate_noise_multiplier(
        target_epsilon=target_epsilon, target_delta=delta, composition=planned.composition, accountant=accountant
    )
    result = guarantee(planned.composition(noise_multiplier), delta, accountant)
    facts = {"target_epsilon": target_epsilon, **planned.facts}
    if as_json:
        print_json({"noise_multiplier": noise_multiplier, **facts, **result.as_json()})
    else:
        shown = {"noise_multiplier": round_up(noise_multiplier, 6), "epsilon": round_up(result.epsilon), "delta": delta}
        print_facts({**shown, **facts, "accountant": accountant}, str(result))
