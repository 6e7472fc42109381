"""A file that long work ends with is looked at before the work."""

from __future__ import annotations

from pathlib import Path

import pytest

from hushgrad.errors import InvalidArgumentError
from hushgrad.result_file import claim_file, write_file


def test_a_missing_folder_is_made_and_what_lies_in_it_stays(tmp_path: Path) -> None:
    file = claim_file("--out", tmp_path / "new" / "inner" / "verdict.json")
    assert file.parent.is_dir()
    assert not file.exists()
    write_file("--out", file, "old")
    assert claim_file("--out", str(file)).read_text() == "old"
    write_file("--out", file, b"new")
    assert file.read_text() == "new"


def test_a_path_that_cannot_be_a_file_is_refused_with_its_name_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, why in ((tmp_path, "it is a folder"), (tmp_path / "file" / "x.json", "exists")):
        with pytest.raises(InvalidArgumentError, match=why) as caught:
            claim_file("--out", place)
        assert str(caught.value).startswith(f"DP101 --out: {place} cannot be written")


def test_a_path_that_has_become_impossible_is_refused_at_the_end(tmp_path: Path) -> None:
    file = claim_file("report", tmp_path / "verdict.json")
    file.mkdir()
    with pytest.raises(InvalidArgumentError, match=r"DP101 report: .*verdict\.json cannot be written"):
        write_file("report", file, "x")


def test_escape_sequences_in_a_path_do_not_reach_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "\x1b[31m").mkdir()
    with pytest.raises(InvalidArgumentError) as caught:
        claim_file("--out", tmp_path / "\x1b[31m")
    assert "\x1b" not in str(caught.value)
