import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.errors import TaskDataError
from hushgrad.study.tasks.encoding import encode, number_of_features
from hushgrad.study.tasks.table import Table
from hushgrad.study.tasks.tables.column import Column

FEATURES = 256


def encoded(rows, spelling=None, **declared):
    """Encode rows of the columns a and b, of which b is as it is and a as it is declared."""
    columns = Column("a", **declared), Column("b")
    return encode(Table(("a", "b"), tuple(rows)), columns, spelling=spelling, features=FEATURES)


cells = st.text(st.characters(codec="utf-8"), max_size=6) | st.floats().map(str) | st.integers().map(str)
rows = st.tuples(cells, cells)


@settings(deadline=None)
@given(st.lists(rows, min_size=1, max_size=6), st.lists(rows, max_size=6), rows)
def test_a_rows_features_depend_on_that_row_alone(before, after, row):
    """Guarantee: adding, removing or changing other rows changes nothing."""
    among_others = encoded([*before, row, *after])[len(before)]
    assert torch.equal(among_others, encoded([row])[0])
    assert bool(torch.isfinite(among_others).all())


@settings(deadline=None)
@given(rows)
def test_a_row_has_norm_at_most_one_up_to_collisions_of_hashes(row):
    assert float(encoded([row])[0].norm()) <= math.sqrt(2) + 1e-6


def test_near_numbers_are_near_and_far_numbers_are_orthogonal():
    near, nearer, base, far = (encoded([(text, "x")])[0] for text in ("41", "40.2", "40", "4000"))
    assert (nearer - base).norm() < (near - base).norm() < (far - base).norm()


def test_a_number_in_a_categorical_column_is_a_name():
    as_number = encoded([("40", "x"), ("40.001", "x")])
    as_name = encoded([("40", "x"), ("40.001", "x")], type="text")
    assert (as_number[0] - as_number[1]).norm() < 0.01
    assert (as_name[0] - as_name[1]).norm() > 0.9


def test_all_marks_of_a_missing_cell_are_the_same():
    marks = encoded([(text, "x") for text in ("", "?", "NA", "nan")])
    assert torch.equal(marks, marks[:1].expand_as(marks))


def test_beyond_declared_bounds_is_as_at_the_bound():
    low, below, high, above = encoded([(text, "x") for text in ("0", "-5", "100", "1e9")], bounds=(0.0, 100.0))
    assert torch.equal(low, below)
    assert torch.equal(high, above)
    assert not torch.equal(low, high)


def test_text_in_a_column_with_declared_bounds_is_refused_without_being_shown():
    with pytest.raises(TaskDataError, match="column 'a': it has declared bounds") as caught:
        encoded([("secret", "x")], bounds=(0.0, 1.0))
    assert "secret" not in str(caught.value)


def test_the_same_text_in_two_columns_is_two_features():
    assert not torch.equal(encoded([("x", "")])[0], encoded([("", "x")])[0])


def test_the_encoding_never_changes_between_versions():
    """A saved model must read tables as it did when it was trained."""
    assert encoded([("40", "blue")])[0].nonzero().flatten().tolist() == EXPECTED_BUCKETS


EXPECTED_BUCKETS = [29, 52, 222]


def test_the_number_of_features_follows_from_the_number_of_columns():
    assert [number_of_features(columns) for columns in (1, 4, 14, 1000)] == [256, 256, 1024, 4096]


def test_a_table_that_would_not_fit_is_refused_before_it_is_built():
    with pytest.raises(TaskDataError, match="more than fit"):
        encode(Table(("a",), (("1",),) * 10), (Column("a"),), features=1 << 30)
