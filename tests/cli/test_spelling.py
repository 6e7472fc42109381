"""What an output cannot write is spelled out: no command ends in a traceback because of a letter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushgrad.cli.main import COMMANDS
from hushgrad.cli.spelling import spelled


def test_letters_and_signs_have_spellings() -> None:
    assert spelled("ε = 3 at δ ≤ 1e-5 …") == "epsilon = 3 at delta <= 1e-5 ..."
    assert spelled("Σ ‖g‖² · σ × ½") == "Sigma |g|^2 * sigma x 1/2"
    assert spelled("Müller 中") == "Muller \\u4e2d"


@given(st.text())
def test_every_text_has_an_ascii_spelling_and_ascii_is_left_alone(text: str) -> None:
    assert spelled(text).isascii()
    assert spelled(spelled(text)) == spelled(text)


NARROW = {
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "the C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def started(settings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIO"))}
    command = [sys.executable, "-m", "hushgrad.cli.main", *arguments]
    return subprocess.run(command, env={**kept, **settings}, capture_output=True, check=False)


@pytest.mark.parametrize("settings", NARROW.values(), ids=NARROW)
def test_help_is_written_where_letters_are_missing(settings: dict[str, str]) -> None:
    done = started(settings, "train", "--help")
    assert done.returncode == 0, done.stderr
    assert "σ" not in done.stdout.decode("cp1252")
    assert done.stderr == b""


def test_an_error_is_written_where_letters_are_missing() -> None:
    done = started(NARROW["cp1252"], "train", "--epsilon", "3", "--max-epsilon", "2", "--out", "nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith(b"Error: DP101 ")
    assert b"target epsilon 3" in done.stderr


def test_a_run_is_shown_where_letters_are_missing(tmp_path: Path) -> None:
    """What rich writes, as well as what click does."""
    small = ("--epochs", "1", "--batch-size", "700", "--noise-multiplier", "4", "--threads", "1")
    done = started(NARROW["cp1252"], "train", *small, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "delta = 1e-05" in done.stdout.decode("cp1252")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("settings", NARROW.values(), ids=NARROW)
def test_every_command_explains_itself_where_letters_are_missing(settings: dict[str, str], command: str) -> None:
    assert started(settings, command, "--help").returncode == 0
