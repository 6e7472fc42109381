import numpy as np
import pytest
import torch

from hushgrad.errors import TaskDataError
from hushgrad.study.tasks import TaskOptions, load_task

image = pytest.importorskip("PIL.Image")


def write(path, value, size=(40, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(np.full((size[1], size[0], 3), value, dtype=np.uint8)).save(path)


def test_pictures_of_any_size_become_tensors_of_one_size_by_themselves(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / part / "dark" / "a.png", 0)
        write(tmp_path / part / "light" / "b.jpg", 255, size=(7, 90))
    task = load_task("images", TaskOptions(data=tmp_path))
    inputs, labels = task.train.tensors
    assert inputs.shape == (2, 3, 32, 32)
    assert inputs.dtype == torch.float32
    assert [float(x.mean()) for x in inputs] == pytest.approx([0.0, 1.0], abs=0.01)
    assert labels.tolist() == [0, 1]
    assert task.class_names == ("dark", "light")


def test_a_file_that_is_no_picture_is_refused_by_name(tmp_path):
    write(tmp_path / "train" / "a" / "a.png", 0)
    write(tmp_path / "test" / "a" / "a.png", 0)
    write(tmp_path / "train" / "b" / "b.png", 0)
    (tmp_path / "train" / "b" / "c.png").write_bytes(b"not a picture")
    with pytest.raises(TaskDataError, match=r"'c\.png': it cannot be read"):
        load_task("images", TaskOptions(data=tmp_path))


def test_a_picture_behind_a_link_and_a_class_without_pictures_are_not_taken(tmp_path):
    for number in range(5):
        write(tmp_path / "a" / f"{number}.png", 0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.png").symlink_to(tmp_path / "a" / "0.png")
    with pytest.raises(TaskDataError, match="no training file is of class b"):
        load_task("images", TaskOptions(data=tmp_path))
