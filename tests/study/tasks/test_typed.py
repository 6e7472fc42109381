"""Parquet, Feather and Arrow files, and folders of Hugging Face's datasets, are tables like any other."""

import json
from datetime import UTC, date, datetime

import pytest
import torch

from hushgrad.errors import TaskDataError
from hushgrad.study.tasks import TaskOptions, load_task
from hushgrad.study.tasks.table import read_table

pa = pytest.importorskip("pyarrow")
COUNT = 20
COLUMNS = {
    "age": [None if n == 3 else 20 + n for n in range(COUNT)],
    "size": [float(n) if n % 2 else n + 0.5 for n in range(COUNT)],
    "day": [date(2024, 5, 1 + n) for n in range(COUNT)],
    "place": ["city" if n % 3 else "land" for n in range(COUNT)],
    "kind": [n % 2 == 0 for n in range(COUNT)],
}


@pytest.fixture
def table():
    return pa.table(COLUMNS)


def write(table, path):
    if path.suffix == ".parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(table, path)
    else:
        with (pa.ipc.new_stream if path.suffix == ".arrow" else pa.ipc.new_file)(path, table.schema) as out:
            out.write_table(table)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrow"])
def test_a_file_of_typed_columns_is_encoded_as_its_text_is(tmp_path, table, name):
    typed = load_task("csv", TaskOptions(data=write(table, tmp_path / name), target="kind"))
    lines = [",".join("" if cell is None else str(cell) for cell in row) for row in zip(*COLUMNS.values(), strict=True)]
    (tmp_path / "a.csv").write_text("\n".join([",".join(COLUMNS), *lines]))
    text = load_task("csv", TaskOptions(data=tmp_path / "a.csv", target="kind"))
    assert typed.class_names == text.class_names == ("False", "True")
    assert torch.equal(typed.train.tensors[0], text.train.tensors[0])
    row = {"age": 23, "size": 3, "day": date(2024, 5, 4), "place": "city"}
    assert torch.equal(typed.encoder.encode([row]), text.encoder.encode([{**row, "day": "04.05.2024"}]))


def test_a_saved_folder_of_datasets_is_read_with_its_parts(tmp_path, table):
    datasets = pytest.importorskip("datasets")
    found = datasets.Dataset(table)
    found.save_to_disk(str(tmp_path / "one"))
    assert len(load_task("csv", TaskOptions(data=tmp_path / "one", target="kind")).train) == 16
    datasets.DatasetDict({"train": found, "test": found}).save_to_disk(str(tmp_path / "two"))
    assert len(load_task("csv", TaskOptions(data=tmp_path / "two", target="kind")).train) == COUNT


def test_what_is_damaged_or_nested_is_refused_without_a_value(tmp_path, table):
    (tmp_path / "a.parquet").write_bytes(b"secret")
    with pytest.raises(TaskDataError, match="no whole file of its kind") as caught:
        read_table(tmp_path / "a.parquet")
    assert "secret" not in str(caught.value)
    with pytest.raises(TaskDataError, match=r"column 'x': must be text.*got list"):
        read_table(write(pa.table({"x": [["secret"]]}), tmp_path / "b.parquet"))
    with pytest.raises(TaskDataError, match="at most 10 bytes"):
        read_table(write(table, tmp_path / "c.parquet"), limit=10)
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../secret.arrow"}]}))
    with pytest.raises(TaskDataError, match="lacks a file"):
        read_table(tmp_path)


def test_times_are_texts_of_their_day(tmp_path):
    times = pa.table({"x": [datetime(2024, 5, 31, 10, 20, tzinfo=UTC)], "y": [True]})
    (row,) = read_table(write(times, tmp_path / "a.parquet")).rows
    assert row == ("2024-05-31T10:20:00+00:00", "True")
