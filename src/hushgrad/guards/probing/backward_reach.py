"""What code of the loop's own that runs in a backward can read: tensors and numbers, by its closures and names.

A hook, an autograd function, what unpacks a saved tensor: torch calls them, and nothing shows what they read. So what
they may read is looked for: variables that they close over, defaults, bound objects, what their class keeps, variables
of their file. Of objects and files only what the code names.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch.utils.checkpoint
from torch import Tensor, nn

from hushgrad.guards.probing.user_code import is_own, is_users_class, is_users_function, names_in

MOST_VALUES = 4000
"""So many values are looked at."""

MOST_PARTS = 1000
"""Longer lists are left out: data, most likely."""


CALLED = ("__call__", "forward", "backward", "setup_context")
"""What torch calls of objects and autograd functions."""


class Reach:
    """What some values, most of them functions, can read.

    Attributes:
        tensors: each once.
        numbers: those that are no whole numbers, each once.
        written: numbers in the code itself.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        self.tensors: dict[int, Tensor] = {}
        self.numbers: list[float] = []
        self.written: list[float] = []
        self._seen: dict[int, Any] = {}
        self._names = set(CALLED)  # of attributes, in code met so far
        self._waiting: list[Any] = [*values]
        self._objects: list[Any] = []
        known = None
        while True:
            while self._waiting and len(self._seen) < MOST_VALUES:
                self._visit(self._waiting.pop())
            found = len(self._names), len(self._objects), len(self._seen)
            if found == known or len(self._seen) >= MOST_VALUES:
                return
            known = found
            for value in [*self._objects]:
                self._visit_attributes(value)

    def _visit(self, value: Any) -> None:
        if isinstance(value, (bool, int, str, bytes)) or value is None:
            return
        if isinstance(value, (float, np.floating)):
            if not float(value).is_integer() and float(value) not in self.numbers:
                self.numbers.append(float(value))
            return
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self.tensors[id(value)] = value
        elif isinstance(value, dict):
            self._waiting += value.values() if len(value) <= MOST_PARTS else ()
        elif isinstance(value, (list, tuple, set, frozenset)):
            self._waiting += value if len(value) <= MOST_PARTS else ()
        elif isinstance(value, partial):
            self._waiting += (value.func, value.args, value.keywords)
        elif isinstance(value, MethodType):
            self._waiting += (value.__func__, value.__self__)
        elif isinstance(value, (staticmethod, classmethod)):
            self._waiting.append(value.__func__)
        elif isinstance(value, property):
            self._waiting.append(value.fget)
        elif isinstance(value, FunctionType):
            self._visit_function(value)
        elif isinstance(value, type):
            self._visit_class(value)
        elif not isinstance(value, ModuleType) and not is_own(type(value)):
            self._objects.append(value)
            self._waiting.append(type(value))

    def _visit_function(self, function: FunctionType) -> None:
        if is_own(function):
            return
        for cell in function.__closure__ or ():
            try:
                self._waiting.append(cell.cell_contents)
            except ValueError:
                continue  # not filled yet
        self._waiting += (function.__defaults__, function.__kwdefaults__, vars(function))
        if not is_users_function(function):
            return
        variables, attributes = names_in(function.__code__)
        self._names |= attributes
        self._waiting += [function.__globals__[name] for name in variables if name in function.__globals__]
        self.written += [part for part in function.__code__.co_consts if isinstance(part, float)]

    def _visit_class(self, cls: type) -> None:
        self._objects += [part for part in cls.__mro__ if is_users_class(part)]

    def _visit_attributes(self, value: Any) -> None:
        kept = getattr(value, "__dict__", None) or {}
        if isinstance(value, nn.Module):
            kept = {**kept, **dict(value.named_buffers(recurse=False))}
        is_of_checkpoint = type(value).__module__ == torch.utils.checkpoint.__name__
        self._waiting += [part for name, part in kept.items() if is_of_checkpoint or name in self._names]
