"""The private step in several processes beside an ordinary one (DistributedDataParallel, FSDP2), and both in one.

Each process has so many rows, whatever their number. Ordinary and private steps of both forms take turns within one
run, behind a barrier that is not timed, so that each ratio is of two steps of one round; what is reported is the median
of these ratios on rank 0. What a second process adds to what privacy costs is the difference to one process's ratio.
Later examinations of the model are off, as in the other benchmarks.

    python -m benchmarks.parallel [--workload mlp] [--processes 2] [--pairs 60] [--small]

Processes share the machine: with as many cores as processes, one thread each, and nothing else at work. It takes two or
three minutes then.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import click
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.runner import MAX_GRAD_NORM, Runner, sgd, trainable
from benchmarks.timing import FEWEST_ROUNDS, Interval, Timings, interleave
from benchmarks.workloads import SMALL, WORKLOADS, Batch, Workload
from hushgrad import PrivacyEngine
from hushgrad.text_table import text_table

ORDINARY, PRIVATE = "ordinary", "private"
ONE, DDP, FSDP2 = "one process", "DDP", "FSDP2"
ROWS = {"mlp": 128, "encoder": 8}
"""The workloads, and how many rows each process has of them."""


def ordinary(workload: Workload, model: nn.Module, processes: int) -> Runner:
    """Return the ordinary step of one process on its own rows."""
    optimizer, criterion = sgd(model), workload.criterion()
    batch = workload.batch()

    def step(batch: Batch) -> None:
        inputs, targets = batch
        optimizer.zero_grad()
        criterion(model(inputs), targets).backward()
        optimizer.step()

    return Runner(_behind_a_barrier(processes, lambda: batch), step, trainable(model))


def private(workload: Workload, model: nn.Module, processes: int) -> Runner:
    """Return the private step of one process, whose rows are its share of a fixed batch."""
    optimizer, engine = sgd(model), PrivacyEngine()
    everybody = replace(workload, batch_size=workload.batch_size * processes)
    loader = DataLoader(TensorDataset(*everybody.batch()), batch_size=everybody.batch_size)
    _, _, batches = engine.make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0, max_grad_norm=MAX_GRAD_NORM,
        poisson_sampling=False,
    )  # fmt: skip
    criterion = engine.per_example(workload.criterion())
    engine.session._parts.probe.stop_looks()

    def without_end() -> Iterator[Batch]:
        while True:
            yield from batches

    items = without_end()

    def step(batch: Batch) -> None:
        inputs, targets = batch
        optimizer.zero_grad()
        criterion(model(inputs), targets).backward()
        optimizer.step()

    return Runner(_behind_a_barrier(processes, lambda: next(items)), step, trainable(model))


def _behind_a_barrier(processes: int, prepare: Callable[[], Batch]) -> Callable[[], Batch]:
    def prepared() -> Batch:
        batch = prepare()
        if processes > 1:
            dist.barrier()
        return batch

    return prepared


def measured(workload: Workload, processes: int, rounds: int, warm_up: int) -> Timings:
    """Return the step times of this process, by form and kind of step; all processes call it."""
    runners: dict[str, Runner] = {}
    for form, wrap in FORMS.items():
        if (form == ONE) == (processes == 1):
            runners[f"{form}: {ORDINARY}"] = ordinary(workload, wrap(workload.model()), processes)
            runners[f"{form}: {PRIVATE}"] = private(workload, wrap(workload.model()), processes)
    return interleave(runners, rounds=rounds, warm_up=warm_up)


def sharded(model: nn.Module) -> nn.Module:
    """Shard each block of a model that has some, and the rest with the whole of it."""
    from torch.distributed.fsdp import fully_shard

    for block in getattr(model, "blocks", ()):
        fully_shard(block)
    return fully_shard(model)  # type: ignore[no-any-return]


FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    ONE: lambda model: model,
    DDP: DistributedDataParallel,
    FSDP2: sharded,
}


def in_processes(workload: str, is_small: bool, processes: int, rounds: int, warm_up: int) -> Timings:
    """Return the step times of the process of rank 0, one of so many."""
    with tempfile.TemporaryDirectory() as folder:
        given = (processes, folder, workload, is_small, rounds, warm_up)
        multiprocessing.spawn(_process, given, nprocs=processes)
        return torch.load(Path(folder, "times"), weights_only=False)


def _process(rank: int, processes: int, folder: str, name: str, is_small: bool, rounds: int, warm_up: int) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    timings = measured(workload_of(name, is_small), processes, rounds, warm_up)
    if rank == 0:
        torch.save(timings, Path(folder, "times"))
    if processes > 1:
        dist.destroy_process_group()


def workload_of(name: str, is_small: bool) -> Workload:
    """Return a workload with the rows of one process."""
    return SMALL[name] if is_small else replace(WORKLOADS[name], batch_size=ROWS[name])


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--workload", "names", type=click.Choice(list(ROWS)), multiple=True, help="Default: all.")
@click.option("--processes", type=click.IntRange(min=2), default=2)
@click.option("--pairs", type=click.IntRange(min=FEWEST_ROUNDS), default=60, help="Recorded rounds.")
@click.option("--warm-up", type=click.IntRange(min=1), default=10, help="Rounds before them.")
@click.option("--small", "is_small", is_flag=True, help="The same networks at sizes for a test.")
def main(names: tuple[str, ...], processes: int, pairs: int, warm_up: int, is_small: bool) -> None:
    """Measure what privacy costs in several processes beside what it costs in one."""
    rows = []
    for name in names or tuple(ROWS):
        workload = workload_of(name, is_small)
        alone = in_processes(name, is_small, 1, pairs, warm_up)
        several = in_processes(name, is_small, processes, pairs, warm_up)
        for form in FORMS:
            timings = alone if form == ONE else several
            kinds = f"{form}: {PRIVATE}", f"{form}: {ORDINARY}"
            ratio, single = timings.ratio(*kinds), alone.ratio(f"{ONE}: {PRIVATE}", f"{ONE}: {ORDINARY}")
            rows.append([
                f"{workload.title}, {workload.batch_size} rows in each", form,
                *(f"{timings.median_ms(kind).median:.2f}" for kind in reversed(kinds)),
                _said(ratio), "" if form == ONE else f"{ratio.median - single.median:+.2f}",
            ])  # fmt: skip
    heads = ["workload", f"{processes} processes, or one", "ordinary ms", "private ms", "ratio", "added"]
    click.echo(text_table(heads, rows, right=heads[2:]))


def _said(interval: Interval) -> str:
    return f"{interval.median:.2f}× ({interval.low:.2f} to {interval.high:.2f})"


if __name__ == "__main__":
    main()
