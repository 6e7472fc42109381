"""What each mechanism costs in ε, in noise and in time: the figures of docs/mechanisms.md.

    python -m benchmarks.mechanisms [--rounds 60]

Time is processor time of the process, with one thread, which waits of a shared machine leave out. A step (forward,
backward, clipping, noise, SGD; a network 784 → 256 → 10, 256 records) is compared with that of flat clipping and
ordinary noise in pairs, in one run. A draw is one of a pass, of 256 of 60,000 records on average.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.timing import Interval, median_interval
from hushgrad import (
    DPSGD,
    AutomaticClipping,
    BallsInBinsSampling,
    ClipRule,
    CorrelatedNoise,
    CyclicPoissonSampling,
    DisjointBatches,
    FixedOrderBatches,
    FixedSizeSampling,
    FlatClipping,
    GaussianNoise,
    GridNoise,
    GroupwiseClipping,
    Mechanism,
    NoiseMechanism,
    PerSampleAdaptiveClipping,
    PoissonSampling,
    QuantileClipping,
    SamplingScheme,
    TruncatedPoissonSampling,
    UserSampling,
    compare_noise,
    optimal_banded,
    optimal_buffered,
    privatize,
)
from hushgrad.accounting import Composition, epsilon
from hushgrad.randomness import KeyStream

DELTA, SIGMA, PASS, PASSES = 1e-5, 1.0, 100, (1, 15)
N, B, BATCHES = 60_000, 256, 16
RECORDS = 16
"""Of each user."""

RULES: Mapping[str, ClipRule] = {
    "automatic": AutomaticClipping(1.0),
    "per-sample-adaptive": PerSampleAdaptiveClipping(1.0),
    "per-layer": GroupwiseClipping(1.0),
    "per-layer:noise=least": GroupwiseClipping(1.0, noise="least"),
    "quantile": QuantileClipping(1.0, count_noise_multiplier=B / 20),
}
NOISES: Mapping[str, NoiseMechanism] = {
    "grid": GridNoise(SIGMA),
    "banded, 4 bands": CorrelatedNoise(SIGMA, optimal_banded(BATCHES, 4)),
    "banded, 16 bands": CorrelatedNoise(SIGMA, optimal_banded(BATCHES, 16)),
    "buffered": CorrelatedNoise(SIGMA, optimal_buffered(BATCHES, BATCHES)),
}


def samplings(steps: int, population: int) -> dict[str, SamplingScheme]:
    """Return each sampling of `steps` steps in a pass."""
    rate = 1 / steps
    return {
        "Poisson": PoissonSampling(rate),
        "truncated Poisson": TruncatedPoissonSampling.with_room(rate, population, multiple_of=1),
        "balls-in-bins": BallsInBinsSampling(steps),
        "fixed-size": FixedSizeSampling(population // steps, population),
        "disjoint": DisjointBatches(),
        "cyclic Poisson, 16 groups": CyclicPoissonSampling(rate, 16),
        "fixed order": FixedOrderBatches(steps),
        "whole users": whole_users(rate, population),
    }


def whole_users(rate: float, records: int) -> UserSampling:
    """Return the sampling of users with as many records each."""
    return UserSampling(rate=rate, users=[i // RECORDS for i in range(records)], examples_per_user=RECORDS)


def epsilons(scheme: SamplingScheme) -> list[float]:
    """Return ε after each number of passes, of independent noise."""

    def ran(passes: int) -> Composition:
        if scheme.counts_in == "passes":
            return [(scheme.event(SIGMA, index), PASS) for index in range(passes)]
        return [(scheme.event(SIGMA), passes * PASS)]

    return [epsilon(ran(passes), DELTA) for passes in PASSES]


def draw_ms(scheme: SamplingScheme) -> float | None:
    """Return the milliseconds of one draw; None where batches are the caller's own."""
    if scheme.takes_batches:
        return None
    steps = round(N / B)
    sampler = scheme.sampler(N, KeyStream.from_operating_system())
    for _ in sampler.one_pass(steps, 0):  # the first one makes tables
        pass
    start = time.process_time_ns()
    for _ in sampler.one_pass(steps, steps):
        pass
    return (time.process_time_ns() - start) * 1e-6 / steps


def stepping(rule: ClipRule, noise: NoiseMechanism) -> Callable[[], float]:
    """Return a function that takes one step and returns its milliseconds."""
    own = [range(place, place + B) for place in range(0, BATCHES * B, B)]
    planned = Mechanism(noise=noise, clipping=rule, sampling=FixedOrderBatches(BATCHES), expected_batch_size=B)
    return _steps(planned, BATCHES * B, batches=own)


def drawing(sampling: SamplingScheme) -> Callable[[], float]:
    """Return a function that takes one step on all of B records, by their user or by themselves."""
    size = sampling.units_in(B)
    planned = DPSGD(noise_multiplier=SIGMA, clipping=FlatClipping(1.0), sampling=sampling, expected_batch_size=size)
    return _steps(planned, B, steps_per_pass=1000)


def _steps(planned: Mechanism, records: int, **loading: Any) -> Callable[[], float]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    session = privatize(model, optimizer, planned)
    data = TensorDataset(torch.randn(records, 784), torch.randint(0, 10, (records,)))
    items = itertools.chain.from_iterable(itertools.repeat(session.batches(data, **loading)))
    criterion = nn.CrossEntropyLoss(reduction="none")

    def step() -> float:
        x, y = next(items)
        start = time.process_time_ns()
        session.backward(criterion(model(x), y))
        optimizer.step()
        return (time.process_time_ns() - start) * 1e-6

    return step


def paired(one: Callable[[], float], other: Callable[[], float], rounds: int) -> Interval:
    """Return the time of the second step over that of the first."""
    both = one, other
    ratios = []
    for number in range(rounds + 3):
        taken = {one: both[one]() for one in ((0, 1) if number % 2 else (1, 0))}
        ratios.append(taken[1] / taken[0])
    return median_interval(ratios[3:])


def left_over(passes: int, **plan: float | int) -> dict[str, float]:
    """Return by noise the prefix RMSE at ε = 2, over that of independent noise."""
    found = compare_noise(epsilon=2.0, delta=DELTA, steps=passes * PASS, **plan)  # type: ignore[arg-type]
    best = {option.name: option.rmse for option in reversed(found.correlated)}
    return {name: rmse / found.independent.rmse for name, rmse in best.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mechanisms", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args(arguments).rounds
    torch.set_num_threads(1)
    say = Console(width=150, highlight=False, markup=False).print
    say("| sampling | ε after 1 pass | after 15 | a draw |")
    drawn = samplings(round(N / B), N)
    for (name, scheme), other in zip(samplings(PASS, N).items(), drawn.values(), strict=True):
        once, often = epsilons(scheme)
        took = draw_ms(other)
        say(f"| {name} | {once:.3f} | {often:.3f} | {'none' if took is None else f'{took:.3f} ms'} |")
    for passes in PASSES:
        say(f"{passes} passes, noise in sums at ε = 2 over independent noise:")
        say(f"  Poisson {left_over(passes, rate=1 / PASS)}, own batches {left_over(passes, steps_per_pass=PASS)}")
    say("| mechanism | time of a step over flat clipping and ordinary noise (95% interval) |")
    cases = [(name, rule, GaussianNoise(SIGMA)) for name, rule in RULES.items()]
    for name, rule, noise in (*cases, *((name, FlatClipping(1.0), noise) for name, noise in NOISES.items())):
        ratio = paired(stepping(FlatClipping(1.0), GaussianNoise(SIGMA)), stepping(rule, noise), rounds)
        say(f"| {name} | {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) |")
    ratio = paired(drawing(PoissonSampling(1.0)), drawing(whole_users(1.0, B)), rounds)
    interval = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
    say(f"a step on whole users of {RECORDS} records, over the same records by themselves: {interval}")


if __name__ == "__main__":
    main()
