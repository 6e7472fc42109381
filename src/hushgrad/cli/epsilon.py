"""`hushgrad epsilon`: what a plan would cost, or what a ledger says a run has cost."""

from __future__ import annotations

from typing import Any

import click

from hushgrad.accounting.composition import Composition
from hushgrad.accounting.cross_check import cross_check as check_all
from hushgrad.accounting.guarantee import guarantee, round_up
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.arguments import non_negative_number
from hushgrad.cli.options import ACCOUNTANT, DELTA, GROUP_SIZE, JSON, LEDGER
from hushgrad.cli.output import print_facts, print_json
from hushgrad.cli.plan import plan_from, plan_options


@click.command()
@click.option(
    "--noise-multiplier", type=float, help="Standard deviation of the noise over the clip norm; 0 is not private."
)
@plan_options
@LEDGER
@DELTA
@GROUP_SIZE
@ACCOUNTANT
@click.option("--cross-check", is_flag=True, help="Also ask the other accountants; exit code 1 where they disagree.")
@JSON
def epsilon(
    noise_multiplier: float | None,
    ledger: str | None,
    delta: float,
    group_size: int,
    accountant: str,
    cross_check: bool,
    as_json: bool,
    **plan: Any,
) -> None:
    """Compute the epsilon of a plan or of a ledger.

    \b
    hushgrad epsilon --noise-multiplier 1.1 --sampling-rate 0.01 --steps 1000 --delta 1e-5
    hushgrad epsilon --noise-multiplier 1.1 --batch-size 256 --dataset-size 60000 --epochs 15 --delta 1e-5
    hushgrad epsilon --noise-multiplier 4 --sampling none --passes 10 --delta 1e-5
    hushgrad epsilon --ledger run/ledger.jsonl --delta 1e-5
    hushgrad epsilon --ledger run/ledger.jsonl --delta 1e-5 --group-size 16
    """
    facts: dict[str, Any]
    if ledger is not None:
        if noise_multiplier is not None or any(value is not None for name, value in plan.items() if name != "sampling"):
            raise click.UsageError("--ledger says what ran; give no plan beside it")
        view = read_ledger(ledger)
        composition: Composition = view.events
        result = guarantee(composition, delta, accountant, view.contract, view.conditions, group_size)
        facts = {"ledger": ledger, "steps": view.steps}
    else:
        if noise_multiplier is None:
            raise click.UsageError("give --noise-multiplier and a plan, or --ledger")
        sigma = non_negative_number("noise_multiplier", noise_multiplier)
        planned = plan_from(**plan)
        composition = planned.composition(sigma)
        result = guarantee(composition, delta, accountant, group_size=group_size)
        facts = {"noise_multiplier": sigma, **planned.facts}
    others = {}
    if group_size != 1:
        facts["group_size"] = group_size
    if cross_check:
        if group_size != 1:
            raise click.UsageError("--cross-check asks accountants of which one alone computes --group-size")
        checked = check_all(composition, delta)
        others = {f"epsilon_by_{name}".replace("-", "_"): bounds.upper for name, bounds in checked.items()}
    if as_json:
        print_json({**facts, **others, **result.as_json()})
    else:
        shown = {name: round_up(value, 6) for name, value in others.items()}
        print_facts(
            {"epsilon": round_up(result.epsilon), "delta": delta, **facts, "accountant": accountant, **shown},
            str(result),
        )
