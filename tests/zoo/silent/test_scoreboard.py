"""The scoreboard counts what it ran, and docs/probe.md holds the table that it writes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import scoreboard
from scoreboard import BEGIN, END, KINDS, PAGE, Row, between_markers, board, counts, listed, markdown, with_table
from silent_programs import EXACT, REFUSED, SILENT, TRUSTED, UNTYPED, Found

LEAKY, CLEAN = KINDS[0].leaky[0], KINDS[0].clean[0]


def row(outcome: str, clean: bool = False, moved: float = 0.5) -> Row:
    return Row(KINDS[0], CLEAN if clean else LEAKY, "session", Found(outcome, moved))


def test_a_row_is_a_fault_if_a_leak_is_silent_or_untyped_or_a_clean_program_does_not_train() -> None:
    assert [row(outcome).is_fault for outcome in (REFUSED, EXACT, TRUSTED, SILENT, UNTYPED)] == [False] * 3 + [True] * 2
    assert [row(outcome, clean=True).is_fault for outcome in (REFUSED, EXACT, SILENT)] == [True, False, True]


def test_the_board_counts_leaky_runs_by_outcome_and_clean_ones_that_do_not_train() -> None:
    rows = [row(REFUSED), row(REFUSED), row(EXACT), row(SILENT), row(EXACT, clean=True), row(REFUSED, clean=True)]
    assert counts(rows) == ["2", "1", "0", "1", "0", "2", "1"]
    assert board(rows).splitlines()[-1].split() == ["all", *counts(rows)]
    assert f"{SILENT} !" in listed(rows)


def test_the_command_ends_with_status_1_if_a_program_is_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["scoreboard.py"])
    for rows, status in (([row(EXACT)], 0), ([row(EXACT), row(SILENT)], 1), ([row(REFUSED, clean=True)], 1)):
        monkeypatch.setattr(scoreboard, "played_in", lambda jobs, word, rows=rows: rows)
        assert scoreboard.main() == status
        assert ("  SILENT, leaky: " in capsys.readouterr().out) == any(r.found.outcome == SILENT for r in rows)


def test_a_kind_is_played_in_a_process_of_its_own_as_it_is_in_this_one() -> None:
    word = "nothing is written"
    here, there = scoreboard.played(word=word), scoreboard.played_in(2, word)
    assert here
    assert [(r.kind, r.program, r.way, r.found) for r in here] == [(r.kind, r.program, r.way, r.found) for r in there]


def test_a_page_is_given_the_table_between_its_markers() -> None:
    page = f"a\n{BEGIN}\nold\n{END}\nb\n"
    assert between_markers(with_table(page, "new\nrows")) == "new\nrows"
    assert with_table(page, "old") == page


def told(line: str) -> list[str]:
    """The cells of a row that are not measured: what is examined, when, and what stays on trust."""
    return [cell.strip() for cell in line.strip("|").split("|")][:4]


def test_the_page_says_of_each_kind_what_the_kind_says_itself() -> None:
    lines = between_markers(PAGE.read_text(encoding="utf-8")).splitlines()[2:]
    assert [told(line) for line in lines] == [[kind.title, kind.examined, kind.when, kind.trusted] for kind in KINDS]
    for line, kind in zip(lines, KINDS, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert sum(map(int, cells[4:8])) == sum(len(program.ways) for program in kind.leaky)
        assert int(cells[9]) + int(cells[10]) == sum(len(program.ways) for program in kind.clean)


@pytest.mark.slow
def test_the_page_holds_the_figures_that_the_programs_give_now() -> None:
    rows = scoreboard.played()
    assert not [found for found in rows if found.is_fault]
    assert between_markers(PAGE.read_text(encoding="utf-8")) == markdown(rows), (
        "run: python tests/zoo/silent/scoreboard.py --write"
    )


def test_the_worst_move_of_a_kind_is_that_of_its_exact_programs() -> None:
    rows = [row(EXACT, moved=0.25), row(EXACT, moved=0.75), replace(row(REFUSED), found=Found(REFUSED))]
    assert "| 1 | 2 | 0 | 0 | 0.750 | 0 | 0 |" in markdown(rows)
