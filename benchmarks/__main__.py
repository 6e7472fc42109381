"""`python -m benchmarks`: measure, print, and on request write the figures where the documentation shows them."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import torch
from rich.console import Console

from benchmarks.contestants import CONTESTANTS, HUSHGRAD, ORDINARY
from benchmarks.machine import this_machine
from benchmarks.memory import is_supported, peak_in_own_process
from benchmarks.noise import noise_times
from benchmarks.profile import profile
from benchmarks.report import full_markdown, print_results, short_markdown, write_between_markers
from benchmarks.results import Results, WorkloadResult, contestant_results
from benchmarks.timing import FEWEST_ROUNDS, interleave
from benchmarks.workloads import WORKLOADS

# Whether glibc gives memory that a step freed back to the system depends on what else lies on the heap, so that in an
# interleaved run it is chance which contestant pays for mapping it in again. "steady" keeps it, for all of them.
STEADY_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}

ROOT = Path(__file__).resolve().parent.parent


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--workload", "workloads", type=click.Choice(list(WORKLOADS)), multiple=True, help="Default: all.")
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
    type=click.Choice(["steady", "default"]),
    default="steady",
    help="steady: glibc keeps memory that a step freed, for all contestants alike.",
)
@click.option("--memory/--no-memory", default=True, help="Peak memory, in a process for each contestant (Linux).")
@click.option("--noise", "with_noise", is_flag=True, help="Time noise alone, against torch's.")
@click.option("--profile", "with_profile", is_flag=True, help="Where hushgrad's step spends its time.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here.")
@click.option(
    "--write-readme",
    is_flag=True,
    help="Put the tables between the benchmark markers of README.md and docs/performance.md.",
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
    json_path: Path | None,
    write_readme: bool,
) -> None:
    """Time full private steps against the ordinary step and against Opacus, interleaved."""
    if allocator == "steady" and any(os.environ.get(name) != value for name, value in STEADY_ALLOCATOR.items()):
        # glibc reads its settings when a process starts.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **STEADY_ALLOCATOR})
    console = Console()
    # Opacus hooks the first layer, whose input requires no gradient; torch remarks on it in every run.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    torch.set_num_threads(threads)
    chosen = [name for name in CONTESTANTS if name in {*(contestants or CONTESTANTS), ORDINARY, HUSHGRAD}]
    packages = list(dict.fromkeys(CONTESTANTS[name].package for name in chosen))
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise click.UsageError(
                f"{package} is not installed: pip install 'hushgrad[dev]', or choose others with --contestant"
            )
    machine = this_machine(packages)
    if not machine.is_quiet:
        console.print(
            f"[yellow]load {machine.load_per_core:.2f} per core: other programs are running, and these times are "
            f"not to be trusted[/yellow]"
        )
    if memory and not is_supported():
        raise click.UsageError("peak memory is measured on Linux only; pass --no-memory")
    measured = {}
    for name in workloads or tuple(WORKLOADS):
        with console.status(f"{name}: {pairs} pairs"):
            measured[name] = _measure(name, chosen, pairs, warm_up, threads if memory else None)
        if with_profile:
            with console.status(f"{name}: profile"):
                found = profile(WORKLOADS[name], rounds=pairs, warm_up=warm_up)
            measured[name] = replace(measured[name], profile=found)
    results = Results(
        command=command_line(sys.argv[1:]),
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
        write_between_markers(ROOT / "docs" / "performance.md", full_markdown(results))


def command_line(arguments: Sequence[str]) -> str:
    """Return the command that measures the same again; where a file was written is left out."""
    kept = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--json":
            next(remaining, None)
        elif not argument.startswith("--json="):
            kept.append(argument)
    return shlex.join(["python", "-m", "benchmarks", *kept])


def _measure(name: str, chosen: list[str], pairs: int, warm_up: int, memory_threads: int | None) -> WorkloadResult:
    workload = WORKLOADS[name]
    runners = {contestant: CONTESTANTS[contestant].build(workload, 1.0) for contestant in chosen}
    parameters = sum(parameter.numel() for parameter in runners[ORDINARY].parameters)
    timings = interleave(runners, rounds=pairs, warm_up=warm_up)
    del runners  # their memory is the children's to use
    peaks = {
        contestant: None if memory_threads is None else peak_in_own_process(name, contestant, memory_threads)
        for contestant in chosen
    }
    return WorkloadResult(workload.title, workload.batch_size, parameters, contestant_results(timings, peaks))


if __name__ == "__main__":
    main()
