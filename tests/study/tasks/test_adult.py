import gzip
import os
from pathlib import Path

import pytest
import torch

from hushgrad.errors import TaskDataError
from hushgrad.study.tasks import TaskOptions, load_task
from hushgrad.study.tasks.adult import parse_names

NAMES = "| comment\n>50K, <=50K.\n\nage: continuous.\nworkclass: Private, State-gov.   | kinds of work\n"
RECORDS = "39, State-gov, <=50K\n50, ?, >50K\n28, Private, <=50K\n\n"
HEADER = "age, workclass, Y\n"


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes an Adult folder, with or without header lines, compressed or not."""

    def write(header="", compressed=True, records=RECORDS):
        test_records = "|1x3 Cross validator\n" + header + records.replace("50K\n", "50K.\n")
        for name, text in (("adult.data", header + records), ("adult.test", test_records), ("adult.names", NAMES)):
            if compressed and name != "adult.names":
                (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
            else:
                (tmp_path / name).write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize("header", ["", HEADER])
@pytest.mark.parametrize("compressed", [True, False])
def test_an_adult_folder_is_recognised_and_nothing_is_learned_from_its_records(folder, header, compressed):
    task = load_task("csv", TaskOptions(data=folder(header, compressed)))
    assert (len(task.train), len(task.test)) == (3, 3)
    assert task.class_names == (">50K", "<=50K")
    assert task.train.tensors[1].tolist() == task.test.tensors[1].tolist() == [1, 0, 1]
    assert torch.equal(task.train.tensors[0], task.test.tensors[0])
    assert task.outside_the_guarantee == ()


def test_the_target_may_be_named_as_in_the_header_or_income(folder):
    for target in ("Y", "income"):
        assert load_task("csv", TaskOptions(data=folder(HEADER), target=target)).num_classes == 2
    with pytest.raises(TaskDataError, match="target of the Adult folder"):
        load_task("csv", TaskOptions(data=folder(HEADER), target="age"))


def test_a_label_that_the_description_does_not_list_is_refused(folder):
    with pytest.raises(TaskDataError, match="does not list"):
        load_task("csv", TaskOptions(data=folder(records="39, Private, many\n")))


def test_listed_values_make_a_column_categorical():
    described = parse_names(NAMES)
    assert described.columns == ("age", "workclass")
    assert described.categorical == {"workclass"}


@pytest.mark.parametrize("text", ["", "| only a comment\n", "age: continuous.\n", ">50K, <=50K.\nage continuous\n"])
def test_a_description_without_classes_or_columns_is_refused(text):
    with pytest.raises(TaskDataError, match=r"adult\.names: the file must list"):
        parse_names(text)


@pytest.mark.data
@pytest.mark.skipif("HUSHGRAD_DATA" not in os.environ, reason="HUSHGRAD_DATA names no data folder")
def test_the_real_adult_folder_has_its_known_sizes():
    task = load_task("csv", TaskOptions(data=Path(os.environ["HUSHGRAD_DATA"]) / "adult"))
    assert (len(task.train), len(task.test)) == (32_561, 16_281)
    assert task.train.tensors[1].bincount().tolist() == [7841, 24_720]
