"""Which line of the user's loop is running, for messages: the name of its file, without its folder."""

from __future__ import annotations

import sys
from pathlib import Path, PurePath
from types import FrameType

import torch

import hushgrad

LIBRARY, TORCH = str(Path(hushgrad.__file__).parent), str(Path(torch.__file__).parent)


def is_of_loop(frame: FrameType) -> bool:
    """Return whether a frame runs code that is neither torch's nor this library's."""
    return not frame.f_code.co_filename.startswith((LIBRARY, TORCH))


def loop_frame() -> FrameType | None:
    """Return the frame of the loop that is running below this library's and torch's; None where there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_of_loop(frame):
        frame = frame.f_back
    return frame


def line_of(frame: FrameType) -> str:
    """Return "file, line n"."""
    return f"{PurePath(frame.f_code.co_filename).name}, line {frame.f_lineno}"


def loop_line(frame: FrameType | None) -> str:
    """Return the line of the loop that a frame was called from; "" where there is none."""
    while frame is not None and not is_of_loop(frame):
        frame = frame.f_back
    return "" if frame is None else line_of(frame)
