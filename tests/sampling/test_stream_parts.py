"""Parts of streams that move or repeat records are known by their classes; others are left alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import ChainDataset, IterableDataset
from torch.utils.data.datapipes.iter import Filter, IterableWrapper, Mapper, Shuffler, UnBatcher

from hushgrad.errors import UnsupportedSamplerError
from hushgrad.sampling.stream_parts import require_places_kept


def is_even(number: int) -> bool:
    return number % 2 == 0


class Wrapped(IterableDataset[Any]):
    """A stream over something else."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __iter__(self) -> Iterator[Any]:
        return iter(self.inner)


def of_datasets(name: str, **fields: Any) -> Any:
    """Return an object of a class of that name in the package `datasets`, which need not be installed."""
    kind = type(name, (), {"__module__": "datasets.iterable_dataset"})
    made = kind()
    vars(made).update(fields)
    return made


def hugging(**parts: Any) -> Any:
    own = {"__module__": "datasets.iterable_dataset", "__iter__": lambda self: iter(())}
    kind = type("IterableDataset", (IterableDataset,), own)
    made = kind()
    vars(made).update(parts)
    return made


EXAMPLES = of_datasets("ExamplesIterable")
MOVING = {
    "a filter": lambda: Filter(IterableWrapper(range(9)), is_even),
    "a filter under others": lambda: Mapper(Shuffler(Filter(IterableWrapper(range(9)), is_even)), float),
    "unbatched": lambda: UnBatcher(IterableWrapper([[1], [2, 3]])),
    "a filter in a stream of one's own": lambda: Wrapped(filter(is_even, range(9))),
    "in a chain": lambda: ChainDataset([Wrapped([1]), Wrapped(itertools.cycle([1]))]),
    "takewhile": lambda: Wrapped([itertools.takewhile(is_even, range(9))]),
    "filter of Hugging Face": lambda: hugging(_ex_iterable=of_datasets("FilteredExamplesIterable", inner=EXAMPLES)),
    "packing by a batched map": lambda: hugging(
        _ex_iterable=of_datasets("MappedExamplesIterable", batched=True, ex_iterable=EXAMPLES)
    ),
    "interleaved until all are used up": lambda: hugging(
        _ex_iterable=of_datasets("CyclingMultiSourcesExamplesIterable", stopping_strategy="all_exhausted")
    ),
    "repeated": lambda: Wrapped(hugging(_ex_iterable=of_datasets("RepeatExamplesIterable"))),
}
KEEPING = {
    "a generator": lambda: Wrapped(range(9)),
    "mapped and shuffled by a buffer": lambda: Mapper(Shuffler(IterableWrapper(range(9))), float),
    "Hugging Face": lambda: hugging(
        _ex_iterable=of_datasets(
            "MappedExamplesIterable",
            batched=False,
            ex_iterable=of_datasets("BufferShuffledExamplesIterable", ex_iterable=EXAMPLES),
        )
    ),
    "interleaved": lambda: hugging(
        _ex_iterable=of_datasets("CyclingMultiSourcesExamplesIterable", stopping_strategy="first_exhausted")
    ),
    "a chain": lambda: ChainDataset([Wrapped([1]), Wrapped([2])]),
}


@pytest.mark.parametrize("name", MOVING)
def test_a_stream_whose_part_moves_or_repeats_records_is_refused_by_its_class(name: str) -> None:
    with pytest.raises(UnsupportedSamplerError, match="charged as one"):
        require_places_kept(MOVING[name]())


@pytest.mark.parametrize("name", KEEPING)
def test_a_stream_whose_parts_keep_places_is_taken(name: str) -> None:
    require_places_kept(KEEPING[name]())
