"""schema.json: signed by somebody; what was read off the data stays outside of the guarantee, by name."""

import json

import pytest

from hushgrad.errors import InvalidArgumentError, TaskDataError
from hushgrad.study.tasks import TaskOptions, load_task
from hushgrad.study.tasks.tables.column import Column
from hushgrad.study.tasks.tables.schema import read_schema, schema_json

PROPOSED = {
    "id": ("drop", "names"),
    "age": ("number", ""),
    "place": ("text", ""),
    "day": ("date", ""),
    "y": ("text", ""),
}


@pytest.fixture
def written(tmp_path):
    """Return a function that writes a schema with changes, and one of a column's."""

    def write(of_columns=None, **changes):
        value = json.loads(schema_json(PROPOSED, ";", "latin-1", ","))
        for name, change in (of_columns or {}).items():
            value["columns"][name] = {**value["columns"].get(name, {}), **change}
        path = tmp_path / "schema.json"
        path.write_text(json.dumps({**value, "signed_by": "A. B.", **changes}))
        return path

    return write


@pytest.fixture
def data(tmp_path):
    rows = [
        f"R{n};{n},5;{'Süd' if n % 3 else 'Ost'};{1 + n % 28}.03.2024;{'ja' if n % 2 else 'nein'}" for n in range(40)
    ]
    (tmp_path / "data.csv").write_bytes("\n".join(["id;age;place;day;y", *rows]).encode("latin-1"))
    return tmp_path / "data.csv"


def test_a_schema_that_is_written_is_read_back(written):
    found = read_schema(written())
    assert (found.delimiter, found.encoding, found.decimal, found.signed_by) == (";", "latin-1", ",", "A. B.")
    assert found.column("id") is None
    assert found.column("age") == Column("age", "number")
    assert not any(declared.is_public for declared in found.columns.values())


def test_what_was_read_off_the_data_is_said_and_what_is_public_is_not(written, data):
    """Guarantee: each type and each dropped column is public, or listed as not covered."""
    task = load_task("csv", TaskOptions(data=data, target="y", schema=written()))
    types, dropped = task.outside_the_guarantee[1:]
    assert types.endswith("read off the data: age, place, day")
    assert dropped.endswith("as the schema says: id")
    assert task.signed_by == "A. B."
    public = {name: {"basis": "public"} for name in PROPOSED}
    public["y"]["categories"] = ["nein", "ja"]
    public["place"]["categories"] = ["Süd"]
    public["age"]["range"] = [0, 100]
    task = load_task("csv", TaskOptions(data=data, target="y", schema=written(public)))
    assert task.outside_the_guarantee == ()
    assert task.class_names == ("nein", "ja")
    assert task.encoder.columns[:2] == (
        Column("age", "number", bounds=(0, 100)),
        Column("place", "text", categories=("Süd",)),
    )
    assert task.notices == ()


def test_no_value_of_the_table_is_in_a_schema(data):
    text = schema_json(PROPOSED, ";", "latin-1", ",")
    assert not any(value in text for value in ("Süd", "Ost", "R1", "nein"))


@pytest.mark.parametrize(
    ("columns", "changes", "said"),
    [
        ({}, {"signed_by": ""}, "nobody has signed"),
        ({}, {"signed_by": None}, "nobody has signed"),
        ({}, {"hushgrad_schema": 2}, "no schema as"),
        ({}, {"columns": 3}, "no schema as"),
        ({}, {"missing": [1]}, "list of texts"),
        ({}, {"file": {"delimiter": ";;"}}, "delimiter: must be one character"),
        ({}, {"file": {"encoding": "rot13"}}, "encoding: must be"),
        ({}, {"file": {"decimal": ";"}}, "decimal: must be"),
        ({"age": {"type": "moon"}}, {}, "type"),
        ({"age": {"basis": "maybe"}}, {}, "basis"),
        ({"age": {"bounds": [0, 1]}}, {}, "nobody asks for: bounds"),
        ({"age": {"range": [1, 0]}}, {}, "LOW < HIGH"),
        ({"place": {"categories": "ab"}}, {}, "different texts"),
    ],
)
def test_a_bad_schema_is_refused(written, columns, changes, said):
    with pytest.raises(InvalidArgumentError, match=said):
        read_schema(written(columns, **changes))


def test_a_schema_is_of_the_columns_that_the_table_has(written, data):
    with pytest.raises(TaskDataError, match="'more' is in the schema alone"):
        load_task(
            "csv", TaskOptions(data=data, target="y", schema=written({"more": {"type": "text", "basis": "data"}}))
        )
    path = written()
    value = json.loads(path.read_text())
    del value["columns"]["age"]
    path.write_text(json.dumps(value))
    with pytest.raises(TaskDataError, match="'age' is in the table alone"):
        load_task("csv", TaskOptions(data=data, target="y", schema=path))


def test_options_do_not_say_what_a_schema_says(written, data):
    with pytest.raises(InvalidArgumentError, match="says what encoding, drop would"):
        load_task("csv", TaskOptions(data=data, target="y", schema=written(), encoding="utf-8", drop=("age",)))
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        load_task("csv", TaskOptions(data=data, target="y", schema=data.parent / "absent.json"))
