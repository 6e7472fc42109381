"""The price of one value of noise: hushgrad's keyed stream against torch's generator, in turn."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.timing import Interval, paired
from hushgrad.noise.gaussian import standard_normal
from hushgrad.randomness import Address, KeyStream

VALUES = 4_000_000


@dataclass(frozen=True)
class NoiseTimes:
    """Nanoseconds a value, float32, into new memory.

    Attributes:
        hushgrad_ns: `standard_normal`, on as many threads as torch has.
        torch_ns: `Tensor.normal_`, which uses one thread.
        ratio: of the two, paired.
    """

    values: int
    hushgrad_ns: Interval
    torch_ns: Interval
    ratio: Interval


def noise_times(*, rounds: int) -> NoiseTimes:
    """Time the draw of `VALUES` standard normal values both ways."""
    stream = KeyStream.from_operating_system()
    step = 0

    def keyed() -> None:
        nonlocal step
        step += 1
        standard_normal((VALUES,), dtype=torch.float32, device="cpu", stream=stream, address=Address(step))

    def global_generator() -> None:
        torch.empty(VALUES).normal_()

    timings = paired(keyed, global_generator, rounds=rounds)
    return NoiseTimes(
        VALUES,
        _per_value(timings.median_ms("first")),
        _per_value(timings.median_ms("second")),
        timings.ratio("first", "second"),
    )


def _per_value(milliseconds: Interval) -> Interval:
    scale = 1e6 / VALUES
    return Interval(
        milliseconds.median * scale, milliseconds.low * scale, milliseconds.high * scale, milliseconds.coverage
    )
