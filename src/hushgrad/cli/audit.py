"""`hushgrad audit`: a lower bound on ε from an attack, beside the ε that is claimed."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from hushgrad.checks.auditing.audit import audit as run_audit
from hushgrad.cli.options import JSON
from hushgrad.cli.output import print_result
from hushgrad.clipping.flat import FlatClipping
from hushgrad.mechanism import DPSGD
from hushgrad.result_file import claim_file
from hushgrad.sampling.poisson import PoissonSampling


@click.command()
@click.option("--noise-multiplier", type=float, required=True, help="Standard deviation of the noise over C.")
@click.option("--sampling-rate", type=float, default=1.0, show_default=True, help="Of the canaries, in each step.")
@click.option("--steps", type=int, default=20, show_default=True)
@click.option("--canaries", type=int, default=2000, show_default=True)
@click.option("--delta", type=float, required=True, help="In (0, 1).")
@click.option("--confidence", type=float, default=0.99, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the result as JSON, too.")
@JSON
def audit(
    noise_multiplier: float,
    sampling_rate: float,
    steps: int,
    canaries: int,
    delta: float,
    confidence: float,
    out: Path | None,
    as_json: bool,
) -> None:
    """Attack a private session with canaries and print lower bounds on epsilon beside the claim.

    \b
    hushgrad audit --noise-multiplier 1 --delta 1e-5
    hushgrad audit --noise-multiplier 1 --sampling-rate 0.1 --steps 50 --delta 1e-5 --out run/audit.json

    As audit.json in a run's folder the bounds stand in its report.

    Exits with 1 if a bound is above the claim.
    """
    mechanism = DPSGD(
        noise_multiplier=noise_multiplier,
        clipping=FlatClipping(1.0),
        sampling=PoissonSampling(sampling_rate),
        expected_batch_size=max(1.0, sampling_rate * canaries / 2),
    )
    if out is not None:
        claim_file("--out", out)  # rather now than after measuring
    report = run_audit(mechanism, delta=delta, confidence=confidence, canaries=canaries, steps=steps)
    print_result(report, out, as_json=as_json)
    sys.exit(0 if report.passed else 1)
