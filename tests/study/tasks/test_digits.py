import pytest

from hushgrad.errors import InvalidArgumentError, TaskDataError
from hushgrad.study.tasks import TaskOptions, load_task


def test_digits_come_without_a_file_and_in_the_range_0_to_1():
    task = load_task("digits", TaskOptions())
    assert (len(task.train), len(task.test), task.num_classes) == (1438, 359, 10)
    assert task.input_shape == (1, 8, 8)
    assert 0 == task.train.tensors[0].min() < task.train.tensors[0].max() == 1
    assert task.outside_the_guarantee == ()


def test_two_digits_make_a_two_class_task():
    task = load_task("digits", TaskOptions(classes=("3", "8")))
    assert set(task.train.tensors[1].tolist()) == set(task.test.tensors[1].tolist()) == {0, 1}


def test_bad_classes_are_refused():
    with pytest.raises(InvalidArgumentError, match="at least 2"):
        TaskOptions(classes=("1",))
    with pytest.raises(InvalidArgumentError, match="once"):
        TaskOptions(classes=("1", "1"))
    with pytest.raises(TaskDataError, match="got x"):
        load_task("digits", TaskOptions(classes=("1", "x")))


def test_an_unknown_task_is_refused_with_the_ones_there_are():
    with pytest.raises(InvalidArgumentError, match="'digits', 'mnist', 'csv'"):
        load_task("imagenet", TaskOptions())
