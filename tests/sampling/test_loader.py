"""The loader: every drawn record once, in physical batches, whatever the workers and the items."""

import itertools
import random
import sys
import threading
from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, TensorDataset, get_worker_info

from hushgrad.errors import (
    BatchStructureError,
    ContractChangedError,
    DatasetError,
    DuplicateRecordError,
    InvalidArgumentError,
    ProtocolError,
    UnsupportedSamplerError,
)
from hushgrad.randomness import KeyStream
from hushgrad.sampling import (
    DisjointBatches,
    LoadingOptions,
    PoissonSampling,
    PrivateLoader,
    TruncatedPoissonSampling,
)
from hushgrad.sampling.records import Cutting, cut


class Recorder:
    """An observer that writes down what it is told."""

    def __init__(self):
        self.batches = []
        self.draws = 0

    def before_draw(self):
        self.draws += 1

    def begin(self, batch, item):
        self.batches.append(batch)


class Numbers(Dataset):
    """Record i is the number i."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return index


def loader(length=40, rate=0.2, steps=10, dataset=None, recorder=None, seed=0, limit=None, **options):
    return PrivateLoader(
        dataset or Numbers(length),
        PoissonSampling(rate),
        steps_per_pass=steps,
        stream=KeyStream.fixed_for_tests(seed),
        max_physical_batch_size=limit,
        options=LoadingOptions(**options),
        observer=recorder,
    )


@given(st.lists(st.integers(0, 99), unique=True, max_size=30), st.none() | st.integers(1, 40))
def test_physical_batches_partition_the_logical_batch(indices, limit):
    """The physical batches partition the logical batch, and the last one alone is marked `last`."""
    parts = cut(tuple(indices), Cutting(limit), step=3, pass_index=1)
    assert [index for part in parts for index in part.indices] == indices
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert [part.first for part in parts] == [True] + [False] * (len(parts) - 1)
    assert all(part.size == max(1, len(part.indices)) <= max(1, limit or 30) for part in parts)
    assert all(part.weight == (1.0 if indices else 0.0) for part in parts)
    assert {(part.step, part.pass_index) for part in parts} == {(3, 1)}


@given(st.integers(1, 50), st.floats(0.01, 1), st.none() | st.integers(1, 12), st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_every_drawn_record_is_handed_out_exactly_once(length, rate, limit, seed):
    """Every drawn record is handed out exactly once in its logical batch."""
    recorder = Recorder()
    items = list(loader(length, rate, 5, recorder=recorder, limit=limit, seed=seed))
    drawn = PoissonSampling(rate).sampler(length, KeyStream.fixed_for_tests(seed).fork("sampling"))
    handed_out = {}
    for item, batch in zip(items, recorder.batches, strict=True):
        assert len(item) == batch.size
        assert batch.weight == 0.0 or tuple(item.tolist()) == batch.indices
        handed_out.setdefault(batch.step, []).extend(batch.indices)
    assert handed_out == {step: drawn.draw(step).tolist() for step in range(5)}


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_change_neither_the_draw_nor_the_order(persistent):
    """Every drawn record is handed out exactly once in its logical batch, with 0 and with 2 workers."""
    seen = []
    for options in ({}, {"num_workers": 2, "persistent_workers": persistent, "multiprocessing_context": "fork"}):
        recorder = Recorder()
        batches = loader(60, 0.15, 8, recorder=recorder, limit=4, **options)
        items = [item.tolist() for _ in range(2) for item in batches]
        assert all(
            tuple(item) == batch.indices or batch.weight == 0
            for item, batch in zip(items, recorder.batches, strict=True)
        )
        seen.append((items, recorder.batches))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 2, "multiprocessing_context": "fork"},
        {"num_workers": 2, "multiprocessing_context": "fork", "persistent_workers": True},
    ],
)
def test_a_pass_after_a_break_draws_afresh(options):
    recorder = Recorder()
    batches = loader(60, 0.15, 20, recorder=recorder, **options)
    for _ in zip(range(3), batches, strict=False):
        pass
    first_pass = list(recorder.batches)
    items = [item.tolist() for item in batches]
    second_pass = recorder.batches[len(first_pass) :]
    assert len(first_pass) == 3
    assert len(second_pass) == 20
    assert {batch.pass_index for batch in second_pass} == {1}
    assert not {batch.step for batch in first_pass} & {batch.step for batch in second_pass}
    assert [batch.step for batch in second_pass] == sorted(batch.step for batch in second_pass)
    drawn = PoissonSampling(0.15).sampler(60, KeyStream.fixed_for_tests(0).fork("sampling"))
    for item, batch in zip(items, second_pass, strict=True):
        assert batch.indices == tuple(drawn.draw(batch.step).tolist())
        assert batch.weight == 0 or tuple(item) == batch.indices


def test_an_empty_draw_is_one_real_record_of_weight_0():
    recorder = Recorder()
    items = list(loader(1000, 1e-9, 200, recorder=recorder))
    assert all(item.shape == (1,) for item in items)
    assert all(
        (batch.indices, batch.size, batch.weight, batch.first, batch.last) == ((), 1, 0.0, True, True)
        for batch in recorder.batches
    )
    stand_ins = torch.cat(items)
    assert len(stand_ins.unique()) > 150
    assert abs(stand_ins.float().mean() - 499.5) < 6 * 289 / 200**0.5


def test_len_is_the_number_of_logical_batches_in_a_pass():
    recorder = Recorder()
    batches = loader(40, 0.5, 7, recorder=recorder, limit=3)
    items = list(batches)
    assert len(batches) == 7 == sum(batch.last for batch in recorder.batches)
    assert len(items) > 7


def test_the_observer_is_asked_before_each_read_and_at_the_end():
    order = []

    class Watched(Numbers):
        def __getitem__(self, index):
            order.append("read")
            return index

    class Observer(Recorder):
        def before_draw(self):
            order.append("before")

        def begin(self, batch, item):
            order.append("begin")

    for _ in loader(rate=1.0, steps=2, dataset=Watched(2), recorder=Observer()):
        order.append("item")
    assert order == ["before", "read", "read", "begin", "item"] * 2 + ["before"]


def test_nothing_is_read_when_the_observer_objects():
    class Objecting(Recorder):
        def before_draw(self):
            if self.batches:
                raise ProtocolError("no step")

    reads = []

    class Watched(Numbers):
        def __getitem__(self, index):
            reads.append(index)
            return index

    items = iter(loader(rate=1.0, steps=3, dataset=Watched(2), recorder=Objecting()))
    next(items)
    with pytest.raises(ProtocolError, match="no step"):
        next(items)
    assert len(reads) == 2


def test_the_seeds_of_torch_numpy_and_python_do_not_change_the_draw():
    """The draws depend on the stream alone, never on the seeds of torch, NumPy or Python."""
    draws = []
    for seed in (1, 2):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        draws.append([item.tolist() for item in loader()])
    assert draws[0] == draws[1]
    torch.manual_seed(3)
    fresh = []
    for _ in range(2):
        torch.manual_seed(3)
        batches = PrivateLoader(
            Numbers(200), PoissonSampling(0.5), steps_per_pass=3, stream=KeyStream.from_operating_system()
        )
        fresh.append([item.tolist() for item in batches])
    assert fresh[0] != fresh[1]


Pair = namedtuple("Pair", "x y")


@dataclass
class Record:
    x: torch.Tensor
    y: torch.Tensor


class Encoding(Mapping):
    """Like a tokenizer's output: a mapping that is no dict."""

    def __init__(self, data):
        self.data = data

    def __getitem__(self, key):
        return self.data[key]

    def __iter__(self):
        return iter(self.data)

    def __len__(self):
        return len(self.data)


def _stack(records):
    return torch.tensor(records, dtype=torch.float32)[:, None]


STRUCTURES = {
    "dict": lambda r: {"x": _stack(r), "nested": {"y": [_stack(r), "text", None]}},
    "tuple": lambda r: (_stack(r), (_stack(r), r)),
    "namedtuple": lambda r: Pair(_stack(r), _stack(r)),
    "dataclass": lambda r: Record(_stack(r), _stack(r)),
    "mapping": lambda r: Encoding({"x": _stack(r)}),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_items_are_what_collate_returned(structure, workers):
    expected_type = type(STRUCTURES[structure]([1]))
    context = {"multiprocessing_context": "fork"} if workers else {}
    for item in loader(steps=3, collate_fn=STRUCTURES[structure], num_workers=workers, **context):
        assert type(item) is expected_type


def _failing(records):
    raise ValueError(f"secret {records}")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_collate_is_named_without_data(workers):
    context = {"multiprocessing_context": "fork"} if workers else {}
    with pytest.raises(BatchStructureError, match=r"collate_fn raised ValueError in _failing \(test_loader.py") as info:
        list(loader(collate_fn=_failing, num_workers=workers, **context))
    assert "secret" not in str(info.value)
    assert info.value.__suppress_context__ or workers


def test_a_collate_that_cannot_take_one_record_is_named():
    def pairs(records):
        first, second = records
        return torch.tensor([first, second])

    with pytest.raises(BatchStructureError, match="any number of records from 1 on"):
        list(loader(rate=1e-9, collate_fn=pairs))


class Batched(Numbers):
    """Reads many records at once."""

    def __init__(self, length, lost=0):
        super().__init__(length)
        self.lost = lost

    def __getitems__(self, indices):
        return indices[self.lost :]


def test_getitems_is_used_and_must_return_every_record():
    recorder = Recorder()
    for item in loader(rate=1.0, dataset=Batched(5), recorder=recorder):
        assert item.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(BatchStructureError, match="__getitems__"):
        list(loader(rate=1.0, dataset=Batched(5, lost=1)))


def _remember(worker):
    get_worker_info().dataset.length_seen = True


class Marked(Numbers):
    def __getitem__(self, index):
        return int(self.length_seen)


def test_worker_init_fn_meets_the_callers_dataset():
    items = loader(
        rate=1.0,
        steps=1,
        dataset=Marked(3),
        num_workers=1,
        worker_init_fn=_remember,
        multiprocessing_context="fork",
    )
    assert [item.tolist() for item in items] == [[1, 1, 1]]


@pytest.mark.slow
def test_spawned_workers_need_nothing_secret():
    """The stream stays in this process: what a spawned worker gets can be pickled, and a stream cannot."""
    data = TensorDataset(torch.arange(20))
    batches = loader(steps=2, rate=1.0, dataset=data, num_workers=1, multiprocessing_context="spawn")
    assert [item.tolist() for (item,) in batches] == [list(range(20))] * 2


def test_an_iteration_overtaken_by_another_one_ends_with_an_error():
    batches = loader()
    one, other = iter(batches), iter(batches)
    next(one), next(other)
    with pytest.raises(ProtocolError, match="one pass at a time"):
        next(one)
    next(other)


def test_a_dataset_that_changed_its_length_is_refused():
    numbers = Numbers(10)
    batches = loader(dataset=numbers)
    list(batches)
    numbers.length = 11
    with pytest.raises(ContractChangedError, match=r"10 records .* 11 now"):
        next(iter(batches))


def disjoint(batches, length=10, recorder=None, limit=None):
    return PrivateLoader(
        Numbers(length),
        DisjointBatches(),
        steps_per_pass=len(batches),
        stream=KeyStream.fixed_for_tests(0),
        batch_size=4,
        batches=batches,
        max_physical_batch_size=limit,
        observer=recorder,
    )


def test_disjoint_batches_are_the_callers_in_the_callers_order():
    recorder = Recorder()
    items = [item.tolist() for item in disjoint([[3, 1], [2], [9, 8, 7]], recorder=recorder, limit=2)]
    assert items == [[3, 1], [2], [9, 8], [7]]
    assert [batch.last for batch in recorder.batches] == [True, True, False, True]


def test_a_record_twice_in_a_pass_is_refused_before_it_is_read():
    recorder = Recorder()
    with pytest.raises(DuplicateRecordError):
        list(disjoint([[1, 2], [3, 1]], recorder=recorder))
    assert [batch.indices for batch in recorder.batches] == [(1, 2)]


def test_an_empty_batch_of_the_callers_is_a_step_of_weight_0():
    recorder = Recorder()
    list(disjoint([[1], []], recorder=recorder))
    assert [batch.weight for batch in recorder.batches] == [1.0, 0.0]


@pytest.mark.parametrize("shuffle", [True, False])
def test_without_poisson_every_record_is_read_once_in_each_pass(shuffle):
    recorder = Recorder()
    data = TensorDataset(torch.arange(50))
    own = PrivateLoader.from_data_loader(
        DataLoader(data, 8, shuffle=shuffle),
        DisjointBatches(),
        stream=KeyStream.fixed_for_tests(0),
        observer=recorder,
        max_physical_batch_size=3,
    )
    for pass_index in range(2):
        assert sorted(i for (x,) in own for i in x.tolist()) == list(range(50))
        assert {batch.pass_index for batch in recorder.batches[-10:]} == {pass_index}


def test_the_expected_batch_size_is_rate_times_count_unless_given():
    assert loader(40, 0.2).batch_size == pytest.approx(8.0)
    with pytest.raises(InvalidArgumentError, match="batch_size"):
        PrivateLoader(
            Numbers(4),
            PoissonSampling(0.5),
            steps_per_pass=1,
            stream=KeyStream.fixed_for_tests(0),
            batch_size=-1,
        )


@pytest.mark.parametrize(
    "change",
    [
        {"steps_per_pass": 0},
        {"steps_per_pass": 1.5},
        {"max_physical_batch_size": 0},
        {"max_physical_batch_size": 2.0},
        {"max_physical_batch_size": True},
        {"sampling": 0.1},
        {"batches": [[0]]},
        {"sampling": DisjointBatches()},
        {"sampling": DisjointBatches(), "batches": [[0]]},
    ],
)
def test_bad_arguments_are_refused(change):
    arguments = {"sampling": PoissonSampling(0.5), "steps_per_pass": 1, "stream": KeyStream.fixed_for_tests(0)}
    with pytest.raises(InvalidArgumentError):
        PrivateLoader(Numbers(4), **{**arguments, **change})


def test_an_empty_dataset_is_refused():
    with pytest.raises(DatasetError, match="empty"):
        loader(dataset=Numbers(0), length=0)


def test_options_are_a_frozen_value():
    assert replace(LoadingOptions(), num_workers=2).num_workers == 2


# Constant shapes ------------------------------------------------------------------------------------------------------


def constant(sampling, length=40, steps=12, rows=None, recorder=None, seed=0, **options):
    return PrivateLoader(
        Numbers(length),
        sampling,
        steps_per_pass=steps,
        stream=KeyStream.fixed_for_tests(seed),
        max_physical_batch_size=rows,
        constant_shapes=True,
        options=LoadingOptions(**options),
        observer=recorder,
    )


@pytest.mark.parametrize("options", [{}, {"num_workers": 2, "multiprocessing_context": "fork"}])
@pytest.mark.parametrize("rate", [1e-9, 0.2, 0.6])
def test_every_item_has_the_same_number_of_rows_and_begins_with_the_records_drawn(rate, options):
    recorder = Recorder()
    items = list(constant(PoissonSampling(rate), rows=5, recorder=recorder, **options))
    assert {item.shape for item in items} == {(5,)}
    drawn = PoissonSampling(rate).sampler(40, KeyStream.fixed_for_tests(0).fork("sampling"))
    found = {}
    for item, batch in zip(items, recorder.batches, strict=True):
        assert batch.size == 5
        assert tuple(item.tolist()[: len(batch.indices)]) == batch.indices
        found.setdefault(batch.step, []).extend(batch.indices)
    assert found == {step: drawn.draw(step).tolist() for step in range(12)}


@pytest.mark.parametrize(("rows", "items"), [(None, 1), (5, 3), (4, 4), (12, 1), (15, 1)])
def test_truncated_logical_batches_have_the_same_number_of_items(rows, items):
    recorder = Recorder()
    found = list(constant(TruncatedPoissonSampling(0.2, 40, 12 + (rows in (4, 5, 15))), rows=rows, recorder=recorder))
    assert len(found) == 12 * items
    assert {item.shape for item in found} == {(rows or 12,)}
    assert [batch.last for batch in recorder.batches] == ([False] * (items - 1) + [True]) * 12
    assert {batch.weight for batch in recorder.batches} <= {0.0, 1.0}


def test_padding_is_drawn_anew_in_every_item():
    recorder = Recorder()
    items = list(constant(PoissonSampling(1e-9), length=1000, rows=30, steps=40, recorder=recorder))
    rows = torch.stack(items)
    assert len(rows.unique()) > 600
    assert abs(rows.float().mean() - 499.5) < 6 * 289 / rows.numel() ** 0.5
    assert all(batch.indices == () and batch.weight == 0 for batch in recorder.batches)


def test_disjoint_batches_are_padded_and_no_record_counts_twice():
    recorder = Recorder()
    batches = PrivateLoader(
        Numbers(10),
        DisjointBatches(),
        steps_per_pass=3,
        stream=KeyStream.fixed_for_tests(0),
        batch_size=4,
        batches=[[3, 1, 2, 0], [5, 4, 7, 6], [9, 8]],
        max_physical_batch_size=4,
        constant_shapes=True,
        observer=recorder,
    )
    assert {item.shape for item in batches} == {(4,)}
    assert [batch.indices for batch in recorder.batches] == [(3, 1, 2, 0), (5, 4, 7, 6), (9, 8)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"constant_shapes": True}, "needs to know the rows.*Pass max_physical_batch_size"),
        ({"constant_shapes": "yes", "max_physical_batch_size": 2}, "True or False"),
        ({"sampling": TruncatedPoissonSampling(0.5, 5, 2)}, "population of 5 records"),
        ({"sampling": TruncatedPoissonSampling(0.5, 4, 2), "batches": [[0]]}, "draws its own"),
    ],
)
def test_shapes_that_cannot_be_constant_are_refused(arguments, message):
    base = {"sampling": PoissonSampling(0.5), "steps_per_pass": 1, "stream": KeyStream.fixed_for_tests(0)}
    with pytest.raises(InvalidArgumentError, match=message):
        PrivateLoader(Numbers(4), **{**base, **arguments})


def test_a_data_loader_is_drawn_from_as_the_scheme_says():
    data = DataLoader(TensorDataset(torch.arange(50)), batch_size=10)
    stream = KeyStream.fixed_for_tests(0)
    scheme = TruncatedPoissonSampling(0.2, 50, 20)
    own = PrivateLoader.from_data_loader(data, scheme, stream=stream, max_physical_batch_size=7, constant_shapes=True)
    assert own.sampling == scheme
    assert (own.max_physical_batch_size, own.constant_shapes, own.batch_size) == (7, True, 10)
    assert len([item for (item,) in own]) == 5 * 3
    with pytest.raises(InvalidArgumentError, match="10, and the mechanism's sampling takes 15 of 50 records"):
        PrivateLoader.from_data_loader(data, PoissonSampling(0.3), stream=stream)


@dataclass(frozen=True)
class Wrong(PoissonSampling):
    """A stranger's scheme whose sampler breaks its word."""

    draw: tuple[int, ...] = ()
    most: int | None = None

    @property
    def largest_batch(self):
        return self.most

    def sampler(self, population, stream, batches=None):
        return self

    def one_pass(self, steps, first_step):
        yield self.draw


@pytest.mark.parametrize(
    ("draw", "most", "error", "message"),
    [
        ((1, 2, 1), None, DuplicateRecordError, "twice in one logical batch"),
        ((0, 1, 2), 2, UnsupportedSamplerError, "more records than the scheme's largest batch"),
        ((0, 4), None, UnsupportedSamplerError, "outside"),
        ((-1, 0), None, UnsupportedSamplerError, "outside"),
    ],
)
def test_a_draw_that_costs_more_than_is_charged_is_refused(draw, most, error, message):
    """Guarantee: a draw that holds a record twice, or more records than the scheme's largest batch, is never handed
    out."""
    wrong = Wrong(0.5, draw, most)
    batches = PrivateLoader(Numbers(4), wrong, steps_per_pass=1, stream=KeyStream.fixed_for_tests(0))
    with pytest.raises(error, match=message):
        next(iter(batches))


# Threads --------------------------------------------------------------------------------------------------------------


class Slow(Numbers):
    """Waits for a word before it gives its first record to another thread than the main one."""

    def __init__(self, length):
        super().__init__(length)
        self.is_reading, self.go_on = threading.Event(), threading.Event()

    def __getitem__(self, index):
        if threading.current_thread() is not threading.main_thread():
            self.is_reading.set()
            assert self.go_on.wait(60)
        return index


def test_a_second_thread_that_reads_at_the_same_time_is_refused_and_the_first_one_gets_every_record():
    dataset, recorder = Slow(12), Recorder()
    loader = PrivateLoader(
        dataset,
        PoissonSampling(0.5),
        steps_per_pass=6,
        stream=KeyStream.fixed_for_tests(3),
        observer=recorder,
    )
    items = []
    thread = threading.Thread(target=lambda: items.extend(item.tolist() for item in loader))
    thread.start()
    assert dataset.is_reading.wait(60)
    with pytest.raises(ProtocolError, match="two threads"):
        next(iter(loader))
    dataset.go_on.set()
    thread.join()
    assert len(recorder.batches) == 6
    assert [list(batch.indices) or item for batch, item in zip(recorder.batches, items, strict=True)] == items


def test_a_pass_that_was_refused_its_first_item_ends_no_other_pass():
    class Strict(Recorder):
        def before_draw(self):
            if self.is_refusing:
                raise ProtocolError("an item is in work")

    recorder = Strict()
    recorder.is_refusing = False
    loader = PrivateLoader(
        Numbers(12), PoissonSampling(0.5), steps_per_pass=3, stream=KeyStream.fixed_for_tests(3), observer=recorder
    )
    first = iter(loader)
    next(first)
    recorder.is_refusing = True
    with pytest.raises(ProtocolError, match="in work"):
        next(iter(loader))
    recorder.is_refusing = False
    assert len(list(first)) == 2


def test_an_interrupt_at_any_line_of_a_read_locks_no_loader():
    """The interrupt comes at the n-th line that is run of the loader, for every n."""
    loader = PrivateLoader(Numbers(12), PoissonSampling(0.5), steps_per_pass=2, stream=KeyStream.fixed_for_tests(3))
    source = PrivateLoader.__iter__.__code__.co_filename
    for moment in itertools.count():
        left = [moment]

        def interrupted(frame, event, argument, left=left):
            if event == "line" and frame.f_code.co_filename == source:
                if left[0] == 0:
                    sys.settrace(None)
                    raise KeyboardInterrupt
                left[0] -= 1
            return interrupted

        sys.settrace(interrupted)
        try:
            list(loader)
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            sys.settrace(None)
        assert len(list(loader)) == 2
    assert moment > 20


@dataclass(frozen=True)
class Given(PoissonSampling):
    """A scheme of somebody else's, whose sampler yields what it is given."""

    given: tuple = ()
    often: str = "steps"

    @property
    def counts_in(self):
        return self.often

    def sampler(self, population, stream, batches=None):
        return self

    def one_pass(self, steps, first_step):
        yield from self.given


def given_by(*draws, often="steps"):
    return PrivateLoader(
        TensorDataset(torch.arange(8.0)),
        Given(0.25, draws, often),
        steps_per_pass=len(draws),
        stream=KeyStream.fixed_for_tests(0),
    )


@pytest.mark.parametrize(
    "twice",
    [
        torch.tensor([3, 5, 3]),
        [torch.tensor(3), torch.tensor(3)],
        np.array([3, 3]),
        tuple(np.array([3, 3])),
        (True, np.int8(1)),
    ],
    ids=repr,
)
def test_a_record_drawn_twice_is_refused_in_whatever_form_its_index_comes(twice):
    """Equal tensors are different members of a set."""
    with pytest.raises(DuplicateRecordError):
        list(given_by(twice))


@pytest.mark.parametrize("draw", [(1.0, 2.0), ("1",), None, 5, (1.5,), (torch.tensor([1, 2]),), [None]], ids=repr)
def test_a_draw_that_is_no_sequence_of_whole_numbers_is_refused(draw):
    with pytest.raises(UnsupportedSamplerError, match="whole numbers"):
        list(given_by(draw))


@pytest.mark.parametrize(
    "draw",
    [torch.tensor([3, 5]), [torch.tensor(3), torch.tensor(5)], np.array([3, 5]), [3, 5], iter([3, 5])],
    ids=repr,
    ids=lambda form: type(form).__name__,
)
def test_indices_in_any_form_are_the_records_that_are_read(draw):
    (item,) = given_by(draw)
    assert item[0].tolist() == [3.0, 5.0]


def test_a_scheme_counted_in_passes_draws_no_record_twice_in_one():
    assert len(list(given_by((0, 1), (1, 2), often="steps"))) == 2
    assert len(list(given_by((0, 1), (2, 3), often="passes"))) == 2
    with pytest.raises(DuplicateRecordError, match="in one pass"):
        list(given_by((0, 1), (1, 2), often="passes"))


@pytest.mark.parametrize("most", [0, -1, 2.5, "4", True])
@pytest.mark.parametrize("constant", [True, False])
def test_a_largest_batch_that_is_no_number_of_records_is_refused(most, constant):
    class Limited(Given):
        largest_batch = most

    with pytest.raises(InvalidArgumentError, match="largest_batch"):
        PrivateLoader(
            TensorDataset(torch.arange(8.0)),
            Limited(0.25, ((1,),)),
            steps_per_pass=1,
            stream=KeyStream.fixed_for_tests(0),
            constant_shapes=constant,
        )
