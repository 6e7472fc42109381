"""The training arguments among all that a class of Trainers is called with."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any


class Given:
    """What Trainers are called with. Some take the training arguments second, some third; by name all do.

    Args:
        classes: the class that is called, and those that it is made of.
        positional: as they were given.
        named: as they were given.
    """

    def __init__(self, classes: Sequence[type[Any]], positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._positional, self._named = positional, named
        calls = (vars(one)["__init__"] for one in classes if "__init__" in vars(one))
        self._place = next(  # a class of the user's may take *args, which are none of these
            place - 1
            for call in calls
            for place, parameter in enumerate(inspect.signature(call).parameters.values())
            if parameter.name == "args" and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        )

    @property
    def args(self) -> Any:
        """The training arguments; None where there are none."""
        if len(self._positional) > self._place:
            return self._positional[self._place]
        return self._named.get("args")

    def with_args(self, args: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return all that was given, by place and by name, with other training arguments."""
        if len(self._positional) > self._place:
            return (*self._positional[: self._place], args, *self._positional[self._place + 1 :]), self._named
        return self._positional, {**self._named, "args": args}
