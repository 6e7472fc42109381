"""`python -m benchmarks`: measure, print, and on request write the figures where the documentation shows them."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import click
import torch
from rich.console import Console

from benchmarks import fastdp
from benchmarks.allocators import ALLOCATORS, STEADY_ALLOCATOR, is_steady
from benchmarks.command import command_line, of_fastdp, of_workloads
from benchmarks.contestants import CONTESTANTS, HUSHGRAD, ORDINARY, versions_of
from benchmarks.eligibility import failure, update
from benchmarks.growth import AXES, GrowthResults, draw, grow, growth_table
from benchmarks.machine import Machine, this_machine
from benchmarks.memory import is_supported, peak_in_own_process
from benchmarks.noise import noise_times
from benchmarks.peers import quiet_remarks
from benchmarks.profile import profile
from benchmarks.report import full_markdown, print_results, print_table, short_markdown, write_between_markers
from benchmarks.results import Results, WorkloadResult, contestant_results
from benchmarks.timing import FEWEST_ROUNDS, interleave
from benchmarks.workloads import WORKLOADS

WIDTH_OF_FILES = 150

ROOT = Path(__file__).resolve().parent.parent


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@of_workloads
@click.option(
    "--contestant",
    "contestants",
    type=click.Choice(list(CONTESTANTS)),
    multiple=True,
    help=f"Default: all. {ORDINARY} and {HUSHGRAD} always take part.",
)
@click.option("--pairs", type=click.IntRange(min=FEWEST_ROUNDS), default=60, help="Recorded rounds.")
@click.option("--warm-up", type=click.IntRange(min=1), default=10, help="Rounds before them.")
@click.option("--threads", type=click.IntRange(min=1), default=2, help="Threads of torch.")
@click.option(
    "--allocator",
    type=click.Choice(ALLOCATORS),
    default="steady",
    help="steady: glibc keeps memory that a step freed, for all contestants alike.",
)
@click.option("--memory/--no-memory", default=True, help="Peak memory, in a process for each contestant (Linux).")
@click.option("--noise", "with_noise", is_flag=True, help="Time noise alone, against torch's.")
@click.option("--profile", "with_profile", is_flag=True, help="Where hushgrad's step spends its time.")
@click.option(
    "--growth",
    "growth_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="NAME.png",
    help="Instead of the workloads: step time against batch, positions, width and depth. Writes a plot here, and its "
    "figures beside it as NAME.json.",
)
@click.option("--axis", "axes", type=click.Choice(list(AXES)), multiple=True, help="Of --growth. Default: all.")
@of_fastdp
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here.")
@click.option(
    "--write-readme",
    is_flag=True,
    help="Put the tables between the benchmark markers of README.md and docs/results/step-time.md.",
)
def main(
    workloads: tuple[str, ...],
    contestants: tuple[str, ...],
    pairs: int,
    warm_up: int,
    threads: int,
    allocator: str,
    memory: bool,
    with_noise: bool,
    with_profile: bool,
    growth_path: Path | None,
    axes: tuple[str, ...],
    fastdp_folder: Path | None,
    json_path: Path | None,
    write_readme: bool,
) -> None:
    """Time full private steps against the ordinary step and against Opacus, interleaved."""
    fastdp.name_folder(fastdp_folder)
    if allocator == "steady" and not is_steady(os.environ):
        # glibc reads its settings when a process starts.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **STEADY_ALLOCATOR})
    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES)
    quiet_remarks()
    torch.set_num_threads(threads)
    chosen = [name for name in CONTESTANTS if name in {*(contestants or CONTESTANTS), ORDINARY, HUSHGRAD}]
    missing = {name: why for name in chosen if (why := CONTESTANTS[name].missing()) is not None}
    for name, why in missing.items():
        console.print(f"[yellow]{CONTESTANTS[name].title} takes no part: {why}[/yellow]")
    present = [name for name in chosen if name not in missing]
    machine = this_machine(versions_of(present))
    if not machine.is_quiet:
        console.print(
            f"[yellow]load {machine.load_per_core:.2f} per core: other programs are running, and these times are "
            f"not to be trusted[/yellow]"
        )
    if growth_path is not None:
        _growth(axes or tuple(AXES), growth_path, machine, pairs, warm_up, console)
        return
    if memory and not is_supported():
        raise click.UsageError("peak memory is measured on Linux only; pass --no-memory")
    measured = {}
    for name in workloads or tuple(WORKLOADS):
        with console.status(f"{name}: {pairs} pairs"):
            measured[name] = _measure(name, present, missing, pairs, warm_up, threads if memory else None)
        if with_profile:
            with console.status(f"{name}: profile"):
                found = profile(WORKLOADS[name], rounds=pairs, warm_up=warm_up)
            measured[name] = replace(measured[name], profile=found)
    results = Results(
        command=command_line("benchmarks", sys.argv[1:]),
        machine=machine,
        pairs=pairs,
        warm_up=warm_up,
        allocator=allocator,
        workloads=measured,
        noise=noise_times(rounds=pairs) if with_noise else None,
    )
    print_results(results, console)
    if json_path is not None:
        json_path.write_text(results.to_json(), encoding="utf-8")
    if write_readme:
        write_between_markers(ROOT / "README.md", short_markdown(results))
        write_between_markers(ROOT / "docs" / "results" / "step-time.md", full_markdown(results))


def _growth(axes: tuple[str, ...], path: Path, machine: Machine, pairs: int, warm_up: int, console: Console) -> None:
    found = {}
    for name in axes:
        with console.status(f"growth with {AXES[name].title}"):
            found[name] = grow(AXES[name], pairs=pairs, warm_up=warm_up)
    results = GrowthResults(command_line("benchmarks", sys.argv[1:]), machine, pairs, warm_up, found)
    path.with_suffix(".json").write_text(results.to_json(), encoding="utf-8")
    draw(results, path)
    print_table("Growth of step time, encoder", growth_table(results), console)


def _measure(
    name: str, present: list[str], missing: dict[str, str], pairs: int, warm_up: int, memory_threads: int | None
) -> WorkloadResult:
    workload = WORKLOADS[name]
    expected = update(workload, HUSHGRAD)
    failed = {name: why for name in present if (why := failure(workload, name, expected)) is not None}
    able = [contestant for contestant in present if contestant not in failed]
    runners = {contestant: CONTESTANTS[contestant].build(workload, 1.0) for contestant in able}
    parameters = sum(parameter.numel() for parameter in runners[ORDINARY].parameters)
    timings = interleave(runners, rounds=pairs, warm_up=warm_up)
    del runners  # their memory is the children's to use
    peaks = {
        contestant: peak_in_own_process(name, contestant, memory_threads)
        if memory_threads is not None and CONTESTANTS[contestant].has_peak
        else None
        for contestant in able
    }
    return WorkloadResult(
        workload.title,
        workload.batch_size,
        parameters,
        contestant_results(timings, peaks),
        absent={**missing, **failed},
        target_time=workload.target_time,
        target_memory=workload.target_memory,
    )


if __name__ == "__main__":
    main()
