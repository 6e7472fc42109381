"""What the low bits of one release prove (Mironov 2012; Jin et al. 2022): with ordinary noise, and on a grid.

The attacker knows σ, C and B, and two sums that a value may have had: without one record, and with it. No statistics of
the noise's size are used. A release that no noise at all makes of one of the sums *proves* that it was not that one.

    python -m benchmarks.float_attack [--draws 1000000]

Ordinary noise releases fl(fl(s + w) / B) in float32: all w near enough are tried. On a grid the release is that of a
whole number m, rounded: all m near enough are tried, and whether m minus the sum's cell is a cell of the sampler.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from hushgrad.mechanism import GaussianNoise, GridNoise, NoiseMechanism
from hushgrad.noise.cells import farthest
from hushgrad.noise.gaussian import Noised
from hushgrad.randomness import Address, KeyStream

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

_NEAR = range(-3, 4)
AT_ONCE = 100_000


@dataclass(frozen=True)
class Case:
    """Two sums that a value may have had, and what is known: `rate` is that of the one SGD step whose weights are seen.

    The parameter was 0 before it. Without a rate the release itself is seen.
    """

    name: str
    noise_multiplier: float
    divisor: float
    sums: tuple[float, float]
    rate: float | None = None


CASES = (
    Case("one coordinate, 0 or C, B = 1", 1.0, 1.0, (0.0, 1.0)),
    Case("one coordinate, 0 or C, B = 256", 1.0, 256.0, (0.0, 1.0)),
    Case("the same, σ = 4", 4.0, 256.0, (0.0, 1.0)),
    Case("the same, σ = 1.1, B = 250", 1.1, 250.0, (0.0, 1.0)),
    Case("the same, σ = 0.7, B = 100", 0.7, 100.0, (0.0, 1.0)),
    Case("0.37 or 0.47: C over 100 coordinates", 1.0, 256.0, (0.37, 0.47)),
    Case("0.37 or 0.38: C over 10,000 coordinates", 1.0, 256.0, (0.37, 0.38)),
    Case("a rare embedding row, 0 or 0.05", 1.0, 256.0, (0.0, 0.05)),
    Case("the same, 0 or 0.005", 1.0, 256.0, (0.0, 0.005)),
    Case("weights after one SGD step from 0, rate 0.1", 1.0, 256.0, (0.0, 1.0), 0.1),
    Case("the same, rate 1", 1.0, 256.0, (0.0, 1.0), 1.0),
)


@dataclass(frozen=True)
class Finding:
    """Of how many releases of the first sum the second is disproven, and of how many the first, wrongly."""

    case: Case
    noise: str
    draws: int
    proofs: int
    mistakes: int


def attacked(case: Case, noise: NoiseMechanism, draws: int, stream: KeyStream) -> Finding:
    """Draw releases of the first sum, and count those that the second cannot have made."""
    reach = _on_grid if noise.sums_in_float64 else _in_float32
    dtype = torch.float64 if noise.sums_in_float64 else torch.float32
    proofs = mistakes = 0
    for number, begin in enumerate(range(0, draws, AT_ONCE)):
        total = torch.full((min(AT_ONCE, draws - begin),), case.sums[0], dtype=dtype)
        state = noise.start(stream)
        [update] = noise.updates(state, [Noised(total, Address(number))], sensitivity=1.0, divisor=case.divisor)
        seen = update.to(torch.float32).numpy()
        proofs += int((~_can_be(case, seen, case.sums[1], noise, reach)).sum())
        mistakes += int((~_can_be(case, seen, case.sums[0], noise, reach)).sum())
    return Finding(case, type(noise).__name__, draws, proofs, mistakes)


Reach = Callable[[Floats, float, Case, Any], Bools]


def _can_be(case: Case, releases: Floats, total: float, noise: NoiseMechanism, reach: Reach) -> Bools:
    """Return which of the releases, or of the weights that are seen in their place, a sum can have made."""
    if case.rate is None:
        return reach(releases, total, case, noise)
    weights = _after_a_step(releases, case.rate)
    guess = (-weights.astype(np.float64) / case.rate).astype(np.float32)
    found = np.zeros(len(weights), np.bool_)
    for release in _neighbours(guess):
        found |= (_after_a_step(release, case.rate) == weights) & reach(release, total, case, noise)
    return found


def _after_a_step(releases: Floats, rate: float) -> Floats:
    """Return what torch's SGD makes of parameters that were 0."""
    result: Floats = torch.zeros(len(releases)).add_(torch.from_numpy(releases), alpha=-rate).numpy()
    return result


def _neighbours(values: Floats, steps: Sequence[int] = _NEAR) -> list[Floats]:
    found = {0: values}
    for sign in (1, -1):
        value = values
        for step in range(1, max(steps) + 1):
            value = np.nextafter(value, np.float32(sign * np.inf))
            found[sign * step] = value
    return [found[step] for step in steps]


def _in_float32(releases: Floats, total: float, case: Case, noise: Any) -> Bools:
    """Return whether some float32 noise w makes a release: fl(fl(s + w) / B)."""
    found = np.zeros(len(releases), np.bool_)
    divisor, base = np.float32(case.divisor), np.float32(total)
    middle = (releases.astype(np.float64) * float(divisor)).astype(np.float32)
    for noised in _neighbours(middle):
        fits = noised / divisor == releases
        needed = (noised.astype(np.float64) - float(base)).astype(np.float32)
        for candidate in _neighbours(needed):
            found |= fits & (base + candidate == noised)
    return found


def _on_grid(releases: Floats, total: float, case: Case, noise: GridNoise) -> Bools:
    """Return whether some cell of the sampler makes a release, with the cell of the sum."""
    spacing = noise.spacing(1.0)
    cell = np.rint(total / spacing)
    most = np.floor(farthest() * noise.std(1.0) / spacing)
    middle = np.rint(releases.astype(np.float64) * case.divisor / spacing)
    found = np.zeros(len(releases), np.bool_)
    for step in _NEAR:
        number = middle + step
        made = ((number * spacing) / case.divisor).astype(np.float32)
        found |= (made == releases) & (np.abs(number - cell) <= most)
    return found


def attack_all(draws: int, stream: KeyStream, cases: Sequence[Case] = CASES) -> list[tuple[Finding, Finding]]:
    """Return what each case proves with ordinary noise and on a grid."""
    return [
        (
            attacked(case, GaussianNoise(case.noise_multiplier), draws, stream.fork(f"float {place}")),
            attacked(case, GridNoise(case.noise_multiplier), draws, stream.fork(f"grid {place}")),
        )
        for place, case in enumerate(cases)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.float_attack", description=__doc__)
    parser.add_argument("--draws", type=int, default=1_000_000)
    draws = parser.parse_args(arguments).draws
    say = Console(width=150).print
    say(f"Of {draws:,} releases of the first sum, how many prove that it was not the second (C = 1):")
    for ordinary, on_grid in attack_all(draws, KeyStream.from_operating_system()):
        say(
            f"| {ordinary.case.name} | {ordinary.proofs / draws:.2%} | {on_grid.proofs} | "
            f"(wrongly excluded: {ordinary.mistakes / draws:.2%}, {on_grid.mistakes}) |",
            highlight=False,
            markup=False,
        )


if __name__ == "__main__":
    main()
