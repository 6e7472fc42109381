"""Reading a DataLoader: what is honoured, and each refusal with its cure."""

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from hushgrad.errors import DatasetError, InvalidArgumentError, UnsupportedSamplerError
from hushgrad.randomness import KeyStream
from hushgrad.sampling import DisjointBatches, PoissonSampling, PrivateLoader
from hushgrad.sampling.torch_loader import read_data_loader


class Unreadable(Dataset):
    """A dataset whose records must not be read while a loader is made."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        raise AssertionError("data was read")


DATA = Unreadable(100)


class OwnRandomSampler(RandomSampler):
    pass


class OwnBatchSampler(BatchSampler):
    pass


class OwnLoader(DataLoader):
    def __iter__(self):
        return iter([])


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


class NoLength:
    def __getitem__(self, index):
        raise AssertionError("data was read")


REFUSED_SAMPLERS = {
    "weighted": (lambda: DataLoader(DATA, 10, sampler=WeightedRandomSampler([1.0] * 100, 100)), "losses"),
    "subset": (lambda: DataLoader(DATA, 10, sampler=SubsetRandomSampler(range(50))), "Subset"),
    "distributed": (lambda: DataLoader(DATA, 10, sampler=DistributedSampler(DATA, 2, 0)), "process 0 of 1"),
    "replacement": (lambda: DataLoader(DATA, 10, sampler=RandomSampler(DATA, replacement=True)), "replacement"),
    "too few": (lambda: DataLoader(DATA, 10, sampler=RandomSampler(DATA, num_samples=50)), "num_samples"),
    "too many": (lambda: DataLoader(DATA, 10, sampler=RandomSampler(DATA, num_samples=150)), "num_samples"),
    "another source": (lambda: DataLoader(DATA, 10, sampler=SequentialSampler(range(50))), "50 records"),
    "subclass": (lambda: DataLoader(DATA, 10, sampler=OwnRandomSampler(DATA)), "OwnRandomSampler"),
    "a list": (lambda: DataLoader(DATA, 10, sampler=list(range(100))), "Leave the sampler out"),
    "batch sampler": (
        lambda: DataLoader(DATA, batch_sampler=OwnBatchSampler(SequentialSampler(DATA), 10, False)),
        "OwnBatchSampler",
    ),
    "list of batches": (lambda: DataLoader(DATA, batch_sampler=[[0, 1], [2]]), "batch_sampler"),
    "no batching": (lambda: DataLoader(DATA, batch_size=None), "batch_size=None"),
}


@pytest.mark.parametrize("scheme", [PoissonSampling(0.1), DisjointBatches()])
@pytest.mark.parametrize("case", REFUSED_SAMPLERS)
def test_samplers_that_cannot_be_honoured_are_refused_with_a_cure(case, scheme):
    make, words = REFUSED_SAMPLERS[case]
    with pytest.raises(UnsupportedSamplerError, match=words):
        PrivateLoader.from_data_loader(make(), scheme, stream=KeyStream.fixed_for_tests(0))


REFUSED_DATASETS = {
    "iterable": (lambda: DataLoader(Stream(), 10), "map-style"),
    "no length": (lambda: DataLoader(NoLength(), 10, sampler=SequentialSampler(DATA)), "__len__"),
    "empty": (lambda: DataLoader(Unreadable(0), 10), "empty"),
    "small": (lambda: DataLoader(Unreadable(9), 10), "batch_size=9"),
}


@pytest.mark.parametrize("case", REFUSED_DATASETS)
def test_datasets_that_cannot_be_sampled_are_refused_with_a_cure(case):
    make, words = REFUSED_DATASETS[case]
    with pytest.raises(DatasetError, match=words):
        read_data_loader(make())


def test_what_is_no_data_loader_is_refused():
    loader = PrivateLoader(DATA, PoissonSampling(0.1), steps_per_pass=1, stream=KeyStream.fixed_for_tests(0))
    for wrong in ([1, 2], DATA, loader, None):
        with pytest.raises(InvalidArgumentError, match="DataLoader"):
            read_data_loader(wrong)
    with pytest.raises(InvalidArgumentError, match="__iter__"):
        read_data_loader(OwnLoader(DATA))


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda drop: DataLoader(DATA, 30, drop_last=drop),
        lambda drop: DataLoader(DATA, 30, shuffle=True, drop_last=drop),
        lambda drop: DataLoader(DATA, 30, sampler=RandomSampler(DATA, num_samples=100), drop_last=drop),
        lambda drop: DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 30, drop)),
    ],
)
def test_the_steps_and_the_batch_size_stay_the_callers(make, drop_last):
    """No data is read while a loader is made."""
    stream = KeyStream.fixed_for_tests(0)
    poisson = PrivateLoader.from_data_loader(make(drop_last), PoissonSampling(0.3), stream=stream)
    assert (len(poisson), poisson.batch_size) == (3 if drop_last else 4, 30)
    assert poisson.sampling == PoissonSampling(0.3)
    own = PrivateLoader.from_data_loader(make(drop_last), DisjointBatches(), stream=stream)
    assert (len(own), own.batch_size, own.sampling) == (3 if drop_last else 4, 30, DisjointBatches())
    assert own.dataset is poisson.dataset is DATA


def test_a_batch_of_everything_is_allowed():
    loader = PrivateLoader.from_data_loader(
        DataLoader(DATA, 100), PoissonSampling(1.0), stream=KeyStream.fixed_for_tests(0)
    )
    assert loader.sampling.rate == 1.0


def test_what_was_read_of_a_data_loader_stands_for_it():
    reading = read_data_loader(DataLoader(DATA, 30))
    assert read_data_loader(reading) is reading


def test_loading_options_are_read():
    def collate(records):
        return records

    def prepare(worker):
        return None

    generator = torch.Generator()
    options = read_data_loader(
        DataLoader(
            TensorDataset(torch.zeros(10)),
            2,
            collate_fn=collate,
            num_workers=1,
            timeout=7,
            worker_init_fn=prepare,
            multiprocessing_context="fork",
            generator=generator,
            prefetch_factor=3,
            persistent_workers=True,
        )
    ).options
    assert options.collate_fn is collate
    assert options.worker_init_fn is prepare
    assert options.generator is generator
    assert (options.num_workers, options.timeout, options.prefetch_factor) == (1, 7, 3)
    assert options.persistent_workers
    assert options.multiprocessing_context.get_start_method() == "fork"


def test_a_prepared_loader_of_accelerates_is_refused_with_the_order_that_works():
    prepared = type("DataLoaderShard", (DataLoader,), {"__module__": "accelerate.data_loader", "__iter__": iter})
    with pytest.raises(InvalidArgumentError) as raised:
        read_data_loader(prepared(DATA, batch_size=5))
    assert "accelerator.prepare(model, optimizer)" in raised.value.cure
