"""`hushgrad machine`: the constants by which the cheapest way to norms and sums is chosen, and measuring them."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
import torch

from hushgrad.cli.options import JSON
from hushgrad.cli.output import print_table
from hushgrad.errors import InvalidArgumentError
from hushgrad.gradients.machine import Machine, is_measured, machine_file, machine_of, write_machine
from hushgrad.gradients.machine_measurement import measure_machine
from hushgrad.printable import printable

MEANINGS = {
    "multiply_add": "ns for one multiplication and addition in a matrix product",
    "gram_multiply_add": "ns for one in Gram matrices",
    "formed": "ns for one value of a per-example gradient that is formed and kept",
    "convolved": "ns for the same by convolutions",
    "unfolded": "ns for one value that is unfolded",
    "moved": "ns for one value in an element-wise operation",
    "keep_bytes": "bytes that per-example gradients may take beyond what they replace",
    "sum_bytes": "bytes that clipped sums of a sharded model may take whole in each process",
    "operand_bytes": "bytes that operands of a physical batch may take until its norms are known",
}


@click.command()
@click.option("--measure", is_flag=True, help="Measure this machine and keep the constants; a few seconds.")
@click.option("--device", "device_name", default="cpu", show_default=True, help="The device: cpu, cuda, ...")
@JSON
def machine(measure: bool, device_name: str, as_json: bool) -> None:
    """Show the constants by which ways to norms and clipped sums are chosen, or measure them.

    All ways are exact, so these change times and memory, never a result beyond rounding. Without --measure the ones
    that were measured here are shown, or those that come with the package. The file is named by HUSHGRAD_MACHINE, or
    lies in the cache folder; to go back to what comes with the package, delete it.

    \b
    hushgrad machine
    hushgrad machine --measure
    """
    try:
        device = torch.empty(0, device=device_name).device
    except (RuntimeError, AssertionError):
        raise InvalidArgumentError(
            f"torch has no device {printable(device_name)!r} here", cure="Leave --device out for the CPU"
        ) from None
    if measure:
        constants = measure_machine(device)
        write_machine(device.type, constants)
    else:
        constants = machine_of(device)
    if as_json:
        click.echo(json.dumps({"device": device.type, "is_measured": is_measured(device), **asdict(constants)}))
        return
    _print(constants, device)


def _print(constants: Machine, device: torch.device) -> None:
    print_table(
        ("constant", "value", "meaning"),
        [
            (name, f"{value:,}" if isinstance(value, int) else f"{value:.3g}", MEANINGS[name])
            for name, value in asdict(constants).items()
        ],
        right=("value",),
    )
    click.echo()
    where = f"measured, in {machine_file()}" if is_measured(device) else "as they come with the package"
    click.echo(f"{device.type}: {where}")
