"""How cells spell numbers, dates and missing values; each cell by itself."""

from datetime import date

import pytest
import torch

from hushgrad.errors import InvalidArgumentError, TaskDataError
from hushgrad.study.tasks.encoding import encode
from hushgrad.study.tasks.table import Table, found_delimiter
from hushgrad.study.tasks.tables.column import Column
from hushgrad.study.tasks.tables.spelling import Spelling

COMMAS = Spelling(decimal=",")


@pytest.mark.parametrize(
    ("cell", "with_commas", "with_points"),
    [
        ("12", 12, 12), ("12,5", 12.5, None), ("12.5", 12.5, 12.5), ("1.234,5", 1234.5, None), ("-0,25", -0.25, None),
        ("1.234.567", 1234567, None), ("1.234.567,8", 1234567.8, None), ("1,2,3", None, None), ("1,5e3", 1500, None),
        ("1e3", 1000, 1000), ("12,5 kg", None, None), ("nan", None, None), ("inf", None, None), (",", None, None),
        ("1.2345,6", None, None), ("31.05.2024", None, None),
    ],
)  # fmt: skip
def test_a_number_is_read_by_the_decimal_mark(cell, with_commas, with_points):
    assert COMMAS.number(cell) == with_commas
    assert Spelling().number(cell) == with_points


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("2024-05-31", date(2024, 5, 31)), ("2024/5/31", date(2024, 5, 31)), ("31.05.2024", date(2024, 5, 31)),
        ("2024-05-31T10:20:30Z", date(2024, 5, 31)), ("1.2.1999 7:05", date(1999, 2, 1)), ("31.02.2024", None),
        ("05/31/2024", None), ("2024-05", None), ("20240531", None), ("May 31", None), ("2024-05-31x", None),
    ],
)  # fmt: skip
def test_a_date_is_found_where_it_can_be_read_in_one_way(cell, found):
    assert Spelling().date(cell) == found


def test_a_declared_format_reads_what_is_found_by_nobody():
    assert Spelling().date("05/31/2024", "%m/%d/%Y") == date(2024, 5, 31)
    assert Spelling().date("2024-05-31", "%m/%d/%Y") == date(2024, 5, 31)  # as typed columns and Python have it
    assert Spelling().date("31/05/2024", "%m/%d/%Y") is None


def test_a_declared_mark_is_a_missing_value():
    assert Spelling(missing=("-9",)).is_missing("-9")
    assert not Spelling().is_missing("-9")
    assert all(Spelling().is_missing(cell) for cell in ("", "NA", "n/a", "?", "NULL"))


@pytest.mark.parametrize(
    ("header", "mark"),
    [("a,b,c", ","), ("a;b;c", ";"), ("a\tb", "\t"), ("a|b", "|"), ("a", ","), ('a,"b;c;d;e"', ","), ("\r\na;b", ";")],
)
def test_the_first_line_tells_the_delimiter(header, mark):
    assert found_delimiter(header + "\n1,2;3;4;5|6\t7") == mark


def encoded(cells, column, spelling=None):
    return encode(Table(("x",), tuple((cell,) for cell in cells)), (column,), spelling=spelling, features=512)


def test_near_dates_are_near_and_december_is_beside_january():
    day, near, year, text = encoded(["15.06.2020", "2020-06-22", "15.06.2009", "x"], Column("x"))
    assert (day - near).norm() < (day - year).norm() < (day - text).norm() + 0.1
    last, first, july = encoded(["2020-12-31", "2021-01-01", "2020-07-01"], Column("x"))
    assert (last - first).norm() < 0.9 * (last - july).norm()
    assert encoded(["2020-06-15"], Column("x")).norm() <= 1.01


def test_dates_were_texts_in_encodings_of_before():
    before = Spelling(finds_dates=False)
    assert torch.equal(encoded(["2020-06-15"], Column("x"), before), encoded(["2020-06-15"], Column("x", "text")))
    assert not torch.equal(encoded(["2020-06-15"], Column("x")), encoded(["2020-06-15"], Column("x"), before))


def test_texts_that_are_not_in_a_public_list_are_one_more_text():
    red, blue, green, black = encoded(
        ["red", "blue", "green", "black"], Column("x", "text", categories=("red", "blue"))
    )
    assert torch.equal(green, black)
    assert not torch.equal(red, blue)
    assert not torch.equal(red, green)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (Column("x", "number"), "is declared to hold numbers"),
        (Column("x", bounds=(0, 1)), "has declared bounds"),
        (Column("x", "date"), "is declared to hold dates"),
        (Column("x", "date", date_format="%d/%m/%Y"), "is declared to hold dates"),
    ],
)
def test_a_cell_that_is_not_as_declared_is_refused_without_being_shown(column, said):
    with pytest.raises(TaskDataError, match=f"column 'x': it {said}") as caught:
        encoded(["secret"], column)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"type": "moon"}, "type"), ({"type": "text", "bounds": (0, 1)}, "a range is for numbers"),
        ({"type": "number", "categories": ("a",)}, "categories is for texts"),
        ({"type": "text", "categories": ()}, "different texts"),
        ({"type": "text", "categories": ("a", "a")}, "different texts"),
        ({"type": "date", "date_format": "%m/%Y"}, "whole day"), ({"type": "date", "date_format": 3}, "whole day"),
        ({"date_format": "%d/%m/%Y"}, "a date format is for dates"), ({"bounds": (1, 1)}, "LOW < HIGH"),
        ({"bounds": (1,)}, "a lower and an upper bound"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_in_a_column_is_refused(declared, said):
    with pytest.raises(InvalidArgumentError, match=said):
        Column("x", **declared)
