"""Noise by its name, for the façade: which strategy that is for a data loader, and the sampling that goes with it."""

from __future__ import annotations

from hushgrad.arguments import one_of, whole_number
from hushgrad.errors import DatasetError, InvalidArgumentError, UnsupportedSamplerError
from hushgrad.mechanism.choice import compare_noise
from hushgrad.mechanism.known import NAMED
from hushgrad.printable import printable
from hushgrad.sampling.choice import Reading
from hushgrad.sampling.cyclic import CyclicPoissonSampling
from hushgrad.sampling.fixed_order import FixedOrderBatches
from hushgrad.sampling.scheme import SamplingScheme
from hushgrad.sampling.stream import StreamReading
from hushgrad.sampling.torch_loader import DataLoaderReading, is_shuffled
from hushgrad.strategies.banded import INDEPENDENT
from hushgrad.strategies.strategy import Strategy

CHOSEN = ("banded", "buffered", "best")
"""Noise whose strategy is chosen for a plan."""


def kind_of(noise: str | Strategy) -> str:
    """Return which of `NAMED` noise is drawn, given the argument of a façade."""
    return noise if isinstance(noise, str) and noise in NAMED else "gaussian"


def strategy_given(noise: object) -> Strategy:
    """Return a strategy, or for noise of `NAMED` the identity. Raises `InvalidArgumentError` for anything else."""
    if isinstance(noise, Strategy):
        return noise
    if isinstance(noise, str) and noise in NAMED:
        return INDEPENDENT
    if isinstance(noise, str) and noise in CHOSEN:
        raise InvalidArgumentError(
            f"{noise!r} noise is chosen for a number of steps and an epsilon, and neither is planned here",
            where="noise",
            cure="Call make_private_with_epsilon, or give a strategy: hushgrad.optimal_banded(steps, bands)",
        )
    raise InvalidArgumentError(
        'must be "gaussian", "grid" or a strategy, got '
        + (repr(printable(noise)) if isinstance(noise, str) else type(noise).__name__),
        where="noise",
        cure="Give hushgrad.optimal_banded(steps, bands), say",
    )


def apart(sampling: SamplingScheme, strategy: Strategy, *, steps_per_pass: int) -> SamplingScheme:
    """Return what goes with a strategy in the place of Poisson sampling, or of the caller's own batches.

    A scheme that goes with it stays. Raises `InvalidArgumentError` for one that has no such partner.
    """
    if sampling.correlated_event(1.0, strategy) is not None:
        return sampling
    if sampling.takes_batches:
        return FixedOrderBatches(steps_per_pass)
    if sampling.poisson_rate is None or sampling.largest_batch is not None or strategy.bands is None:
        raise _no_partner(f"correlated noise by {type(strategy).__name__}", sampling)
    return CyclicPoissonSampling(sampling.poisson_rate, strategy.bands)


def _no_partner(noise: str, sampling: SamplingScheme) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{noise} does not go with {type(sampling).__name__}",
        where="noise",
        cure="Take a banded strategy and leave sampling and max_batch_size out; or batches in a fixed order "
        "(poisson_sampling=False)",
    )


def steps_of(reading: Reading) -> int:
    """Return how many batches a pass has. Raises `DatasetError` for a stream, of which nobody knows."""
    if isinstance(reading, StreamReading):
        raise DatasetError(
            "it is a stream (an IterableDataset): how soon a record comes back is not known, and correlated noise is "
            "charged by that",
            where="the dataset",
            cure='Leave noise="gaussian", or load it into a map-style dataset, with __len__ and __getitem__',
        )
    return reading.steps


def require_fixed_order(reading: Reading, sampling: SamplingScheme) -> None:
    """Refuse a loader that shuffles, where batches must come in the same order in every pass."""
    if sampling.takes_batches and isinstance(reading, DataLoaderReading) and is_shuffled(reading):
        raise UnsupportedSamplerError(
            "shuffle=True gives other batches in every pass, so that a record may come back after a few steps, which "
            "would share noise",
            where="data_loader",
            cure="Shuffle the records once beforehand and pass shuffle=False, or draw them by poisson_sampling=True",
        )


def strategy_for(
    noise: str | Strategy,
    reading: Reading,
    sampling: SamplingScheme,
    epochs: int,
    spare_steps: int,
    accountant: str,
    *,
    epsilon: float,
    delta: float,
) -> Strategy:
    """Return the strategy that `noise` names for the planned steps, or is."""
    if not isinstance(noise, str) or noise in NAMED:
        return strategy_given(noise)
    one_of("noise", noise, (*NAMED, *CHOSEN))
    if sampling.poisson_rate is None and not sampling.takes_batches:
        raise _no_partner(f"{noise} noise", sampling)
    steps = whole_number("epochs", epochs, minimum=1) * steps_of(reading)
    found = compare_noise(
        epsilon=epsilon,
        delta=delta,
        steps=steps + whole_number("spare_steps", spare_steps, minimum=0),
        rate=sampling.poisson_rate,
        steps_per_pass=steps_of(reading) if sampling.takes_batches else None,
        accountant=accountant,
    )
    return found.named(noise).strategy
