"""Where in the user's model an operator was called, for messages."""

from __future__ import annotations

import sys
from pathlib import PurePath
from types import FrameType

from torch import nn


def calling_forward() -> str:
    """Return " in Class.forward (file, line n)" for the innermost forward that is running; "" outside of any."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "forward":
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module):
                name = PurePath(frame.f_code.co_filename).name
                return f" in {type(module).__name__}.forward ({name}, line {frame.f_lineno})"
        frame = frame.f_back
    return ""
