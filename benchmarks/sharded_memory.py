"""Live bytes of a process that trains a part of a model (FSDP2): of an ordinary step and of a private one, by kind.

Each operator's outputs are counted by their storages as torch makes them, and all storages that are alive are looked at
again after every operator, so that memory which FSDP gives back inside a step is seen to go. What NumPy and the
libraries below torch take for themselves is not in it, and neither is what the allocator keeps. CPU, gloo: bytes are
those of any device, the times mean nothing.

    python -m benchmarks.sharded_memory [--processes 2] [--depth 4] [--width 128] ...
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.networks import TokenCrossEntropy, Transformer
from hushgrad import DPSGD, ClipRule, DisjointBatches, FlatClipping, GroupwiseClipping, privatize
from hushgrad.capture.uses import UsePool
from hushgrad.gradients.clipped_sum import Pending
from hushgrad.gradients.contribution import Plan
from hushgrad.gradients.in_passing import GroupByGroup, TwoPasses
from hushgrad.parallel.shards import Scattering, Shards
from hushgrad.randomness import KeyStream
from hushgrad.session.update import Update
from hushgrad.text_table import text_table
from hushgrad.torch_sharding import fully_sharded, groups_of, is_distributed, local_part

PARAMETERS, WHOLE, STATE, GRADIENTS = "parameters", "whole parameters", "optimizer state", "gradients"
OPERANDS, NORMS, SUMS = "operands", "scratch of norms", "sums"
NOISE, OTHER = "scratch of noise", "activations and all else"
KINDS = (PARAMETERS, WHOLE, STATE, GRADIENTS, OPERANDS, NORMS, SUMS, NOISE, OTHER)
ORDINARY, PRIVATE, SCATTERED = "ordinary", "sums whole", "sums scattered"
PASSING, GROUPS = "inside the backward", "by groups inside it"
WAYS: dict[str, tuple[Plan, ClipRule]] = {
    PRIVATE: (Plan(keep_bytes=0, sum_bytes=1 << 62), FlatClipping(1.0)),
    SCATTERED: (Plan(keep_bytes=0, sum_bytes=0), FlatClipping(1.0)),
    PASSING: (Plan(keep_bytes=0, sum_bytes=0, operand_bytes=0), FlatClipping(1.0)),
    GROUPS: (Plan(keep_bytes=0, sum_bytes=0, operand_bytes=0), GroupwiseClipping(1.0)),
}
MIB = 2.0**20


@dataclass(frozen=True)
class Shape:
    """What is trained: a decoder of blocks, each of them sharded, in items of so many records in each process."""

    width: int = 256
    depth: int = 4
    vocabulary: int = 512
    positions: int = 64
    rows: int = 4
    items: int = 2
    is_checkpointed: bool = False
    is_narrow: bool = False

    def model(self) -> nn.Module:
        """Return the model, whole."""
        torch.manual_seed(0)
        model = Transformer(
            "decoder", vocabulary=self.vocabulary, width=self.width, depth=self.depth, positions=self.positions, heads=4
        )
        if self.is_checkpointed:
            model.blocks = nn.Sequential(*map(Again, model.blocks))
        return model

    def data(self, processes: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of one logical batch."""
        ids = torch.randint(0, self.vocabulary, (self.rows * self.items * processes, self.positions + 1))
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


class Again(nn.Module):
    """Computes a block again in the backward."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, x, use_reentrant=False)  # type: ignore[no-any-return]


@dataclass
class Peak:
    """Bytes by kind at the moment when most of them were alive, and the most of each kind at any moment."""

    at_once: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """The bytes at the peak."""
        return self.at_once.total()


class LiveBytes(TorchDispatchMode):
    """Counts the storages that are alive after each operator.

    A storage is of the kind that `making` says while it is made, or of what it is marked as later. Only weak pointers
    are held, which hushgrad's own look at who holds an operand does not see.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self._model, self._optimizer = model, optimizer
        self._alive: dict[int, tuple[StorageWeakRef, str]] = {}
        self._now = OTHER
        self.peak = Peak()
        for parameter in model.parameters():
            self.mark([local_part(parameter)], PARAMETERS)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run one operator; of tensors on several processes the operators on their parts."""
        if any(is_distributed(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)):
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):  # none of those by which torch finds out shapes
            if type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta:
                self._alive.setdefault(_key(tensor), (StorageWeakRef(tensor.untyped_storage()), self._now))
        self.look()
        return out

    @contextmanager
    def making(self, kind: str) -> Iterator[None]:
        """Inside, what is made is of a kind."""
        before, self._now = self._now, kind
        try:
            yield
        finally:
            self._now = before

    def mark(self, tensors: Any, kind: str) -> None:
        """What these tensors lie in is of a kind."""
        for tensor in tensors:
            self._alive[_key(tensor)] = StorageWeakRef(tensor.untyped_storage()), kind

    def look(self) -> None:
        """Count what is alive now."""
        named = {_key(tensor): kind for tensor, kind in self._placed()}
        found: Counter[str] = Counter()
        for key, (reference, kind) in list(self._alive.items()):
            storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
            if storage is None:
                del self._alive[key]
            else:
                found[named.get(key, kind)] += storage.nbytes()
        self.peak.most |= found
        if found.total() > self.peak.total:
            self.peak.at_once = found

    def _placed(self) -> Iterator[tuple[Tensor, str]]:
        for group in groups_of(fully_sharded(self._model)):
            for parameter in group.fsdp_params:
                if hasattr(parameter, "_unsharded_param"):
                    yield parameter._unsharded_param, WHOLE
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                yield local_part(parameter.grad), GRADIENTS
        for state in self._optimizer.state.values():
            yield from ((local_part(value), STATE) for value in state.values() if isinstance(value, Tensor))


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def told_apart(live: LiveBytes) -> Iterator[None]:
    """Inside, operands, sums and noise of private steps are counted as such."""
    record = UsePool.add

    def recorded(pool: UsePool, name: str, contribution: Any) -> None:
        record(pool, name, contribution)
        if pool.in_turn is not None:
            held = (part for parts in pool.in_turn._held.values() for part in parts)
            live.mark((operand for part in held for operand in part.operands), OPERANDS)
            return
        uses = pool._running[torch._C._current_graph_task_id()][name]
        live.mark((operand for part in uses.factored for operand in part.operands), OPERANDS)
        live.mark([] if uses.kept is None else [uses.kept], OPERANDS)

    def labelled(function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with live.making(kind):
                return function(*args)

        return run

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(UsePool, "add", recorded))
        for owner, name, kind in (
            (Update, "add", NORMS),
            (TwoPasses, "measure", NORMS),
            (TwoPasses, "sum", SUMS),
            (GroupByGroup, "take", NORMS),
            (Pending, "take", SUMS),
            (Shards, "rows_of", SUMS),
            (Scattering, "__init__", SUMS),
            (Update, "write", NOISE),
        ):
            stack.enter_context(mock.patch.object(owner, name, labelled(getattr(owner, name), kind)))
        yield


def peaks_of(way: str, shape: Shape, processes: int) -> tuple[Peak, Peak]:
    """Return the bytes of two logical batches in this process: of the first, which is examined, and of a later one.

    An examination (of random later batches, too, which is off here) puts the whole model together for its time.
    """
    model = sharded(shape.model(), torch.bfloat16 if shape.is_narrow else None)
    optimizer = torch.optim.Adam(model.parameters())
    live = LiveBytes(model, optimizer)
    if way == ORDINARY:
        batch = _ordinary(model, optimizer, shape, processes)
    else:
        batch = _private(model, optimizer, shape, processes, *WAYS[way])
    with told_apart(live), live:
        batch()
        first, live.peak = live.peak, Peak()
        batch()
    return first, live.peak


def sharded(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """Shard each block, and the rest with the root; computed in a dtype."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=dtype)
    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block, mp_policy=policy)
    return fully_shard(model, mp_policy=policy)  # type: ignore[no-any-return]


def _ordinary(model: nn.Module, optimizer: Any, shape: Shape, processes: int) -> Callable[[], None]:
    inputs, targets = (part[: shape.rows * shape.items] for part in shape.data(processes))
    criterion = TokenCrossEntropy()

    def batch() -> None:
        optimizer.zero_grad()
        for x, y in zip(inputs.split(shape.rows), targets.split(shape.rows), strict=True):
            (criterion(model(x), y) / shape.items).backward()
        optimizer.step()

    return batch


def _private(
    model: nn.Module, optimizer: Any, shape: Shape, processes: int, plan: Plan, rule: ClipRule
) -> Callable[[], None]:
    data = TensorDataset(*shape.data(processes))
    mechanism = DPSGD(noise_multiplier=1.0, clipping=rule, sampling=DisjointBatches(), expected_batch_size=len(data))
    session = privatize(model, optimizer, mechanism, key=KeyStream.fixed_for_tests(7), plan=plan)
    loader = session.batches_of(DataLoader(data, batch_size=len(data)), max_physical_batch_size=shape.rows)
    criterion = session.per_example(TokenCrossEntropy())

    def batch() -> None:
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
        session._parts.probe.stop_looks()

    return batch


def in_processes(way: str, shape: Shape, processes: int) -> tuple[Peak, Peak]:
    """Return `peaks_of` in the process of rank 0, one of so many."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_process, (processes, folder, way, shape), nprocs=processes)
        return torch.load(Path(folder, "peaks"), weights_only=False)  # type: ignore[no-any-return]


def _process(rank: int, processes: int, folder: str, way: str, shape: Shape) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    peaks = peaks_of(way, shape, processes)
    if rank == 0:
        torch.save(peaks, Path(folder, "peaks"))
    dist.destroy_process_group()


def table(peaks: Mapping[str, Peak]) -> str:
    """Return the bytes of each way: all of them at its peak, by kind, and the most of a kind at any moment."""
    rows = [["all", *(f"{peak.total / MIB:.2f}" for peak in peaks.values())]]
    for kind in KINDS:
        cells = [(peak.at_once[kind] / MIB, peak.most[kind] / MIB) for peak in peaks.values()]
        if any(most for _, most in cells):
            rows.append([kind, *(f"{at_once:.2f} (at most {most:.2f})" for at_once, most in cells)])
    return text_table(["MiB at the peak", *peaks], rows, right=list(peaks))


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--processes", type=click.IntRange(min=1), default=2)
@click.option("--width", type=int, default=Shape.width)
@click.option("--depth", type=int, default=Shape.depth)
@click.option("--vocabulary", type=int, default=Shape.vocabulary)
@click.option("--positions", type=int, default=Shape.positions)
@click.option("--rows", type=int, default=Shape.rows, help="Records of an item in each process.")
@click.option("--items", type=int, default=Shape.items, help="Items of a logical batch.")
@click.option("--checkpointing", "is_checkpointed", is_flag=True, help="Compute each block again in the backward.")
@click.option("--bf16", "is_narrow", is_flag=True, help="Compute in bfloat16.")
def main(processes: int, **sizes: Any) -> None:
    """Count the live bytes of one process's step under FSDP2."""
    shape = Shape(**sizes)
    model = shape.model()
    trained = sum(parameter.numel() for parameter in model.parameters())
    how = f"{', checkpointed' if shape.is_checkpointed else ''}{', bf16' if shape.is_narrow else ''}"
    click.echo(
        f"decoder d={shape.width} L={shape.depth} T={shape.positions} vocabulary {shape.vocabulary}{how}: "
        f"{trained:,} values (4·p = {4 * trained / MIB:.2f} MiB), Adam; {shape.items} items of {shape.rows} records in "
        f"each of {processes} processes"
    )
    peaks = {}
    examined = {}
    for way in (ORDINARY, *WAYS):
        first, peaks[way] = in_processes(way, shape, processes)
        if way in (PRIVATE, PASSING):
            examined[f"{way}, examined"] = first
    click.echo(table({**peaks, **examined}))


if __name__ == "__main__":
    main()
