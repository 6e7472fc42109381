"""What the commands have in common: options, and the command that measures the same again, as results report it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks import fastdp
from benchmarks.workloads import WORKLOADS

of_workloads = click.option(
    "--workload", "workloads", type=click.Choice(list(WORKLOADS)), multiple=True, help="Default: all."
)

of_fastdp = click.option(
    "--fastdp",
    "fastdp_folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help=f"The source of fastDP, which isn't in the registry. Default: ${fastdp.VARIABLE}.",
)

PLACES = {"--json": None, "--out": None, "--growth": "FILE", "--fastdp": "FOLDER"}
"""Options that name a place, and what stands for it in the command; None leaves the option out."""


def command_line(module: str, arguments: Sequence[str]) -> str:
    """Return how a module was called; no file and no folder is named."""
    kept = []
    remaining = iter(arguments)
    for argument in remaining:
        option, is_joined, _ = argument.partition("=")
        if option not in PLACES:
            kept.append(argument)
            continue
        if not is_joined:
            next(remaining, None)
        place = PLACES[option]
        kept += [] if place is None else [option, place]
    return shlex.join(["python", "-m", module, *kept])
