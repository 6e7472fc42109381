"""Tables are plain text that fits a screen."""

from __future__ import annotations

import pytest

from hushgrad.text_table import text_table, wrapped

HEADS = ("part", "what was measured", "values")
ROWS = [
    ("✓ noise", "the standard deviation of the noise is the claimed one", "384,800"),
    ("✗ a", "averyveryverylongnamewithoutaspace", "5"),
]


def test_a_table_without_a_width_keeps_each_cell_on_one_line_and_numbers_to_the_right() -> None:
    lines = text_table(HEADS, ROWS, right=("values",)).splitlines()
    assert len(lines) == 4
    assert lines[2].endswith("  384,800")
    assert lines[3].endswith("        5")
    assert set(lines[1]) == {"-", " "}


@pytest.mark.parametrize("width", [30, 40, 60, 200])
def test_no_line_is_wider_than_asked_for_and_no_letter_is_lost(width: int) -> None:
    text = text_table(HEADS, ROWS, width=width, right=("values",), between_rows=True)
    assert all(len(line) <= width for line in text.splitlines())
    letters = sorted("".join(text.replace("-", "").split()))
    assert letters == sorted("".join("".join(cells) for cells in (HEADS, *ROWS)).replace(" ", ""))


def test_no_word_is_cut_where_whole_words_fit() -> None:
    words = ["independence", "of", "contributions", "as", "measured"]
    text = text_table(("a", "b"), [(" ".join(words), " ".join(words))], width=2 * len("contributions") + 2)
    assert sorted(text.split()[4:]) == sorted(2 * words)


def test_a_table_that_cannot_fit_keeps_its_numbers_whole() -> None:
    assert "384,800" in text_table(HEADS, ROWS, width=5, right=("values",))


def test_a_table_without_rows_is_its_heads() -> None:
    assert text_table(("a", "b"), []).splitlines() == ["a  b", "-  -"]


def test_lines_are_cut_between_words_and_kept_apart() -> None:
    assert wrapped("one two three\n\nfour", 8) == ["one two", "three", "", "four"]
