"""How commands print: what to type next."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hushgrad.cli import output
from hushgrad.cli.output import print_facts, print_table, program


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


@pytest.mark.parametrize("width", [40, 80])
def test_a_narrow_terminal_gets_lines_between_words(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    sentence = "Sampling: Poisson, every record independently with rate 0.0625 in every step."
    print_facts({"epsilon": 3.0, "sampling": sentence}, sentence)
    print_table(["event", "fields"], [["PoissonSampled", sentence]])
    printed = capsys.readouterr().out
    assert all(len(line) <= width for line in printed.splitlines())
    words = printed.split()
    assert all(words.count(word) == 3 * sentence.split().count(word) for word in set(sentence.split()))


def test_a_pipe_gets_one_fact_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(output, "on_terminal", lambda: False)
    print_facts({"sampling": "word " * 40}, "")
    print_table(["a"], [["word " * 40]])
    assert len(capsys.readouterr().out.splitlines()) == 4
