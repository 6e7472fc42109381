"""Was a part of the model called from a method of the model, in place of a call of the model itself?

`model.forward(x)` and `model.encode(x)` run the same parts as `model(x)`. What they compute between those is run again
with the rest of the loop's own code, where there is a loader. In a loop without one it is seen by nobody: neither by
capture nor by a probe, which both begin where a module is called.
"""

from __future__ import annotations

from types import CodeType, FrameType, FunctionType

from torch import nn

from hushgrad.errors import UnsupportedModelError
from hushgrad.torch_internals import MODULE_CALL_FILE

MOST_FRAMES = 60
"""How far the stack is looked at."""


def require_no_bypass(model: nn.Module, part: nn.Module, frame: FrameType | None) -> None:
    """Refuse the call of a part that a method of the model, or of another part that holds it, has made.

    Args:
        model: the root.
        part: what was called, while no other module of the model was.
        frame: where to begin to look for the method.

    Raises:
        UnsupportedModelError: with the method's name, and the cure.
    """
    holders = [
        module for module in model.modules() if module is not part and any(own is part for own in module.modules())
    ]
    for _ in range(MOST_FRAMES):
        if frame is None:
            return
        code, caller = frame.f_code, frame.f_back
        is_hooked = caller is not None and caller.f_code.co_filename == MODULE_CALL_FILE
        if code.co_argcount and not is_hooked:
            first = frame.f_locals.get(code.co_varnames[0])
            if isinstance(first, nn.Module) and any(first is holder for holder in holders) and _is_method(code, first):
                raise _refusal(model, first, code.co_name)
        frame = caller


def _is_method(code: CodeType, module: nn.Module) -> bool:
    """Whether code is of a method of a module: of its classes, or of a function that was set on it."""
    if code.co_qualname.rpartition(".")[0] in {cls.__qualname__ for cls in type(module).__mro__}:
        return True
    own = (getattr(value, "__func__", value) for value in vars(module).values())
    return any(isinstance(value, FunctionType) and value.__code__ is code for value in own)


def _refusal(model: nn.Module, holder: nn.Module, method: str) -> UnsupportedModelError:
    name = type(holder).__name__
    if method == "forward":
        what, cure = "was run by its forward(...)", "Call the module itself: model(...) in place of model.forward(...)"
    else:
        what = f"was run by its method {method}(...)"
        cure = (
            f"Make {method} private with a module of its own: class Private(nn.Module) with the model as a part, whose "
            f"forward calls {method} (and whatever else the loop needs), given to make_private in the model's place"
        )
    return UnsupportedModelError(
        f"{what}, past the call of the module, so that what it computes between its parts cannot be examined: it could "
        f"mix examples",
        where=name if holder is not model else f"the model ({name})",
        cure=cure,
    )
