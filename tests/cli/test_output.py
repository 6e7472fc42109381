"""How commands print: what to type next."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hushgrad.cli.output import program


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program by whose path hushgrad was started, in an environment beside the current folder's files."""
    program = tmp_path / "a b" / "bin" / "hushgrad"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(program)])
    return program


def test_a_program_off_the_search_path_is_named_by_its_path(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert program() == "'a b/bin/hushgrad'"
    monkeypatch.setattr(sys, "argv", ["-c"])
    monkeypatch.setattr(sys, "executable", str(started.with_name("python")))
    assert program() == "'a b/bin/hushgrad'"


def test_a_program_on_the_search_path_is_named_by_its_name(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(started.parent))
    assert program() == "hushgrad"


def test_another_program_of_its_name_on_the_search_path_is_not_taken_for_it(
    started: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other" / "hushgrad"
    other.parent.mkdir()
    other.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(other.parent))
    assert program() == "'a b/bin/hushgrad'"
