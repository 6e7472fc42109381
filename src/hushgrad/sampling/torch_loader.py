"""Reading a torch DataLoader: what it says about the data, and whether its draw can be honoured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from hushgrad.arguments import whole_number
from hushgrad.errors import DatasetError, InvalidArgumentError, UnsupportedSamplerError
from hushgrad.sampling.records import Share
from hushgrad.sampling.scheme import SamplingScheme

_CURE = "Leave the sampler out: pass DataLoader(dataset, batch_size=..., shuffle=True)"
_CURES: dict[type, tuple[str, str]] = {
    SubsetRandomSampler: (
        "it draws from a part of the dataset",
        "Pass torch.utils.data.Subset(dataset, indices) as the dataset, and leave the sampler out",
    ),
    WeightedRandomSampler: (
        "weights would change every example's probability, and so the charge",
        "Leave the sampler out, and weight the examples' losses",
    ),
}
"""Of samplers that cannot be honoured: why, and what to do."""


@dataclass(frozen=True)
class LoadingOptions:
    """How records are fetched, in the words of `torch.utils.data.DataLoader`. None of it changes the draw."""

    collate_fn: Callable[[list[Any]], Any] | None = None
    num_workers: int = 0
    pin_memory: bool = False
    pin_memory_device: str = ""
    timeout: float = 0.0
    worker_init_fn: Callable[[int], None] | None = None
    multiprocessing_context: Any = None
    generator: Any = None
    prefetch_factor: int | None = None
    persistent_workers: bool = False


@dataclass(frozen=True)
class DataLoaderReading:
    """What was read from a DataLoader.

    Attributes:
        dataset: the map-style dataset.
        count: len(dataset), by its use declared public.
        batch_size: records per batch, a public constant; of several processes with a `DistributedSampler`, of all of
            them together.
        steps: len(data_loader), batches per pass, with `drop_last` as the caller chose it.
        batches: the caller's own batch sampler.
        options: how records are fetched.
        share: which process of how many a `DistributedSampler` is for; None without one.
    """

    dataset: Any
    count: int
    batch_size: float
    steps: int
    batches: BatchSampler
    options: LoadingOptions
    share: Share | None = None


def read_data_loader(data_loader: Any) -> DataLoaderReading:
    """Read a DataLoader, without reading data; what was read of one already is returned as it is.

    Samplers are recognised by their exact type, because a subclass may draw differently: `SequentialSampler`, and
    `RandomSampler` that draws every record once. Of a `DistributedSampler` the number of processes is read, and its
    draw is replaced by one of the library's own.

    Raises:
        InvalidArgumentError: not a `torch.utils.data.DataLoader`, or one with its own way of iterating.
        DatasetError: an iterable dataset, one without a length, an empty one, or one smaller than a batch.
        UnsupportedSamplerError: a sampler or batch sampler whose draw cannot be honoured; the message names the cure.
    """
    if isinstance(data_loader, DataLoaderReading):
        return data_loader
    if not isinstance(data_loader, DataLoader):
        raise InvalidArgumentError(
            f"must be a torch.utils.data.DataLoader, got {type(data_loader).__name__}",
            where="data_loader",
            cure="Wrap the dataset in a DataLoader, and make a loader private once only",
        )
    if type(data_loader).__iter__ is not DataLoader.__iter__:
        raise InvalidArgumentError(
            f"is a {type(data_loader).__name__} with its own __iter__, which would be left out",
            where="data_loader",
            cure=_own_iteration(type(data_loader)),
        )
    count = dataset_length(data_loader.dataset)
    batches = _known_batch_sampler(data_loader)
    _require_every_record_once(batches.sampler, count)
    share = _share_of(batches.sampler)
    size = batches.batch_size * (1 if share is None else share.of)
    if size > count:
        raise DatasetError(
            f"{size} is greater than the {count} records of the dataset",
            where="batch_size",
            cure=f"Use batch_size={count} for full batches",
        )
    return DataLoaderReading(
        dataset=data_loader.dataset,
        count=count,
        batch_size=size,
        steps=len(batches),
        batches=batches,
        options=LoadingOptions(
            collate_fn=data_loader.collate_fn,
            num_workers=data_loader.num_workers,
            pin_memory=data_loader.pin_memory,
            pin_memory_device=data_loader.pin_memory_device,
            timeout=data_loader.timeout,
            worker_init_fn=data_loader.worker_init_fn,
            multiprocessing_context=data_loader.multiprocessing_context,
            generator=data_loader.generator,
            prefetch_factor=data_loader.prefetch_factor,
            persistent_workers=data_loader.persistent_workers,
        ),
        share=share,
    )


def is_shuffled(reading: DataLoaderReading) -> bool:
    """Return whether the caller's own batches are other ones in every pass."""
    return type(reading.batches.sampler) is RandomSampler


def require_share(reading: DataLoaderReading, share: Share) -> None:
    """Refuse a `DistributedSampler` for another number of processes than there are, or for another one of them."""
    if reading.share is not None and reading.share != share:
        raise UnsupportedSamplerError(
            f"DistributedSampler is that of process {reading.share.rank} of {reading.share.of}, and this is process "
            f"{share.rank} of {share.of}",
            where="data_loader",
            cure="Make it after torch.distributed.init_process_group, without num_replicas and rank; or leave the "
            "sampler out, with the batch size of all processes together",
        )


def _share_of(sampler: Any) -> Share | None:
    return Share(sampler.rank, sampler.num_replicas) if type(sampler) is DistributedSampler else None


def _own_iteration(kind: type) -> str:
    if kind.__module__.partition(".")[0] == "accelerate":
        return (
            "Call make_private with the ordinary DataLoader first, and then accelerator.prepare(model, optimizer), "
            "without the private loader"
        )
    return "Move what it does to the dataset or to collate_fn"


def accumulated(reading: DataLoaderReading, accumulation: int) -> DataLoaderReading:
    """Return what a DataLoader says whose batches are `accumulation` of these joined: k·b records, in their order.

    Raises:
        InvalidArgumentError: `accumulation` is no whole number >= 1.
        DatasetError: fewer records than a joined batch.
    """
    if whole_number("accumulation", accumulation, minimum=1) == 1:
        return reading
    own = accumulation * reading.batches.batch_size
    size = own * (1 if reading.share is None else reading.share.of)
    if size > reading.count:
        raise DatasetError(
            f"{accumulation} batches of {reading.batches.batch_size} are {size} records, and the dataset has "
            f"{reading.count}",
            where="accumulation",
            cure=f"Use at most accumulation={reading.count // reading.batches.batch_size}",
        )
    joined = BatchSampler(reading.batches.sampler, own, reading.batches.drop_last)
    return replace(reading, batch_size=size, steps=len(joined), batches=joined)


def in_users(reading: DataLoaderReading, sampling: SamplingScheme) -> DataLoaderReading:
    """Return the reading for sampling of whole users: its batch size counts users, and a pass as many steps as that.

    Any other is returned as it is.
    """
    if sampling.ownership is None:
        return reading
    return replace(reading, steps=math.ceil(sampling.units_in(reading.count) / reading.batch_size - 1e-9))


def for_each_process(reading: DataLoaderReading, share: Share) -> DataLoaderReading:
    """Return what a DataLoader says whose batch size is that of one process, as a framework has it: B is that of all.

    Raises `DatasetError` for fewer records than a batch of all processes.
    """
    if share.of == 1 or reading.share is not None:
        return reading
    size = int(reading.batch_size) * share.of
    if size > reading.count:
        raise DatasetError(
            f"{share.of} processes with {reading.batch_size:g} records each take {size} of {reading.count} records",
            where="batch_size",
            cure=f"Use at most batch_size={reading.count // share.of}",
        )
    return replace(reading, batch_size=size, steps=-(-reading.steps // share.of), share=share)


def dataset_length(dataset: Any) -> int:
    """Return len(dataset), at least 1, or raise `DatasetError`."""
    if isinstance(dataset, IterableDataset):
        raise DatasetError(
            "it is an IterableDataset, whose records cannot be drawn by index",
            where="the dataset",
            cure="Train on its own batches, each record once in a pass: make_private(poisson_sampling=False) with "
            "DataLoader(stream, batch_size=...), or session.batches_of(that) with DisjointBatches(). Or load it into a "
            "map-style dataset, with __len__ and __getitem__",
        )
    try:
        count = len(dataset)
    except TypeError:
        raise DatasetError(
            f"{type(dataset).__name__} has no length, so a sampling rate is not defined",
            where="the dataset",
            cure="Add __len__",
        ) from None
    if count < 1:
        raise DatasetError("it is empty", where="the dataset", cure="Give it at least one record")
    return count


def _known_batch_sampler(data_loader: DataLoader[Any]) -> BatchSampler:
    batches = data_loader.batch_sampler
    if batches is None:
        raise UnsupportedSamplerError(
            "it has batch_size=None (batching switched off), so one item is not a known number of records",
            where="data_loader",
            cure="Pass batch_size, and let collate_fn build the batch",
        )
    if type(batches) is not BatchSampler:
        raise UnsupportedSamplerError(
            f"it has a batch_sampler of its own ({type(batches).__name__}), which cannot be honoured",
            where="data_loader",
            cure=_CURE,
        )
    return batches


def _require_every_record_once(sampler: Any, count: int) -> None:
    kind = type(sampler)
    if kind is RandomSampler:
        if sampler.replacement:
            raise UnsupportedSamplerError(
                "RandomSampler(replacement=True) draws some records several times and others never", cure=_CURE
            )
        if sampler.num_samples != count:
            raise UnsupportedSamplerError(
                f"RandomSampler has num_samples={sampler.num_samples} for {count} records", cure=_CURE
            )
    elif kind is not SequentialSampler and kind is not DistributedSampler:
        why, cure = _CURES.get(kind, ("it is not known how it draws", _CURE))
        raise UnsupportedSamplerError(f"{kind.__name__} cannot be honoured: {why}", cure=cure)
    source = sampler.dataset if kind is DistributedSampler else sampler.data_source
    if len(source) != count:
        raise UnsupportedSamplerError(
            f"{kind.__name__} draws from {len(source)} records and the dataset has {count}", cure=_CURE
        )
