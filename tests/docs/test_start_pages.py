"""The two pages that begin: every snippet runs in its order, and prints what stands below it.

`...` on a page stands for anything; a percentage may differ by five points, because the noise is never the same.
"""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from hushgrad.cli.main import main

ROOT = Path(__file__).parents[2]
PERCENT = re.compile(r"(\d+\.\d)%")
TOLERANCE = 5.0


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Return language, code and expected output ("" where none is shown) of each block of code."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    after = [*found[1:], ("", "")]
    return [
        (language, code, following if kind == "text" else "")
        for (language, code), (kind, following) in zip(found, after, strict=True)
        if language != "text"
    ]


def require_same(printed: str, expected: str) -> None:
    """Fail unless what was printed is what a page shows."""
    pattern = re.escape(PERCENT.sub("0.0%", expected.strip())).replace(re.escape("..."), "(?s:.*)")
    assert re.fullmatch(pattern, PERCENT.sub("0.0%", printed.strip())), printed
    if "..." not in expected:
        for one, other in zip(PERCENT.findall(printed), PERCENT.findall(expected), strict=True):
            assert abs(float(one) - float(other)) <= TOLERANCE, printed


def test_an_output_is_compared_word_for_word() -> None:
    require_same("ε = 1.13, right 97.2%\n", "ε = 1.13, right 98.0%")
    require_same("a (b)\nmore\nz", "a (b)\n...\nz")
    for wrong in ("ε = 1.14, right 97.2%", "ε = 1.13, right 80.0%"):
        with pytest.raises(AssertionError):
            require_same(wrong, "ε = 1.13, right 98.0%")


def test_ten_minutes_in_python_run_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        for language, code, expected in blocks("start-python.md"):
            assert language == "python"
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(code, "start-python.md", "exec"), names)
            require_same(printed.getvalue(), expected)
    names["kept"].session.close()
    assert (tmp_path / "ledger.jsonl").exists()


def test_ten_minutes_in_python_need_no_extra() -> None:
    code = "\n".join(code for _, code, _ in blocks("start-python.md"))
    assert set(re.findall(r"^(?:import|from) (\w+)", code, flags=re.MULTILINE)) == {"hushgrad", "torch"}


def test_ten_minutes_at_the_command_line_run_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "people.py"))
    threads = torch.get_num_threads()
    commands = 0
    for language, code, expected in blocks("start-command-line.md"):
        assert language == "bash"
        printed = ""
        for line in code.replace("\\\n", " ").splitlines():
            name, *arguments = shlex.split(line)
            assert name == "hushgrad"
            result = CliRunner().invoke(main, arguments)
            assert result.exit_code == 0, result.output
            printed += result.stdout
            commands += 1
        if expected:
            require_same(printed, expected)
    torch.set_num_threads(threads)
    assert commands == 7
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 4_001
