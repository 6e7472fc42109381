"""One record moves the sum of a query by at most its sensitivity, whatever is read of the record."""

from __future__ import annotations

import functools
import math
import traceback
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hushgrad.errors import CrossSampleLeakError, DatasetError, InvalidArgumentError
from hushgrad.releases.accuracy import Accuracy
from hushgrad.releases.histogram import Histogram
from hushgrad.releases.known import OWN, require_query
from hushgrad.releases.least_squares import LeastSquares
from hushgrad.releases.normalisation import Normalisation
from hushgrad.releases.query import Query, clipped
from hushgrad.releases.reading import CHUNK, error_of_sum, sum_over
from hushgrad.releases.sums import Count, Mean, Sum
from hushgrad.releases.tally import Tally

ODD = [0.0, 1e-320, 1e-30, 1.0, -3.0, 1e6, -1e200, 1.7e308, math.inf, -math.inf, math.nan]
VALUES = st.one_of(st.sampled_from(ODD), st.floats())
MODEL = nn.Linear(3, 2)

QUERIES: list[tuple[Query, int]] = [
    (Sum(3, 0.5), 3),
    (Sum(3, 1e-12), 3),
    (Mean(3, 2.0, centre=[1.0, -1.0, 0.0]), 3),
    (Normalisation(low=[-1, 0, 5], high=[1, 1e9, 6]), 3),
    (LeastSquares(2, 1, feature_norm=3.0, target_norm=0.5, of=lambda r: (r[:2], r[2:])), 3),
    (LeastSquares(1, 2, feature_norm=0.1, of=lambda r: (r[:1], r[1:])), 3),
    (Histogram(categories=[0.0, 1.0], of=lambda r: float(r[0])), 3),
    (Histogram(edges=[-1.0, 0.0, 2.5], of=lambda r: float(r[0])), 3),
    (Tally(7, 2), 3),
    (Tally(1000, 64, of=lambda r: [*range(40), *r.tolist()]), 3),
    (Count(of=lambda r: bool(r[0] > 0)), 3),
    (Accuracy(MODEL, of=lambda r: (r.float(), 1)), 3),
]


def test_each_kind_is_among_the_queries_of_this_test() -> None:
    assert {type(query) for query, _ in QUERIES} == set(OWN)


@pytest.mark.parametrize(("query", "length"), QUERIES, ids=lambda value: getattr(value, "describe", lambda: "")())
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_one_record_moves_the_sum_by_at_most_the_sensitivity(query: Query, length: int, data: Any) -> None:
    record = torch.tensor(data.draw(st.lists(VALUES, min_size=length, max_size=length)), dtype=torch.float64)
    others = torch.tensor([[0.3, -0.2, 0.1], [1.0, 5.0, -7.0]], dtype=torch.float64)
    with torch.no_grad(), query.while_reading():
        rows = torch.stack([query.row(other) for other in (*others, record)])
        alone = query.total(rows[2:])
        moved = query.total(rows) - query.total(rows[:2])
    assert alone.shape == (query.width,)
    assert alone.dtype == torch.float64
    assert alone.isfinite().all()
    assert float(alone.norm()) <= query.sensitivity * (1 + 1e-12)
    assert float(moved.norm()) <= query.sensitivity * (1 + 1e-12) + error_of_sum(query, 3)


def test_a_vector_is_never_longer_than_its_limit_rounding_included() -> None:
    rows = torch.randn(20_000, 7, dtype=torch.float64) * torch.logspace(-200, 150, 20_000, dtype=torch.float64)[:, None]
    for limit in (1.0, 1 / 3, 1e-18, 7e12):
        exact = [math.sqrt(math.fsum(x * x for x in row)) for row in clipped(rows, limit)[::97].tolist()]
        assert max(exact) <= limit


def test_second_moments_are_released_with_the_norm_of_their_whole_matrix() -> None:
    """Beside the diagonal √2: so the released half has the norm of x xᵀ, ‖x‖², and not less, and not more."""
    query = LeastSquares(5, 1, feature_norm=100.0)
    x, y = torch.randn(5, dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    total = query.total(torch.cat([x, y])[None])
    torch.testing.assert_close(total.norm(), (x.square().sum() ** 2 + (x * y).square().sum()).sqrt())


def test_rounding_moves_a_sum_of_many_records_by_no_more_than_is_said() -> None:
    query = Sum(1, 1.0)
    values = torch.rand(5 * CHUNK + 17, 1, dtype=torch.float64) * 2 - 1
    found = float(sum_over(query, list(values)))
    exact = math.fsum(float(value) for value in values)
    assert abs(found - exact) <= error_of_sum(query, len(values)) < 1e-8


# What is read follows from one record alone ----------------------------------------------------------------------


class Remembering:
    """A function that gives each record the mean of all before."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, record: Tensor) -> Tensor:
        self.seen.append(record)
        return torch.stack(self.seen).mean(0)


class Keeping(nn.Module):
    """A model that keeps what it saw, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.sum(0)
        return self.linear(x + self.seen)


def written_into(record: Tensor) -> Tensor:
    record += 1
    return record


class ScaledByTheFirst(nn.Module):
    """A function, or a model, that scales every record by the first one that it saw."""

    first: Tensor | None = None

    def forward(self, record: Tensor) -> Tensor:
        if self.first is None:
            self.first = record.detach().clone()
        return record / self.first


def scaled_by_a_variable() -> Any:
    kept: dict[str, Tensor] = {}
    return lambda record: record / kept.setdefault("first", record.clone())


@pytest.mark.parametrize(
    "of",
    [
        Remembering(),
        written_into,
        lambda record: record + torch.randn(3),
        scaled_by_a_variable(),
        ScaledByTheFirst(),
    ],
    ids=["state", "write", "random", "the first, in a variable", "the first, in an attribute"],
)
def test_what_does_not_follow_from_the_record_alone_is_refused(of: Any) -> None:
    records = list(torch.randn(40, 3))
    with pytest.raises(CrossSampleLeakError, match="read again"):
        sum_over(Mean(3, 1.0, of=of), records)


def test_a_model_that_keeps_what_it_saw_is_refused() -> None:
    torch.manual_seed(0)
    records = [(torch.randn(3) * 9, 0) for _ in range(200)]
    with pytest.raises(CrossSampleLeakError, match="read again"):
        sum_over(Accuracy(Keeping()), records)


def test_a_model_that_scales_by_the_first_record_is_refused_and_given_back_as_it_was() -> None:
    torch.manual_seed(0)
    model = ScaledByTheFirst()
    records = [(torch.randn(3), 0) for _ in range(50)]
    with pytest.raises(CrossSampleLeakError, match="read again"):
        sum_over(Accuracy(model), records)
    assert model.first is None


def test_a_function_may_keep_what_changes_nothing() -> None:
    calls: list[int] = []
    cached = functools.lru_cache(lambda value: value * 2.0)

    def counting(record: Tensor) -> Tensor:
        calls.append(1)
        return torch.tensor([cached(float(value)) for value in record])

    assert torch.allclose(sum_over(Sum(3, 100.0, of=counting), [torch.ones(3)] * 20), torch.full((3,), 40.0).double())
    assert calls == []  # given back as it was


def test_normalisation_over_the_batch_is_evaluated_as_a_model_in_use_and_given_back() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    records = [(x, int(x.sum() > 0)) for x in torch.randn(50, 3)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    total = sum_over(Accuracy(model), records)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        scores = model.eval()(torch.stack([x for x, _ in records]))
    assert float(total) == float((scores.argmax(1) == torch.tensor([y for _, y in records])).sum())


def test_an_error_in_reading_says_its_kind_and_no_value() -> None:
    def failing(record: Tensor) -> Tensor:
        raise ValueError(f"secret {record}")

    with pytest.raises(InvalidArgumentError, match="raised ValueError for a record") as caught:
        sum_over(Sum(3, 1.0, of=failing), [torch.ones(3)])
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


class Failing(nn.Module):
    """A model, or a dataset, whose errors hold what they were given."""

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError(f"secret {x}")

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        raise KeyError("secret")


@pytest.mark.parametrize(
    ("query", "data", "error", "match"),
    [
        (Accuracy(Failing()), [(torch.ones(3), 0)], InvalidArgumentError, "ValueError in forward"),
        (Sum(3, 1.0), Failing(), DatasetError, "raised KeyError for a record"),
        (Accuracy(nn.Linear(2, 2)), [(torch.ones(3), 0)], InvalidArgumentError, "RuntimeError"),
        (Accuracy(nn.Linear(2, 2)), [("secret", 0)], InvalidArgumentError, "TypeError"),
        (Count(lambda record: record > 0), [torch.ones(3)], InvalidArgumentError, "RuntimeError"),
        (Sum(1, 1.0), [10**400], InvalidArgumentError, "must be numbers"),
    ],
    ids=["model", "dataset", "shape", "text", "several", "too large"],
)
def test_no_record_is_read_with_an_error_of_somebody_elses(
    query: Query, data: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match) as caught:
        sum_over(query, data)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_a_value_that_is_in_no_bin_for_certain_is_in_the_last_one() -> None:
    for value in (torch.tensor([1.0, 2.0]), [1, 2], None, "x"):
        assert sum_over(Histogram(categories=[1, 2]), [value]).tolist() == [0, 0, 1]
    assert sum_over(Histogram(edges=[1.0, 2.0]), [10**400]).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("query", "data", "error"),
    [
        (Sum(2, 1.0), [torch.ones(3)], InvalidArgumentError),
        (Sum(2, 1.0), ["text"], InvalidArgumentError),
        (Sum(2, 1.0), [], DatasetError),
        (Sum(2, 1.0), iter([1]), DatasetError),
        (Accuracy(nn.Flatten(0)), [(torch.ones(3), 0)], InvalidArgumentError),
    ],
    ids=["length", "text", "empty", "no length", "no scores"],
)
def test_what_cannot_be_read_is_refused(query: Query, data: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        sum_over(query, data)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Histogram(),
        lambda: Histogram(categories=["a"], edges=[1.0]),
        lambda: Histogram(categories=["a", "a"]),
        lambda: Histogram(categories=[["a"], ["b"]]),
        lambda: Histogram(edges=[1.0, 1.0]),
        lambda: Histogram(edges=[math.nan]),
        lambda: Tally(0, 1),
        lambda: Tally(3, 0),
        lambda: Sum(0, 1.0),
        lambda: Sum(1, 0.0),
        lambda: Mean(2, 1.0, centre=[0.0]),
        lambda: Normalisation(low=[0.0], high=[0.0]),
        lambda: Normalisation(low=[], high=[]),
        lambda: Normalisation(low=[-1e308], high=[1e308]),
        lambda: LeastSquares(2, 1, feature_norm=math.inf),
        lambda: LeastSquares(2, 1, feature_norm=1.0, ridge=0.0),
    ],
)
def test_constants_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        make()


def test_a_class_of_somebody_elses_is_no_query() -> None:
    class More(Sum):
        """One whose records add ten times as much as it says."""

        def total(self, rows: Tensor) -> Tensor:
            return 10 * super().total(rows)

    with pytest.raises(InvalidArgumentError, match="must be one of Count"):
        require_query(More(2, 1.0))
