"""The price of one value of noise: hushgrad's keyed stream against torch's generator, in turn."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.timing import Interval, paired
from hushgrad.noise.gaussian import noisy_update
from hushgrad.randomness import Address, KeyStream

VALUES = 1 << 20


@dataclass(frozen=True)
class NoiseTimes:
    """Nanoseconds a value, float32.

    Attributes:
        hushgrad_ns: drawing noise, adding it to a sum and dividing, with `noisy_update`.
        torch_ns: the same with `Tensor.normal_`, `add_` and `div_`.
        ratio: of the two, paired.
    """

    values: int
    hushgrad_ns: Interval
    torch_ns: Interval
    ratio: Interval


def noise_times(*, rounds: int) -> NoiseTimes:
    """Time the noised update of one parameter of `VALUES` values both ways."""
    total = torch.zeros(VALUES)
    stream = KeyStream.from_operating_system()
    step = 0

    def keyed() -> None:
        nonlocal step
        step += 1
        noisy_update(total, noise_std=1.0, divisor=256.0, stream=stream, address=Address(step))

    def global_generator() -> None:
        torch.empty_like(total).normal_(0.0, 1.0).add_(total).div_(256.0)

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
