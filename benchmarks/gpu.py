"""Decoders in bfloat16 on a GPU, and the kernels against the ceilings of the device.

    python -m benchmarks.gpu [--rounds 20] [--json FILE]

It needs a CUDA device, says so where there is none, and exits with 1 then.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import nn

from benchmarks.contestants import HUSHGRAD, ORDINARY, hushgrad_session, ordinary
from benchmarks.llama import Llama
from benchmarks.networks import TokenCrossEntropy, Transformer
from benchmarks.runner import Runner
from benchmarks.timing import Interval, interleave, paired
from benchmarks.workloads import Batch, Workload, sequences
from hushgrad.gradients.cuda import dispatch as norm_dispatch
from hushgrad.kernels.available import has_kernels
from hushgrad.noise.cuda import dispatch as noise_dispatch
from hushgrad.noise.cuda.chacha import CipherKey
from hushgrad.randomness import Address, KeyStream

WARM_UP = 3


def gpt2(positions: int) -> nn.Module:
    """A decoder of GPT-2's size; its head is not tied to the embedding, as in the other workloads."""
    return Transformer("decoder", vocabulary=50_257, width=768, depth=12, positions=positions, heads=12)


def llama_1b(positions: int) -> nn.Module:
    """A decoder in the shape of Llama 3.2 1B; its positions are no parameters."""
    return Llama(vocabulary=128_256, width=2048, depth=16, heads=32, shared_heads=8, inner=8192)


@dataclass(frozen=True)
class Decoder:
    """A model and a batch; `make` takes the number of positions T."""

    title: str
    make: Callable[[int], nn.Module]
    vocabulary: int
    positions: int
    batch_size: int

    def workload(self, device: str, dtype: torch.dtype = torch.bfloat16) -> Workload:
        """Return what the contestants train, on the device."""

        def model() -> nn.Module:
            with torch.device(device):
                return self.make(self.positions).to(dtype)

        def batch(count: int, generator: torch.Generator) -> Batch:
            ids, targets = sequences(self.positions, self.vocabulary, classes=None)(count, generator)
            return ids.to(device), targets.to(device)

        return Workload(f"{self.title}, T={self.positions}", self.batch_size, model, batch, TokenCrossEntropy)


DECODERS = (
    Decoder("decoder of GPT-2's size", gpt2, 50_257, 512, 16),
    Decoder("decoder of GPT-2's size", gpt2, 50_257, 2048, 4),
    Decoder("decoder in the shape of Llama 3.2 1B", llama_1b, 128_256, 512, 8),
    Decoder("decoder in the shape of Llama 3.2 1B", llama_1b, 128_256, 2048, 2),
)


@dataclass(frozen=True)
class StepResult:
    """Milliseconds of a step, the paired ratio, and the most memory that tensors took, in MiB (0 on a CPU)."""

    title: str
    batch_size: int
    ordinary_ms: Interval
    hushgrad_ms: Interval
    ratio: Interval
    ordinary_mib: float
    hushgrad_mib: float


@dataclass(frozen=True)
class KernelResult:
    """A kernel's rate beside the ceiling of the device, in 10⁹ bytes or floating-point operations a second."""

    title: str
    rate: Interval
    ceiling: Interval

    @property
    def share(self) -> float:
        """The part of the ceiling that is reached."""
        return self.rate.median / self.ceiling.median


def synchronized(run: Callable[[], None]) -> Callable[[], None]:
    """Return `run` with a wait for what it launched."""

    def whole() -> None:
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return whole


def step_result(decoder: Decoder, device: str, rounds: int, dtype: torch.dtype = torch.bfloat16) -> StepResult:
    """Time the ordinary and the private step in turn."""
    workload = decoder.workload(device, dtype)
    runners, peaks = {}, {}
    for name, build in ((ORDINARY, ordinary), (HUSHGRAD, hushgrad_session)):
        runner = build(workload, 1.0)
        runner.step(runner.prepare())  # the first step examines the model
        peaks[name] = _peak_mib(runner)
        runners[name] = Runner(runner.prepare, _stepping(runner), runner.parameters)
    timings = interleave(runners, rounds=rounds, warm_up=WARM_UP)
    return StepResult(
        workload.title,
        workload.batch_size,
        timings.median_ms(ORDINARY),
        timings.median_ms(HUSHGRAD),
        timings.ratio(HUSHGRAD, ORDINARY),
        peaks[ORDINARY],
        peaks[HUSHGRAD],
    )


def _stepping(runner: Runner) -> Callable[[Batch], None]:
    return lambda batch: synchronized(lambda: runner.step(batch))()


def _peak_mib(runner: Runner) -> float:
    """Return by how much one step raises the memory of tensors above what is there before it."""
    if not torch.cuda.is_available():
        return 0.0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _stepping(runner)(runner.prepare())
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def kernel_results(device: str, rounds: int, *, values: int = 1 << 28, size: int = 2048) -> list[KernelResult]:
    """Time the kernels beside a copy of `values` values and a product of matrices `[4·size, 4·size]`, float32 both."""
    total, other = torch.zeros(values, device=device), torch.zeros(values, device=device)
    key, step = CipherKey.of(KeyStream.from_operating_system()), 0

    def noise() -> None:
        nonlocal step
        step += 1
        noise_dispatch.noisy_update(total, noise_std=1.0, divisor=1.0, key=key, address=Address(step), overwrite=True)

    square = torch.randn(4 * size, 4 * size, device=device)
    left, right = torch.randn(4, 512, size, device=device), torch.randn(4, 512, size, device=device)
    multiply = _Work(lambda: square @ square, 2 * (4 * size) ** 3)
    copy = _Work(lambda: other.copy_(total), 8 * values)
    return [
        _beside("noise, bytes", _Work(noise, 8 * values), copy, rounds),
        _beside(
            "Gram norms, operations",
            _Work(lambda: norm_dispatch.gram_norms(left, right), 4 * 512 * 512 * 2 * size),
            multiply,
            rounds,
        ),
        _beside(
            "norms from gradients, operations",
            _Work(lambda: norm_dispatch.instantiated_norms(left, right, keep=False), 4 * 2 * 512 * size * size),
            multiply,
            rounds,
        ),
    ]


@dataclass(frozen=True)
class _Work:
    run: Callable[[], object]
    amount: int


def _beside(title: str, work: _Work, ceiling: _Work, rounds: int) -> KernelResult:
    timings = paired(synchronized(lambda: void(work)), synchronized(lambda: void(ceiling)), rounds=rounds)
    return KernelResult(title, _rate(timings.median_ms("first"), work), _rate(timings.median_ms("second"), ceiling))


def void(work: _Work) -> None:
    """Run and drop the result."""
    work.run()


def _rate(ms: Interval, work: _Work) -> Interval:
    return Interval(*(work.amount / part / 1e6 for part in (ms.median, ms.high, ms.low)), ms.coverage)


@click.command()
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(min=6), help="pairs of steps")
@click.option("--json", "target", type=click.Path(path_type=Path), help="write the figures to this file")
def main(rounds: int, target: Path | None) -> None:
    """Time decoders and kernels on the first CUDA device."""
    if not torch.cuda.is_available():
        click.echo("no CUDA device: nothing was measured", err=True)
        sys.exit(1)
    name = torch.cuda.get_device_name()
    click.echo(f"{name}, torch {torch.__version__}, kernels by {'Triton' if has_kernels() else 'torch'}")
    kernels = kernel_results("cuda", rounds) if has_kernels() else []
    for kernel in kernels:
        click.echo(f"{kernel.title}: {kernel.rate.median:.0f}·10⁹/s, {kernel.share:.2f} of {kernel.ceiling.median:.0f}")
    steps = []
    for decoder in DECODERS:
        steps.append(found := step_result(decoder, "cuda", rounds))
        torch.cuda.empty_cache()
        click.echo(
            f"{found.title}, B={found.batch_size}: {found.ordinary_ms.median:.1f} ms ordinary, "
            f"{found.hushgrad_ms.median:.1f} private, × {found.ratio.median:.2f} "
            f"[{found.ratio.low:.2f}, {found.ratio.high:.2f}]; "
            f"{found.ordinary_mib:.0f} and {found.hushgrad_mib:.0f} MiB"
        )
    if target is not None:
        figures = {"device": name, "torch": torch.__version__, "kernels": kernels, "steps": steps}
        target.write_text(json.dumps(figures, default=dataclasses.asdict, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
