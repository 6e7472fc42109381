"""The loaders of a session: they draw as its mechanism says, from its own secret bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from hushgrad.errors import DatasetError, InvalidArgumentError
from hushgrad.parallel.batches import BatchesOfFirst
from hushgrad.sampling.loader import PrivateLoader, require_expected_size
from hushgrad.sampling.records import BatchObserver
from hushgrad.sampling.stream import StreamLoader, is_stream, read_stream
from hushgrad.sampling.torch_loader import LoadingOptions, dataset_length, read_data_loader
from hushgrad.session.parts import Parts


def loader_over(
    parts: Parts,
    dataset: Any,
    observer: BatchObserver,
    *,
    steps_per_pass: int | None,
    batches: Sequence[Sequence[int]] | None,
    options: LoadingOptions | None,
    max_physical_batch_size: int | None,
    constant_shapes: bool,
) -> PrivateLoader:
    """Return a loader over a data set; see `Session.batches`."""
    count = dataset_length(dataset)
    sampling, size = parts.mechanism.sampling, parts.mechanism.expected_batch_size
    require_expected_size(sampling, size, count)
    if steps_per_pass is None and sampling.allocation is not None:
        steps_per_pass = sampling.allocation.bins
    if steps_per_pass is None:
        steps_per_pass = math.ceil(sampling.units_in(count) / size - 1e-9) if batches is None else len(batches)
    return PrivateLoader(
        dataset,
        sampling,
        steps_per_pass=steps_per_pass,
        stream=parts.draws.fork("loader"),
        batch_size=size,
        batches=batches,
        options=options,
        max_physical_batch_size=max_physical_batch_size,
        constant_shapes=constant_shapes,
        observer=observer,
        share=parts.share,
        agree=partial(BatchesOfFirst, parts.world),
    )


def loader_of(
    parts: Parts,
    data_loader: Any,
    observer: BatchObserver,
    *,
    max_physical_batch_size: int | None,
    constant_shapes: bool,
) -> PrivateLoader | StreamLoader:
    """Return a loader with what a DataLoader says about its data; see `Session.batches_of`."""
    loader = _loader_of(parts, data_loader, observer, max_physical_batch_size, constant_shapes)
    if loader.batch_size != parts.mechanism.expected_batch_size:
        raise InvalidArgumentError(
            f"the data loader has batch_size {loader.batch_size:g}, the mechanism expected_batch_size "
            f"{parts.mechanism.expected_batch_size:g}",
            cure="Give both the same number",
        )
    return loader


def _loader_of(
    parts: Parts, data_loader: Any, observer: BatchObserver, rows: int | None, constant_shapes: bool
) -> PrivateLoader | StreamLoader:
    if is_stream(data_loader):
        if not parts.world.is_alone:
            raise DatasetError(
                "it is a stream (an IterableDataset), of which each process would read all",
                where="the dataset",
                cure="Train on it in one process, or load it into a map-style dataset, with __len__ and __getitem__",
            )
        return StreamLoader(
            read_stream(data_loader),
            parts.mechanism.sampling,
            max_physical_batch_size=rows,
            constant_shapes=constant_shapes,
            observer=observer,
        )
    return PrivateLoader.from_data_loader(
        read_data_loader(data_loader),
        parts.mechanism.sampling,
        stream=parts.draws.fork("loader"),
        max_physical_batch_size=rows,
        constant_shapes=constant_shapes,
        observer=observer,
        share=parts.share,
        agree=partial(BatchesOfFirst, parts.world),
    )
