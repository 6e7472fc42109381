"""The command: measure within some minutes, write one page and its figures."""

from __future__ import annotations

import datetime
import sys
import time
from pathlib import Path

import click
import torch
from rich.console import Console

from benchmarks import fastdp
from benchmarks.allocators import without_settings
from benchmarks.command import command_line, of_fastdp, of_workloads
from benchmarks.contestants import CONTESTANTS, HUSHGRAD, LEAN, ORDINARY, versions_of
from benchmarks.growth import AXES
from benchmarks.machine import this_machine
from benchmarks.page.document import absentees, html
from benchmarks.page.others import NOTABLE_SHARE
from benchmarks.page.results import Found
from benchmarks.page.run import Plan, run
from benchmarks.workloads import WORKLOADS

NOT_IN_THE_TIME = ("compiled", LEAN, "hushgrad-engine")
"""Contestants of `python -m benchmarks` that the page leaves to it, for the sake of the time."""

DEFAULT = [name for name in CONTESTANTS if name not in NOT_IN_THE_TIME]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=10.0, help="How long it may take.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("benchmarks-out"), help="Folder.")
@of_fastdp
@of_workloads
@click.option(
    "--contestant",
    "contestants",
    type=click.Choice(list(CONTESTANTS)),
    multiple=True,
    help=f"Default: all but {', '.join(NOT_IN_THE_TIME)}. {ORDINARY} and {HUSHGRAD} always take part.",
)
@click.option("--axis", "axes", type=click.Choice(list(AXES)), multiple=True, help="Of the growth. Default: all.")
@click.option("--growth/--no-growth", "with_growth", default=True, help="How step time grows with size.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch. Default: as many as torch takes.")
@click.option(
    "--small", is_flag=True, help="The same networks at the sizes of tests: to try the command, not to measure."
)
def main(
    minutes: float,
    out: Path,
    fastdp_folder: Path | None,
    workloads: tuple[str, ...],
    contestants: tuple[str, ...],
    axes: tuple[str, ...],
    with_growth: bool,
    threads: int | None,
    small: bool,
) -> None:
    """Compare private steps with the ordinary one on this machine, under the allocator as it is and tuned: one page."""
    began = time.time()
    fastdp.name_folder(fastdp_folder)
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console()
    chosen = [name for name in CONTESTANTS if name in {*(contestants or DEFAULT), ORDINARY, HUSHGRAD}]
    missing = {name: why for name in chosen if (why := CONTESTANTS[name].missing()) is not None}
    present = [name for name in chosen if name not in missing]
    machine = this_machine(versions_of(present))
    console.print(f"{machine}. This takes about {minutes:g} minutes; let nothing else run meanwhile.")
    for titles, why in absentees(missing):
        console.print(f"Without {titles}: {why}")
    plan = Plan(
        ends=began + 60 * minutes,
        workloads=list(dict.fromkeys(workloads)) or list(WORKLOADS),
        contestants=present,
        axes=(list(dict.fromkeys(axes)) or list(AXES)) if with_growth else [],
        threads=torch.get_num_threads(),
        one_allocator=without_settings(),
        small=small,
    )
    found_workloads, growth = run(plan, console)
    found = Found(
        command=command_line("benchmarks.page", sys.argv[1:]),
        began=datetime.datetime.fromtimestamp(began).astimezone().isoformat(timespec="minutes"),
        minutes=minutes,
        took_minutes=(time.time() - began) / 60,
        machine=machine,
        missing=missing,
        one_allocator=plan.one_allocator,
        workloads=found_workloads,
        growth=growth,
        small=small,
    )
    _write(found, out, console)
    errors = [work.error for work in found_workloads.values()] + ([growth.error] if growth is not None else [])
    if any(error is not None for error in errors):
        sys.exit(1)


def _write(found: Found, out: Path, console: Console) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmark.json").write_text(found.to_json(), encoding="utf-8")
    page = out / "index.html"
    page.write_text(html(found), encoding="utf-8")
    if disturbed := [name for name, work in found.workloads.items() if (work.others or 0) > NOTABLE_SHARE]:
        console.print(f"[yellow]Other programs were at work during {', '.join(disturbed)}: see the page.[/yellow]")
    console.print(f"Took {found.took_minutes:.1f} minutes. Open {page}", soft_wrap=True)


if __name__ == "__main__":
    main()
