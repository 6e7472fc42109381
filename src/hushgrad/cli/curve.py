"""`hushgrad curve`: ε over δ, and what a membership attack can achieve, of a plan or a ledger."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import click

from hushgrad.accounting.accountants import epsilon_bounds
from hushgrad.accounting.guarantee import delta_text, round_up
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.accounting.risk import gaussian_mu, membership_advantage, true_positive_rate
from hushgrad.arguments import non_negative_number
from hushgrad.cli.options import JSON, LEDGER
from hushgrad.cli.output import print_json, print_table, say
from hushgrad.cli.plan import plan_from, plan_options
from hushgrad.extras import require
from hushgrad.result_file import claim_file, write_file

DELTAS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12, 1e-15)
RATES = (1e-4, 1e-3, 1e-2, 0.1, 0.25, 0.5)


@click.command()
@click.option("--noise-multiplier", type=float, help="Standard deviation of the noise over the clip norm.")
@plan_options
@LEDGER
@click.option("--png", type=click.Path(dir_okay=False), help="Also draw both curves into this file.")
@JSON
def curve(noise_multiplier: float | None, ledger: str | None, png: str | None, as_json: bool, **plan: Any) -> None:
    """Print epsilon over delta, and the power of the best membership attack over its false-positive rate.

    \b
    hushgrad curve --noise-multiplier 1.1 --sampling-rate 0.01 --steps 1000 --png curve.png
    hushgrad curve --ledger run/ledger.jsonl
    """
    if png is not None:
        require("matplotlib", extra="report", what="--png")  # rather now than after computing
        claim_file("--png", png)
    if ledger is not None:
        if noise_multiplier is not None or any(value is not None for name, value in plan.items() if name != "sampling"):
            raise click.UsageError("--ledger says what ran; give no plan beside it")
        composition = read_ledger(ledger).events
    else:
        if noise_multiplier is None:
            raise click.UsageError("give --noise-multiplier and a plan, or --ledger")
        sigma = non_negative_number("noise_multiplier", noise_multiplier)
        composition = list(plan_from(**plan).composition(sigma))
    epsilons = [(delta, epsilon_bounds(composition, delta)) for delta in DELTAS]
    powers = [(rate, true_positive_rate(composition, rate)) for rate in RATES]
    advantage, mu = membership_advantage(composition), gaussian_mu(composition)
    if png is not None:
        _draw(Path(png), [(delta, bounds.upper) for delta, bounds in epsilons], powers)
    if as_json:
        print_json(
            {
                "epsilon": [
                    {"delta": delta, "epsilon": _number(bounds.upper), "numerical_error": bounds.error}
                    for delta, bounds in epsilons
                ],
                "attack": [{"false_positive_rate": rate, "true_positive_rate": power} for rate, power in powers],
                "membership_advantage": advantage,
                "gaussian_mu": mu,
            }
        )
        return
    print_table(
        ["delta", "epsilon", "error at most"],
        [[delta_text(delta), round_up(bounds.upper), round_up(bounds.error, 2)] for delta, bounds in epsilons],
    )
    click.echo()
    print_table(
        ["false positives", "true positives at most"], [[f"{rate:g}", round_up(power)] for rate, power in powers]
    )
    click.echo()
    say(
        f"Membership advantage at most {round_up(advantage)}. At least as private as {round_up(mu)}-GDP at every "
        f"delta >= 1e-10."
    )


def _number(value: float) -> float | str:
    return "inf" if value == float("inf") else value


def _draw(path: Path, epsilons: list[tuple[float, float]], powers: list[tuple[float, float]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.semilogx([delta for delta, _ in epsilons], [value for _, value in epsilons], marker="o", markersize=3)
    left.set(xlabel="δ", ylabel="ε", title="(ε, δ)")
    right.loglog([rate for rate, _ in powers], [power for _, power in powers], marker="o", markersize=3)
    right.loglog([1e-4, 1], [1e-4, 1], color="0.6", linestyle=":", linewidth=1)
    right.set(xlabel="false-positive rate", ylabel="true-positive rate, at most", title="membership attack")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    write_file("--png", path, drawn.getvalue())
