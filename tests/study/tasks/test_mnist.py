import os
from pathlib import Path

import pytest
import torch

from hushgrad.errors import InvalidArgumentError, TaskDataError
from hushgrad.study.tasks import TaskOptions, load_task
from hushgrad.study.tasks.task import fixed_split


def numbers(examples):
    """Return which images of the file a data set holds (their first pixel is their number)."""
    return (examples.tensors[0][:, 0, 0, 0] * 255).round().long().tolist()


@pytest.mark.parametrize("compressed", [False, True])
def test_one_pair_is_split_80_to_20_and_nothing_is_lost(write_pair, compressed):
    task = load_task("mnist", TaskOptions(data=write_pair(compressed=compressed)))
    assert (len(task.train), len(task.test)) == (40, 10)
    assert sorted(numbers(task.train) + numbers(task.test)) == list(range(50))
    assert task.input_shape == (1, 8, 8)
    assert task.num_classes == 10


def test_choosing_classes_does_not_move_an_image_between_training_and_test(write_pair):
    folder = write_pair()
    everything = load_task("mnist", TaskOptions(data=folder))
    some = load_task("mnist", TaskOptions(data=folder, classes=("7", "2")))
    assert set(numbers(some.train)) == {n for n in numbers(everything.train) if n % 10 in (2, 7)}
    assert set(numbers(some.test)) == {n for n in numbers(everything.test) if n % 10 in (2, 7)}


def test_chosen_classes_are_relabelled_in_the_order_given(write_pair):
    task = load_task("mnist", TaskOptions(data=write_pair(), classes=("7", "2")))
    assert task.class_names == ("7", "2")
    for number, label in zip(numbers(task.train), task.train.tensors[1].tolist(), strict=True):
        assert label == {7: 0, 2: 1}[number % 10]


def test_two_pairs_keep_their_division(write_pair):
    write_pair("train", 30)
    task = load_task("mnist", TaskOptions(data=write_pair("t10k", 20)))
    assert numbers(task.train) == list(range(30))
    assert numbers(task.test) == list(range(20))


def test_the_split_of_ten_thousand_is_eight_and_two_thousand_and_always_the_same():
    train, test = fixed_split(10_000)
    assert (len(train), len(test)) == (8000, 2000)
    assert test[:5].tolist() == fixed_split(10_000)[1][:5].tolist()
    torch.manual_seed(123)
    assert torch.equal(train, fixed_split(10_000)[0])


def test_the_split_never_changes_between_versions():
    """A run's test set must stay unseen by models trained with an older version."""
    assert fixed_split(20)[1].tolist() == EXPECTED_HELD_OUT_OF_20


EXPECTED_HELD_OUT_OF_20 = [19, 18, 7, 12]


def test_half_a_pair_is_refused(write_pair):
    folder = write_pair()
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(TaskDataError, match="labels file is missing"):
        load_task("mnist", TaskOptions(data=folder))


def test_a_count_of_labels_that_is_not_the_count_of_images_is_refused(write_pair):
    with pytest.raises(TaskDataError, match="one label per image, got 50 images and 3 labels"):
        load_task("mnist", TaskOptions(data=write_pair(labels=[1, 2, 3])))


def test_a_label_beyond_nine_is_refused(write_pair):
    with pytest.raises(TaskDataError, match="the t10k pair: labels must be"):
        load_task("mnist", TaskOptions(data=write_pair(count=3, labels=[1, 10, 3])))


def test_images_of_two_sizes_are_refused(write_pair):
    write_pair("train", 10, side=9)
    with pytest.raises(TaskDataError, match="same size"):
        load_task("mnist", TaskOptions(data=write_pair("t10k", 10)))


def test_an_empty_folder_and_a_missing_folder_are_refused(tmp_path):
    with pytest.raises(TaskDataError, match="neither pair is there"):
        load_task("mnist", TaskOptions(data=tmp_path))
    with pytest.raises(TaskDataError, match="existing folder"):
        load_task("mnist", TaskOptions(data=tmp_path / "none"))


def test_unknown_classes_are_refused_before_data_is_read(tmp_path):
    with pytest.raises(TaskDataError, match=r"classes: must be among 0, 1, .* got 10, cat"):
        load_task("mnist", TaskOptions(data=tmp_path / "none", classes=("1", "10", "cat")))


def test_a_class_without_a_training_example_is_refused(write_pair):
    with pytest.raises(TaskDataError, match="no training example is of class 3"):
        load_task("mnist", TaskOptions(data=write_pair(labels=[0, 1] * 25), classes=("0", "3")))


def test_options_of_another_task_are_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match="takes no target, drop"):
        load_task("mnist", TaskOptions(data=tmp_path, target="y", drop=("x",)))
    with pytest.raises(InvalidArgumentError, match="needs a folder"):
        load_task("mnist", TaskOptions())


@pytest.mark.data
@pytest.mark.skipif("HUSHGRAD_DATA" not in os.environ, reason="HUSHGRAD_DATA names no data folder")
def test_the_ten_thousand_mnist_images_give_8000_and_2000():
    task = load_task("mnist", TaskOptions(data=Path(os.environ["HUSHGRAD_DATA"]) / "mnist"))
    assert (len(task.train), len(task.test)) == (8000, 2000)
    assert task.train.tensors[0].min() == 0
    assert task.train.tensors[0].max() == 1
