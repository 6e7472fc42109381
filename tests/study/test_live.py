"""The bar of a run fits 80 columns with the time that is left, and a notebook has one of its own."""

from __future__ import annotations

import io
import re
import sys
import types
from typing import Any

import pytest
from rich.console import Console

from hushgrad.study.live import LEAST_SECONDS, NoBar, NotebookBar, TerminalBar, bar_for
from hushgrad.study.progress import say_on

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def terminal(width: int = 80, encoding: str = "utf-8") -> tuple[Console, io.TextIOWrapper]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    return Console(file=stream, force_terminal=True, width=width, legacy_windows=False), stream


def shown(stream: io.TextIOWrapper) -> str:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return ESCAPES.sub("", stream.buffer.getvalue().decode(stream.encoding))


def test_80_columns_have_a_bar_the_time_left_and_what_was_measured() -> None:
    console, stream = terminal()
    bar = bar_for(console)
    assert isinstance(bar, TerminalBar)
    bar.start()
    bar.update(total=3_516)
    bar.update(completed=1_234, description="loss 0.282 test 86.8% (largest class 51.0%) AUC 0.94 ε = 2.74 8,742/s")
    bar.stop()
    text = shown(stream)
    assert re.search(r"step 1234/3516 [━╸╺]{24} \S+ left", text)
    assert "8,742/s" in text
    assert all(len(line) <= 80 for part in text.split("\n") for line in part.split("\r"))


def test_a_bar_without_a_number_of_steps_is_what_is_going_on() -> None:
    console, stream = terminal()
    bar = bar_for(console)
    bar.start()
    bar.update(description="reading the data")
    bar.stop()
    assert "reading the data" in shown(stream)
    assert "0/?" not in shown(stream)


def test_a_terminal_without_unicode_gets_a_bar_of_dashes() -> None:
    console, stream = terminal(encoding="ascii")
    bar = bar_for(console)
    bar.start()
    bar.update(total=4, completed=2)
    bar.stop()
    assert re.search(r"step 2/4 -{12} +", shown(stream))


def test_a_pipe_gets_no_bar() -> None:
    assert isinstance(bar_for(Console(file=io.StringIO())), NoBar)


def test_a_terminal_wraps_between_words_and_a_pipe_keeps_a_sentence_whole() -> None:
    sentence = "the independence of contributions was measured in every batch of the whole of it"
    console, stream = terminal(30)
    say_on(console, sentence)
    say_on(console, f"  - {sentence}")
    lines = shown(stream).splitlines()
    assert " ".join(line.strip() for line in lines) == f"{sentence} - {sentence}"
    assert max(map(len, lines)) <= 30
    assert lines[-1].startswith("    ")
    pipe = io.StringIO()
    say_on(Console(file=pipe), sentence)
    assert pipe.getvalue() == f"{sentence}\n"


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a notebook's one output held, one after another."""
    outputs: list[str] = []

    class Handle:
        def update(self, shown: str) -> None:
            outputs.append(shown)

    def display(shown: str, *, display_id: bool) -> Any:
        assert display_id
        outputs.append(shown)
        return Handle()

    module = types.ModuleType("IPython.display")
    module.HTML, module.display = str, display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return outputs


def test_a_notebook_has_a_bar_in_one_output(notebook: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("hushgrad.study.live.time.monotonic", lambda: now[0])
    bar = NotebookBar()
    bar.start()
    assert "<progress></progress>" in notebook[-1]
    bar.update(total=40)
    for step in range(1, 11):
        now[0] += 0.6 * LEAST_SECONDS
        bar.update(completed=step, description="loss <0.5>")
    assert len(notebook) < 10  # not once a step
    bar.stop()
    assert '<progress value="10" max="40"></progress> step 10/40, 0:03 left' in notebook[-1]
    assert "loss &lt;0.5&gt;" in notebook[-1]


def test_a_console_in_a_notebook_takes_that_bar() -> None:
    assert isinstance(bar_for(Console(file=io.StringIO(), force_jupyter=True)), NotebookBar)
