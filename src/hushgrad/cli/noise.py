"""`hushgrad noise`: is noise that is correlated between steps better for a plan, and by how much?"""

from __future__ import annotations

from typing import Any

import click

from hushgrad.cli.options import ACCOUNTANT, DELTA, JSON
from hushgrad.cli.output import print_json, print_table


@click.command()
@click.option("--epsilon", type=float, required=True, help="Epsilon of the whole plan, greater than 0.")
@DELTA
@click.option("--steps", type=int, required=True, help="Number of steps (logical batches).")
@click.option("--sampling-rate", "--sample-rate", "rate", type=float, help="For Poisson sampling: batch size over N.")
@click.option("--steps-per-pass", type=int, help="In its place: batches in a pass, for own batches in a fixed order.")
@click.option("--max-bands", type=int, default=32, show_default=True, help="The most bands to try; b bands keep b - 1 "
              "copies of what is trained.")  # fmt: skip
@ACCOUNTANT
@JSON
def noise(as_json: bool, **plan: Any) -> None:
    """Compare the noise that independent and correlated noise leave in sums of releases, at one epsilon.

    \b
    hushgrad noise --epsilon 2 --delta 1e-6 --steps 1000 --sampling-rate 0.001
    hushgrad noise --epsilon 8 --delta 1e-6 --steps 400 --steps-per-pass 100
    """
    from hushgrad.mechanism.choice import compare_noise

    found = compare_noise(**plan)
    rows = [
        {
            "noise": option.name,
            "bands": option.strategy.bands,
            "noise_multiplier": option.noise_multiplier,
            "rmse": option.rmse,
            "ratio": option.rmse / found.independent.rmse,
            "copies": option.copies,
        }
        for option in (found.independent, *found.correlated)
    ]
    if as_json:
        print_json({"options": rows, "best": found.best.name, "advice": str(found)})
        return
    shown = [
        [
            str(row["noise"]),
            "all" if row["bands"] is None else str(row["bands"]),
            f"{row['noise_multiplier']:.4f}",
            f"{row['rmse']:.4f}",
            f"{row['ratio']:.3f}",
            str(row["copies"]),
        ]
        for row in rows
    ]
    print_table(["noise", "bands", "sigma", "RMSE / C", "ratio", "copies"], shown)
    click.echo(str(found))
