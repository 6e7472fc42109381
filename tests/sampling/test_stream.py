"""A stream's own batches: each record handed out once, in order, and never more than is charged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from hushgrad import DPSGD, DisjointBatches, FlatClipping, PoissonSampling, PrivacyEngine, Session, privatize
from hushgrad.accounting import DisjointPass
from hushgrad.errors import (
    BatchStructureError,
    BudgetExhaustedError,
    CrossSampleLeakError,
    DatasetError,
    HushgradError,
    InvalidArgumentError,
    ProtocolError,
    UnsupportedSamplerError,
)
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time
from hushgrad.sampling.stream import StreamLoader, read_stream

SIZE = 20
RECORDS = [(torch.randn(3, generator=torch.Generator().manual_seed(i)), torch.tensor(float(i))) for i in range(SIZE)]


class Stream(IterableDataset[Any]):
    """Yields the records in order, and fails at `broken`."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken

    def __iter__(self) -> Iterator[Any]:
        for number, record in enumerate(RECORDS):
            if number == self.broken:
                raise OSError("a record that cannot be read")
            yield record


def over(stream: IterableDataset[Any] | None = None, batch_size: int | None = 8, **options: Any) -> DataLoader[Any]:
    return DataLoader(stream or Stream(), batch_size=batch_size, **options)


def attach(loader: DataLoader[Any], *, rows: int | None = None, **plan: Any) -> tuple[nn.Linear, Any, Session, Any]:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    mechanism = DPSGD(
        **{"noise_multiplier": 0.0, "sampling": DisjointBatches(), "clipping": FlatClipping(0.5), **plan},
        expected_batch_size=float(loader.batch_size or 1),
        loss_reduction="sum",
    )
    session = privatize(model, optimizer, mechanism)
    return model, optimizer, session, session.batches_of(loader, max_physical_batch_size=rows)


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x).squeeze(1) - y).square()


@pytest.mark.parametrize("rows", [None, 3, 8])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_record_is_handed_out_once_in_order(rows: int | None, drop_last: bool) -> None:
    """Guarantee: every record that the stream yields is handed out exactly once, in the order of the stream."""
    model, optimizer, session, loader = attach(over(drop_last=drop_last), rows=rows)
    seen: list[int] = []
    for x, y in loader:
        seen += [int(label) for label in y]
        session.backward(losses(model, x, y))
        optimizer.step()
    assert seen == list(range(16 if drop_last else SIZE))
    assert session.charged == [(DisjointPass(0.0, 0), 2 if drop_last else 3)]


def test_an_update_is_the_clipped_sum_of_one_example_at_a_time() -> None:
    model, optimizer, session, loader = attach(over(), rows=3)
    items: list[tuple[Tensor, Tensor]] = []
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for x, y in loader:
        items += zip(x, y, strict=True)
        session.backward(losses(model, x, y))
        optimizer.step()
        if session.last_step_updated:
            break
    after = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter, value in zip(model.parameters(), before, strict=True):
        parameter.data.copy_(value)
    session.close()
    assert len(items) == 8
    alone = one_at_a_time(model, [losses_of_one(model, x, y) for x, y in items])
    expected = clipped_sum_of(alone, FlatClipping(0.5))
    for one, other, (name, _) in zip(before, after, model.named_parameters(), strict=True):
        torch.testing.assert_close(one - other, expected[name], rtol=1e-5, atol=1e-6)


def losses_of_one(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    return lambda: losses(model, x[None], y[None]).sum()


def test_a_second_iteration_is_a_second_pass_and_a_planned_pass_is_all_there_is() -> None:
    model, optimizer, session, loader = attach(over(), passes=2)
    for number in range(3):
        try:
            for x, y in loader:
                session.backward(losses(model, x, y))
                optimizer.step()
        except BudgetExhaustedError:
            assert number == 2
    assert session.charged == [(DisjointPass(0.0, 0), 3), (DisjointPass(0.0, 1), 3)]


def test_the_guarantee_names_zero_out_neighbours_and_that_each_record_comes_once() -> None:
    model = nn.Linear(3, 1)
    engine = PrivacyEngine()
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=over(),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    for x, y in loader:
        engine.session.backward(losses(model, x, y))
        optimizer.step()
    held = engine.guarantee(1e-5)
    assert held.adjacency == "zero-out"
    assert "each record once" in [condition.name for condition in held.conditions]
    assert "yields each record at most once in a pass" in str(held)
    with pytest.raises(TypeError, match="no length"):
        len(loader)
    with pytest.raises(ProtocolError, match="not counted beforehand"):
        loader.logical_batches()


def test_accumulated_batches_of_a_stream_are_one_logical_batch() -> None:
    model = nn.Linear(3, 1)
    engine = PrivacyEngine()
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=over(batch_size=4),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
        accumulation=2,
    )
    sizes = []
    for x, y in loader:
        sizes.append(len(x))
        engine.session.backward(losses(model, x, y))
        optimizer.step()
    assert sizes == [4] * 5
    assert engine.session.steps == 3


def _collated(records: list[Any]) -> Any:
    values = [record[0].add_(0) for record in records]
    records.clear()  # a collate function may use its records up
    return torch.stack(values), torch.zeros(len(values))


def test_a_collate_function_is_probed_on_the_records_that_were_read() -> None:
    model, optimizer, session, loader = attach(over(collate_fn=_collated))
    for x, y in loader:
        session.backward(losses(model, x, y))
        optimizer.step()
    assert session.steps == 3


def test_a_collate_function_that_mixes_records_of_a_stream_is_refused() -> None:
    def mixing(records: list[Any]) -> Any:
        x = torch.stack([record[0] for record in records])
        return x - x.mean(0), torch.zeros(len(records))

    *_, loader = attach(over(collate_fn=mixing))
    with pytest.raises(CrossSampleLeakError):
        next(iter(loader))


def test_a_record_that_cannot_be_read_ends_the_loop_until_its_batch_is_discarded() -> None:
    model, optimizer, session, loader = attach(over(Stream(broken=10)))
    items = iter(loader)
    x, y = next(items)
    session.backward(losses(model, x, y))
    optimizer.step()
    with pytest.raises(OSError, match="cannot be read"):
        next(items)
    with pytest.raises(ProtocolError, match="could not be read"):
        next(iter(loader))
    assert "discarded batches" in [condition.name for condition in session.guarantee(1e-5).conditions]


def test_a_collate_function_that_fails_is_told_by_its_place() -> None:
    def failing(records: list[Any]) -> Any:
        raise ValueError("private")

    *_, loader = attach(over(collate_fn=failing))
    with pytest.raises(BatchStructureError) as raised:
        next(iter(loader))
    assert "private" not in str(raised.value)


def test_two_iterations_at_once_are_refused() -> None:
    model, optimizer, session, loader = attach(over())
    first = iter(loader)
    x, y = next(first)
    session.backward(losses(model, x, y))
    optimizer.step()
    next(iter(loader))
    session.discard()
    with pytest.raises(ProtocolError, match="one pass at a time"):
        next(first)


class Own(DataLoader[Any]):
    """A loader with a way of its own."""

    def __iter__(self) -> Any:
        return super().__iter__()


REFUSED: dict[str, tuple[Callable[[], Any], type[HushgradError], str]] = {
    "workers": (lambda: attach(over(num_workers=2)), UnsupportedSamplerError, "num_workers=0"),
    "no batches": (lambda: attach(over(batch_size=None)), UnsupportedSamplerError, "batch_size"),
    "Poisson": (
        lambda: attach(over(), sampling=PoissonSampling(0.1)),
        DatasetError,
        "DisjointBatches",
    ),
    "constant shapes": (
        lambda: StreamLoader(read_stream(over()), DisjointBatches(), constant_shapes=True),
        InvalidArgumentError,
        "drop_last=True",
    ),
    "its own way": (lambda: read_stream(Own(Stream(), batch_size=4)), InvalidArgumentError, "torch's own DataLoader"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_charged_as_disjoint_batches_is_refused_with_a_cure(name: str) -> None:
    program, kind, cure = REFUSED[name]
    with pytest.raises(kind) as raised:
        program()
    assert cure in raised.value.cure


class _Apart(DisjointBatches):
    """Says, of batches that nobody looks at, that a record comes back after five steps."""

    min_separation = 5


def test_a_scheme_that_counts_on_when_records_come_back_is_refused() -> None:
    """Nothing is kept of a stream's records by which that could be held."""
    with pytest.raises(DatasetError, match="how soon a record comes back"):
        StreamLoader(read_stream(over()), _Apart())
