"""Which line of the user's loop is running."""

from __future__ import annotations

import sys

from hushgrad.guards.probing.loop_line import is_of_loop, line_of, loop_line


def test_a_line_is_told_by_the_name_of_its_file_without_its_folder() -> None:
    frame = sys._getframe()
    assert is_of_loop(frame)
    assert line_of(frame).startswith("test_loop_line.py, line ")
    assert loop_line(frame).startswith("test_loop_line.py, line ")
    assert loop_line(None) == ""
