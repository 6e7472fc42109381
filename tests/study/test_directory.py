import json
import math
import os
import stat

import pytest
import safetensors.torch
import torch

from hushgrad.errors import InvalidArgumentError
from hushgrad.study.directory import NOT_COVERED, RunDirectory, json_text, replace_file, require_unused
from hushgrad.study.outcome import Measurement


def measurement(step=1, epsilon=0.5):
    return Measurement(step, 1, 2.0, 0.5, None, epsilon, 100.0, 1.0)


def test_the_folder_and_its_files_are_the_owners_alone(tmp_path):
    directory = RunDirectory.claim(tmp_path / "a" / "b")
    directory.append_measurement(measurement())
    directory.write_summary({"x": 1})
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.path.iterdir()} == {0o600}


def test_a_folder_in_use_is_refused_and_an_empty_one_is_taken(tmp_path):
    assert RunDirectory.claim(tmp_path).path == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgumentError, match="new or empty"):
        RunDirectory.claim(tmp_path)
    with pytest.raises(InvalidArgumentError, match="must be a folder"):
        require_unused(tmp_path / "file")


def test_a_dangling_link_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidArgumentError, match="must be a folder"):
        require_unused(tmp_path / "link")


def test_measurements_are_lines_of_strict_json_that_name_what_epsilon_does_not_cover(tmp_path):
    directory = RunDirectory.claim(tmp_path)
    for step, epsilon in ((1, 0.5), (2, math.inf), (3, None)):
        directory.append_measurement(measurement(step, epsilon))
    rows = [json.loads(line, parse_constant=pytest.fail) for line in directory.metrics.read_text().splitlines()]
    assert [(row["step"], row["epsilon"]) for row in rows] == [(1, 0.5), (2, "inf"), (3, None)]
    assert all(row["not_covered"] == [*NOT_COVERED] for row in rows)


def test_json_has_no_infinity_and_no_nan():
    text = json_text({"a": [math.inf, -math.inf], "b": {"c": math.nan}, "d": (1.5,)}, indent=None)
    assert json.loads(text, parse_constant=pytest.fail) == {"a": ["inf", "-inf"], "b": {"c": "nan"}, "d": [1.5]}


def test_a_failed_replacement_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    replace_file(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        replace_file(path, b"new, longer")
    assert path.read_bytes() == b"old"


def test_replacing_does_not_follow_a_planted_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / ".file.new").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        replace_file(tmp_path / "file", b"new")
    assert victim.read_bytes() == b"precious"


def test_the_saved_model_is_the_model(tmp_path):
    model = torch.nn.Linear(3, 2)
    directory = RunDirectory.claim(tmp_path)
    directory.write_model(model, {"task": "t"})
    loaded = safetensors.torch.load_file(directory.model)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
