"""Which line of the loop's a traced call stands in, and which autograd function of the loop's it runs in."""

from __future__ import annotations

import sys
from pathlib import Path as File
from pathlib import PurePath
from types import FrameType
from typing import Any

import torch

from hushgrad.guards.probing.loop_line import LIBRARY, TORCH
from hushgrad.guards.probing.loss_program import Place

CRITERIA = str(File(LIBRARY) / "losses.py")
MODES = {
    str(File(LIBRARY) / "guards" / "probing" / "loss_trace.py"),
    str(File(LIBRARY) / "guards" / "probing" / "loss_tensors.py"),
    str(File(LIBRARY) / "low_mode.py"),
    str(File(LIBRARY) / "session" / "own_backward.py"),
}
"""The code of modes that the loop's calls run through, some another way: what they call is the loop's."""

APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]
"""The code that calls a custom autograd function."""


def place_of(frame: FrameType) -> Place:
    """Return the line that a frame of the loop's is at; of the library's own criterion, the line that calls it."""
    constants = tuple(part for part in frame.f_code.co_consts if type(part) in (int, float))
    is_criterions, line = frame.f_code.co_filename == CRITERIA, frame
    while is_criterions and line.f_back is not None and line.f_code.co_filename.startswith((LIBRARY, TORCH)):
        line = line.f_back
    return Place(PurePath(line.f_code.co_filename).name, line.f_lineno, constants, is_criterions)


def running() -> tuple[Place | None, FrameType | None]:
    """Return the line of the loop's code that runs, and the frame of the autograd function that it is in, if any.

    No line for calls of this library's own.
    """
    frame: FrameType | None = sys._getframe(2)
    place: Place | None = None
    while frame is not None:
        file = frame.f_code.co_filename
        if place is None and file not in MODES and not file.startswith(TORCH):
            if file.startswith(LIBRARY) and file != CRITERIA:
                return None, None
            place = place_of(frame)
            if torch.is_grad_enabled():
                return place, None
        if frame.f_code is APPLY:
            return place, frame
        frame = frame.f_back
    return place, None


def function_call(applied: FrameType) -> tuple[FrameType, Any, tuple[Any, ...], dict[str, Any]]:
    """Return the frame of an autograd function's forward, its class, and what it was called with."""
    frame: FrameType = sys._getframe(2)
    inner = frame
    while frame is not applied:
        inner = frame
        assert frame.f_back is not None
        frame = frame.f_back
    return inner, applied.f_locals["cls"], applied.f_locals["args"], applied.f_locals["kwargs"]
