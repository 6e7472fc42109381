"""A model of step time and memory on 8, 64 and 512 GPUs, from counted bytes and operations: docs/large-scale.md.

Nothing here is measured on such machines. Each assumption is a named number below, each figure of the page is computed
from them, and the page says both:

    python -m benchmarks.large_scale --write    # writes the tables of docs/large-scale.md
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from hushgrad.gradients.machine import GPU

PAGE = Path(__file__).parents[1] / "docs" / "large-scale.md"
GPUS = (8, 64, 512)
GIB = 2.0**30


@dataclass(frozen=True)
class Machine:
    """What is assumed of the GPUs and of what joins them."""

    flops: float = 989e12
    """Dense bf16 operations a second at the peak (H100 SXM, data sheet)."""
    share_of_peak: float = 0.4
    """How much of the peak matrix products reach, attention and everything else between them included."""
    integers: float = 14e12
    """32-bit integer operations a second: 132 processors, 64 each, 1.65 GHz."""
    memory_gib: float = 80.0
    in_node: float = 450e9
    """Bytes a second of each GPU to the other seven of its node, in each direction (NVLink)."""
    between_nodes: float = 50e9
    """Bytes a second of each GPU to other nodes: one adapter of 400 Gbit/s each."""
    share_of_wire: float = 0.8
    """How much of these bandwidths collective operations reach."""
    hop: float = 30e-6
    """Seconds of one hop of a small message by TCP (gloo), for the agreement of the processes."""

    def gathered(self, values: float, gpus: int) -> float:
        """Return the seconds in which all GPUs have so many bytes of which each held its part; scattering is the same.

        A node of eight receives what it lacks by eight adapters at once, and hands it round inside.
        """
        wire = self.in_node if gpus <= 8 else min(self.in_node, 8 * self.between_nodes)
        return values * (1 - 1 / gpus) / (wire * self.share_of_wire)

    def computed(self, operations: float) -> float:
        """Return the seconds of so many operations of matrix products."""
        return operations / (self.flops * self.share_of_peak)


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block: how many values it reads and writes at a position."""

    reads: int
    writes: int

    @property
    def values(self) -> int:
        """The number of its weights."""
        return self.reads * self.writes


@dataclass(frozen=True)
class Decoder:
    """A decoder of Llama's kind."""

    width: int
    depth: int
    inner: int
    keys: int
    """Values of the keys at a position, all of their heads together."""
    vocabulary: int

    @property
    def linears(self) -> list[Linear]:
        """The linear layers of one block."""
        d, f, k = self.width, self.inner, self.keys
        return [Linear(d, d), Linear(d, k), Linear(d, k), Linear(d, d), Linear(d, f), Linear(d, f), Linear(f, d)]

    @property
    def block(self) -> int:
        """The number of weights of a block's linear layers; norms are left out."""
        return sum(linear.values for linear in self.linears)

    @property
    def values(self) -> int:
        """The number of weights, embedding and head included."""
        return self.depth * self.block + 2 * self.vocabulary * self.width

    def forward(self, positions: int) -> float:
        """Return the operations of one position: two for each weight of a product, and causal attention."""
        products = 2 * (self.depth * self.block + self.vocabulary * self.width)
        return products + 2 * positions * self.width * self.depth


@dataclass(frozen=True)
class Case:
    """What is trained."""

    title: str
    model: Decoder
    rank: int | None
    """That of LoRA on all linear layers of the blocks; None trains all weights."""
    batch_size: int = 1024
    positions: int = 2048

    @property
    def trained_linears(self) -> list[Linear]:
        """The trained linear layers of one block."""
        if self.rank is None:
            return self.model.linears
        return [
            part for own in self.model.linears for part in (Linear(own.reads, self.rank), Linear(self.rank, own.writes))
        ]

    @property
    def trained(self) -> int:
        """The number of trained values."""
        if self.rank is None:
            return self.model.values
        return self.model.depth * sum(linear.values for linear in self.trained_linears)

    def items(self, gpus: int, rows: int) -> float:
        """Return the items of each GPU in a logical batch; for Poisson draws the expected number."""
        return self.batch_size / (gpus * rows)

    def ordinary_operations(self, rows: int) -> float:
        """Return the operations of one item: forward, forward again (checkpointing), and backward.

        The backward is twice the forward; where the weights of products are frozen it is once.
        """
        forward = rows * self.positions * self.model.forward(self.positions)
        return forward * (4 if self.rank is None else 3)

    def norm_operations(self, rows: int) -> float:
        """Return what norms add to an item: of each layer the cheaper of Gram matrices and of gradients per example."""
        t = self.positions
        each = sum(min(2 * t * t * (own.reads + own.writes), 2 * t * own.values) for own in self.trained_linears)
        return rows * self.model.depth * each

    def held(self, rows: int) -> float:
        """Return the bytes of an item that are held until the norms are known.

        Of each layer its operands in 16 bits or its gradients per example in 32, whichever are fewer.
        """
        t = self.positions
        each = sum(min(2 * t * (own.reads + own.writes), 4 * own.values) for own in self.trained_linears)
        return rows * (self.model.depth * each + self.head)

    @property
    def head(self) -> float:
        """The bytes of the operands of the head, of one record."""
        return 2.0 * self.positions * (self.model.width + self.model.vocabulary) if self.rank is None else 0.0

    def held_inside(self, rows: int) -> float:
        """Return the same where norms and sums are taken inside the backward: of one block, or of the head."""
        alone = self.held(rows) - rows * self.head
        return max(alone / self.model.depth, rows * self.head)

    def activations(self, rows: int) -> float:
        """Return the bytes of checkpoints, of one block that runs again, and of logits and their gradient."""
        t, model = self.positions, self.model
        return rows * t * (2 * model.width * model.depth + 34 * model.width + 8 * model.vocabulary)

    def states(self, gpus: int) -> float:
        """Return the bytes of one GPU's part of weights, moments and gradients, and of two blocks' weights whole.

        Trained values have 16 bytes: the weight, two moments, and the gradient or update; frozen weights have 2.
        """
        frozen = 0 if self.rank is None else 2 * self.model.values
        return (frozen + 16 * self.trained) / gpus + 2 * 2 * self.model.block

    @property
    def sums(self) -> float:
        """The bytes of the clipped sums, all of them."""
        return 4 * self.trained

    @property
    def are_sums_scattered(self) -> bool:
        """Whether sums are exchanged after each item; else once for the logical batch, and are whole until then."""
        return self.sums > GPU.sum_bytes

    @property
    def sums_held(self) -> float:
        """The bytes of sums that a process has whole: all, or the largest one formed, laid out and on its way."""
        if not self.are_sums_scattered:
            return self.sums
        table = self.model.vocabulary * self.model.width if self.rank is None else 0
        return 4.0 * 3 * max(table, *(own.values for own in self.trained_linears))


@dataclass(frozen=True)
class Step:
    """What a logical batch takes on one GPU: seconds, and bytes of memory at the peak."""

    ordinary_s: float
    private_s: float
    ordinary_memory: float
    private_memory: float


NOISE_OPERATIONS = 70
"""Integer operations for a value of noise: 976 of a block of ChaCha20 for 16 words, and nine for the strip."""
MESSAGES = 7
"""Messages of a logical batch besides one for each item, as tests/parallel counts them; a ring of so many hops each."""


def memory(case: Case, gpus: int, rows: int) -> tuple[float, float]:
    """Return the bytes of an ordinary step at the peak, and of a private one: in an item, or as sums are exchanged."""
    states, activations = case.states(gpus), case.activations(rows)
    at_exchange = 0 if case.are_sums_scattered else case.sums * (1 + 1 / gpus)
    return states + activations, states + max(activations + case.held(rows) + case.sums_held, at_exchange)


def memory_inside(case: Case, gpus: int, rows: int) -> float:
    """Return the bytes of a private step whose norms and sums are taken inside the backward."""
    return case.states(gpus) + case.activations(rows) + case.held_inside(rows) + case.sums_held


def fitting(case: Case, gpus: int, machine: Machine, *, is_inside: bool = False) -> int:
    """Return the records of an item: the largest power of two whose private step takes nine tenths of the memory."""

    def fits(rows: int) -> bool:
        needed = memory_inside(case, gpus, rows) if is_inside else memory(case, gpus, rows)[1]
        return needed <= 0.9 * machine.memory_gib * GIB

    rows = 1
    while 2 * rows * gpus <= case.batch_size and fits(2 * rows):
        rows *= 2
    return rows


def inside_s(case: Case, gpus: int, rows: int, machine: Machine, *, runs: int) -> float:
    """Return the seconds of such a step, whose backward runs twice, or once for a group-wise clip rule.

    The run before runs the forward of each block again and its backward without the weights' gradients, gathers the
    weights once more, and takes the norms once more. Sums are scattered inside the backward, beside it.
    """
    forward = machine.computed(rows * case.positions * case.model.forward(case.positions))
    ordinary, norms = case.ordinary_operations(rows), runs * machine.computed(case.norm_operations(rows))
    weights = machine.gathered((1 + runs) * 2 * case.model.values, gpus)
    sums = machine.gathered(case.sums, gpus)
    items = case.items(gpus, rows)
    each = max(machine.computed(ordinary) + (runs - 1) * 2 * forward + norms, weights + sums)
    noise = NOISE_OPERATIONS * case.trained / gpus / machine.integers
    return items * each + noise + agreement(case, items * (1 + runs), gpus, machine)


def step(case: Case, gpus: int, rows: int, machine: Machine) -> Step:
    """Return the model's step under FSDP2, whose collective operations run beside the products.

    Private: sums are scattered, once for the logical batch or for each item, with nothing beside them; noise is drawn
    once, on each GPU's own part; and the processes agree, where sums are scattered by items once more for each.
    """
    weights = machine.gathered(2 * 2 * case.model.values, gpus)  # in 16 bits, for the forward and for the backward
    gradients = machine.gathered(4 * case.trained, gpus)
    ordinary = machine.computed(case.ordinary_operations(rows))
    norms = machine.computed(case.norm_operations(rows))
    noise = NOISE_OPERATIONS * case.trained / gpus / machine.integers
    items = case.items(gpus, rows)
    return Step(
        items * max(ordinary, weights + gradients),
        items * max(ordinary + norms, weights)
        + exchanges(case, items) * gradients
        + noise
        + agreement(case, items, gpus, machine),
        *memory(case, gpus, rows),
    )


def exchanges(case: Case, items: float) -> float:
    """Return how often sums are scattered in a logical batch."""
    return items if case.are_sums_scattered else 1


def agreement(case: Case, items: float, gpus: int, machine: Machine) -> float:
    """Return the seconds of a logical batch's messages."""
    messages = items * (2 if case.are_sums_scattered else 1) + MESSAGES
    return messages * (gpus - 1) * machine.hop


CASES = (
    Case("7B, all weights", Decoder(4096, 32, 11008, 4096, 32000), None),
    Case("70B, LoRA of rank 16", Decoder(8192, 80, 28672, 1024, 32000), 16),
)


def steps_table(machine: Machine) -> Iterator[list[str]]:
    """Yield the rows of step times and memory."""
    yield [
        "", "GPUs", "items × records", "ordinary step", "private step", "ratio", "ordinary memory", "private memory",
    ]  # fmt: skip
    for case in CASES:
        for gpus in GPUS:
            rows = fitting(case, gpus, machine)
            found = step(case, gpus, rows, machine)
            yield [
                f"{case.title} ({case.trained / 1e9:.2f}e9 values)", str(gpus), f"{case.items(gpus, rows):g} × {rows}",
                f"{found.ordinary_s:.2f} s", f"{found.private_s:.2f} s", f"{found.private_s / found.ordinary_s:.2f}",
                f"{found.ordinary_memory / GIB:.1f} GiB", f"{found.private_memory / GIB:.1f} GiB",
            ]  # fmt: skip


def inside_table(machine: Machine) -> Iterator[list[str]]:
    """Yield the rows of steps whose norms and sums are taken inside the backward, for the model that asks for it."""
    yield ["", "GPUs", "operands", "items × records", "private step", "private memory"]
    case = CASES[0]
    for gpus in GPUS:
        kept, let_go = fitting(case, gpus, machine), fitting(case, gpus, machine, is_inside=True)
        found = step(case, gpus, kept, machine)
        ways = [("kept", kept, found.private_s, found.private_memory)]
        for way, runs in (("let go, flat clipping", 2), ("let go, group-wise clipping", 1)):
            seconds = inside_s(case, gpus, let_go, machine, runs=runs)
            ways.append((way, let_go, seconds, memory_inside(case, gpus, let_go)))
        for way, rows, seconds, needed in ways:
            items = f"{case.items(gpus, rows):g} × {rows}"
            yield [case.title, str(gpus), way, items, f"{seconds:.2f} s", f"{needed / GIB:.1f} GiB"]


def parts_table(machine: Machine) -> Iterator[list[str]]:
    """Yield the rows of what privacy adds to a logical batch under FSDP2, in milliseconds on each GPU."""
    yield ["", "GPUs", "norms", "scattering of the sums, uncovered", "noise", "agreement"]
    for case in CASES:
        for gpus in GPUS:
            rows = fitting(case, gpus, machine)
            items = case.items(gpus, rows)
            added = (
                items * machine.computed(case.norm_operations(rows)),
                exchanges(case, items) * machine.gathered(case.sums, gpus),
                NOISE_OPERATIONS * case.trained / gpus / machine.integers,
                agreement(case, items, gpus, machine),
            )
            yield [case.title, str(gpus), *(f"{1e3 * seconds:.1f} ms" for seconds in added)]


def all_reduce_table(machine: Machine) -> Iterator[list[str]]:
    """Yield the rows of what the all-reduce of a logical batch adds under DistributedDataParallel.

    An ordinary step sends the same bytes, beside its last backward; the private one afterwards, beside the noise.
    """
    yield ["trained values", "GPUs", "bytes handed over", "all-reduce", "noise of the own slice"]
    for values in (10**7, 10**8, 10**9):
        for gpus in GPUS:
            reduced = 2 * machine.gathered(4 * values, gpus)
            noise = NOISE_OPERATIONS * values / gpus / machine.integers
            yield [
                f"{values:.0e}", str(gpus), f"{4 * values / 1e6:g} MB + 1 kB", f"{1e3 * reduced:.2f} ms",
                f"{1e3 * noise:.3f} ms",
            ]  # fmt: skip


def assumptions_table(machine: Machine) -> Iterator[list[str]]:
    """Yield the rows of what is assumed."""
    yield ["assumption", "value"]
    yield ["dense bf16 products of a GPU (H100 SXM, data sheet)", f"{machine.flops / 1e12:g} Tflop/s"]
    yield ["share of it that a whole model reaches", f"{machine.share_of_peak:g}"]
    yield ["32-bit integer operations of a GPU", f"{machine.integers / 1e12:g} T/s"]
    yield ["memory of a GPU", f"{machine.memory_gib:g} GiB"]
    yield ["bandwidth of a GPU inside its node of eight, each direction", f"{machine.in_node / 1e9:g} GB/s"]
    yield ["bandwidth of a GPU to other nodes, each direction", f"{machine.between_nodes / 1e9:g} GB/s"]
    yield ["share of these that collective operations reach", f"{machine.share_of_wire:g}"]
    yield ["one hop of a small message (gloo, TCP)", f"{machine.hop * 1e6:g} µs"]
    yield ["operations for a value of noise (ChaCha20, a look-up)", f"{NOISE_OPERATIONS}"]
    yield ["messages of a logical batch", f"{MESSAGES}, and one for each item; two where sums are scattered"]
    yield [
        "clipped sums that are whole in each process",
        f"up to {GPU.sum_bytes / GIB:g} GiB; larger ones are scattered",
    ]
    for case in CASES:
        model = case.model
        shape = f"d = {model.width}, {model.depth} blocks, f = {model.inner}, keys {model.keys}"
        batch = f"{case.batch_size} records of {case.positions} tokens"
        yield [case.title, f"{shape}, vocabulary {model.vocabulary}; logical batches of {batch}"]


TABLES = {
    "assumptions": assumptions_table,
    "steps": steps_table,
    "inside": inside_table,
    "parts": parts_table,
    "all-reduce": all_reduce_table,
}


def with_tables(page: str) -> str:
    """Return the page with the tables between its marks written anew."""
    for name, rows in TABLES.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        before, rest = page.split(begin)
        _, after = rest.split(end)
        page = before + begin + _markdown(list(rows(Machine()))) + end + after
    return page


def _markdown(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--write", is_flag=True, help="Write the tables of docs/large-scale.md.")
def main(write: bool) -> None:
    """Compute the model's tables."""
    if write:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    for name, rows in TABLES.items():
        click.echo(f"{name}\n{_markdown(list(rows(Machine())))}")


if __name__ == "__main__":
    main()
