"""The sampling that the arguments of a façade name, for a data loader."""

from __future__ import annotations

from typing import Literal

from hushgrad.arguments import one_of, positive_number, whole_number
from hushgrad.errors import DatasetError, InvalidArgumentError
from hushgrad.sampling.balls_in_bins import BallsInBinsSampling
from hushgrad.sampling.disjoint import DisjointBatches
from hushgrad.sampling.fixed_size import FixedSizeSampling
from hushgrad.sampling.poisson import PoissonSampling
from hushgrad.sampling.scheme import SamplingScheme, require_scheme
from hushgrad.sampling.stream import StreamReading
from hushgrad.sampling.torch_loader import DataLoaderReading, in_users
from hushgrad.sampling.truncated_poisson import TruncatedPoissonSampling

Reading = DataLoaderReading | StreamReading

NAMES = ("poisson", "balls-in-bins", "fixed-size")


def scheme_for(
    reading: Reading,
    sampling: str | SamplingScheme | None,
    poisson_sampling: bool,
    max_batch_size: int | Literal["auto"] | None,
    max_physical_batch_size: int | None,
) -> SamplingScheme:
    """Return the scheme that the arguments of `make_private` name: q = batch_size / N exactly.

    Raises `InvalidArgumentError` for arguments that say two things, and `DatasetError` for a stream whose records would
    be drawn.
    """
    if sampling is not None:
        if poisson_sampling is not True or max_batch_size is not None:
            raise InvalidArgumentError(
                "sampling says how records are drawn, and so do poisson_sampling=False and max_batch_size",
                cure="Give one of them: sampling=DisjointBatches() is poisson_sampling=False, and "
                "sampling=TruncatedPoissonSampling(...) has a largest batch",
            )
        return _named(reading, sampling) if isinstance(sampling, str) else require_scheme(sampling)
    if not isinstance(poisson_sampling, bool):
        raise InvalidArgumentError(
            f"must be True or False, got {type(poisson_sampling).__name__}",
            where="poisson_sampling",
            cure="Pass True, or False to keep the loader's own batches",
        )
    if isinstance(reading, StreamReading) and poisson_sampling:
        raise DatasetError(
            "it is a stream (an IterableDataset), whose records cannot be drawn at random",
            where="the dataset",
            cure="Pass poisson_sampling=False to train on its own batches, each record once in a pass, charged without "
            "amplification; or load it into a map-style dataset, with __len__ and __getitem__",
        )
    if isinstance(reading, StreamReading) or not poisson_sampling:
        if max_batch_size is not None:
            raise InvalidArgumentError(
                "max_batch_size truncates Poisson draws, and poisson_sampling=False keeps the loader's own batches",
                cure="Leave one of them out",
            )
        return DisjointBatches()
    rate, count = reading.batch_size / reading.count, reading.count
    if max_batch_size is None:
        return PoissonSampling(rate)
    if max_batch_size == "auto":
        rows = whole_number("max_physical_batch_size", max_physical_batch_size or 1, minimum=1)
        return TruncatedPoissonSampling.with_room(rate, count, multiple_of=rows)
    return TruncatedPoissonSampling(rate, count, max_batch_size)


def _named(reading: Reading, name: str) -> SamplingScheme:
    """Return the scheme of that name for a data loader: an epoch is len(data_loader) steps."""
    one_of("sampling", name, NAMES)
    if isinstance(reading, StreamReading):
        raise DatasetError(
            "it is a stream (an IterableDataset), whose records cannot be drawn at random",
            where="the dataset",
            cure="Pass poisson_sampling=False and leave sampling out, or load it into a map-style dataset",
        )
    return scheme_named(name, reading.batch_size, reading.count, reading.steps)


def scheme_named(name: str, batch_size: float, population: int, steps_per_pass: int) -> SamplingScheme:
    """Return the scheme of a name of NAMES, for passes of so many steps with `batch_size` records on average.

    Raises `InvalidArgumentError` for another name, and for batches larger than the population.
    """
    one_of("sampling", name, NAMES)
    if name == "poisson":
        return PoissonSampling(batch_size / population)
    if name == "balls-in-bins":
        return BallsInBinsSampling(steps_per_pass)
    return FixedSizeSampling(int(batch_size), population)


def counted_in(reading: Reading, sampling: SamplingScheme) -> Reading:
    """Return the reading with as many steps in a pass as its batch size makes of what the scheme draws."""
    return reading if isinstance(reading, StreamReading) else in_users(reading, sampling)


def size_for(reading: Reading, sampling: SamplingScheme) -> float:
    """Return B of a loader (see `size_of`)."""
    if isinstance(reading, StreamReading):
        return reading.batch_size
    return size_of(sampling, reading.batch_size, reading.count)


def size_of(sampling: SamplingScheme, batch_size: float, population: int) -> float:
    """Return B: the batch size, or where each pass is shared out over its steps what a step has on average."""
    if sampling.allocation is None:
        return batch_size
    return positive_number("expected_batch_size", sampling.expected_batch_size(population))


def passes_of(sampling: SamplingScheme, steps: int, steps_per_pass: int, spare_steps: int) -> int | None:
    """Return how many passes so many steps are, where passes are charged; else None.

    Raises `InvalidArgumentError` for spare steps of passes: a pass is charged whole.
    """
    if sampling.counts_in != "passes":
        return None
    if spare_steps:
        raise InvalidArgumentError(
            f"spare_steps does not go with {type(sampling).__name__}, which is charged in passes over the data",
            where="spare_steps",
            cure="Plan one epoch more: a pass that a crash cuts off is charged whole",
        )
    return -(-steps // steps_per_pass)
