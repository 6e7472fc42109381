"""A checkpoint is one file, replaced in one step, and what is not a whole checkpoint is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from hushgrad.checkpoints.file import read_checkpoint, write_checkpoint
from hushgrad.errors import CheckpointError, InvalidArgumentError


def test_tied_weights_are_written_once_and_come_back_under_both_names(tmp_path: Path) -> None:
    shared = torch.randn(300, 300)
    write_checkpoint(tmp_path / "c", {"model": {"a": shared, "b": shared, "c": shared.T}})
    assert (tmp_path / "c").stat().st_size < 2.5 * shared.nbytes
    back = read_checkpoint(tmp_path / "c")["model"]
    assert all(torch.equal(back[name], value) for name, value in (("a", shared), ("b", shared), ("c", shared.T)))


def test_a_tensor_and_a_view_of_it_come_back_apart(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    write_checkpoint(tmp_path / "c", {"whole": whole, "part": whole[:4], "flat": whole.view(3, 4), "row": whole[4:8]})
    back = read_checkpoint(tmp_path / "c")
    assert all(torch.equal(back[name], value) for name, value in (("part", whole[:4]), ("flat", whole.view(3, 4))))
    assert torch.equal(back["whole"], whole)
    assert torch.equal(back["row"], whole[4:8])


def test_keys_of_one_spelling_stay_apart(tmp_path: Path) -> None:
    one, two = torch.zeros(2), torch.ones(2)
    write_checkpoint(tmp_path / "c", {"x": {"a.b": one, "a": {"b": two}, 1: one, "1": two}})
    back = read_checkpoint(tmp_path / "c")["x"]
    assert torch.equal(back["a.b"], one)
    assert torch.equal(back["a"]["b"], two)
    assert torch.equal(back[1], one)
    assert torch.equal(back["1"], two)


def test_what_has_no_end_and_what_no_format_holds_is_refused(tmp_path: Path) -> None:
    endless: list[object] = []
    endless.append(endless)
    for value in (endless, torch.zeros(2, dtype=torch.complex128)):
        with pytest.raises(CheckpointError):
            write_checkpoint(tmp_path / "c", {"x": value})
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_every_dtype_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.arange(6).reshape(2, 3).to(dtype)
    write_checkpoint(tmp_path / "c", {"x": value, "none": torch.empty(0, dtype=dtype), "also": torch.empty(0)})
    back = read_checkpoint(tmp_path / "c")
    assert back["x"].dtype == dtype
    assert torch.equal(back["x"], value)
    assert back["none"].shape == back["also"].shape == (0,)


def test_a_failed_write_leaves_the_last_checkpoint_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: a reader finds the old checkpoint or the new one."""
    write_checkpoint(tmp_path / "c", {"n": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_checkpoint(tmp_path / "c", {"n": 2})
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "c") == {"n": 1}


def test_a_cut_or_changed_file_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", {"model": nn.Linear(3, 2).state_dict()})
    whole = (tmp_path / "c").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / "cut")


def test_a_pickle_is_refused_and_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path(tmp_path / "sprung").touch, ())

    (tmp_path / "c").write_bytes(pickle.dumps(Trap()))
    torch.save({"model": Trap()}, tmp_path / "d")
    for name in ("c", "d", "missing"):
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        write_checkpoint(tmp_path, {})
