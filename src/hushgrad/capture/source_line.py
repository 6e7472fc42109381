"""Where in the user's model an operator was called, and what it is called there, for messages."""

from __future__ import annotations

import sys
from pathlib import PurePath
from types import FrameType

from torch import nn

from hushgrad.torch_internals import function_of


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


def running_function() -> type | None:
    """Return the class of the custom autograd function whose forward is running; None outside of any."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        function = _function_run_by(frame)
        if function is not None:
            return function
        frame = frame.f_back
    return None


def _function_run_by(frame: FrameType) -> type | None:
    """Return the custom autograd function whose forward a frame is: its first argument is the function's context."""
    names = frame.f_code.co_varnames
    return function_of(frame.f_locals.get(names[0])) if names and frame.f_code.co_name == "forward" else None


def registration_line(function: type | None) -> str:
    """Return the cure for a custom autograd function: the line that registers it where a running caller has it."""
    rest = "write it with torch's own operators, or freeze the parameter (requires_grad_(False))"
    frame: FrameType | None = sys._getframe(1)
    while function is not None and frame is not None:
        name = next((key for key, value in frame.f_globals.items() if value is function), None)
        if name is not None and _function_run_by(frame) is not function:
            path = f"{frame.f_globals.get('__name__')}.{name}"
            return f"Say {path} = hushgrad.register_operator({path}) before the model is called, {rest}"
        frame = frame.f_back
    return f"Call what hushgrad.register_operator(the function) returns instead, {rest}"
