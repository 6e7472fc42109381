"""What a function of parameters reads, told from the calls of torch that it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

Token = tuple[Any, ...]


class TermReading(TorchFunctionMode):
    """Writes down the calls of torch that are made inside: which, and on what.

    Two runs have the same program if they make the same calls on the same parameters, on constants in the same order,
    on each other's results, and with the same numbers from Python.

    Args:
        parameters: those that may be read, by name.

    Attributes:
        program: the calls, as values that can be compared.
        constants: the tensors that came from elsewhere, in the order in which they were met: handed in, or made of
            no tensor at all (`zeros`, `tensor`, `randn`), with the values of then.
        handed_in: those of them that were handed in.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.program: list[Token] = []
        self.constants: list[Tensor] = []
        self.handed_in: list[Tensor] = []
        self._known: dict[int, Token] = {id(value): ("parameter", name) for name, value in parameters.items()}
        self._held: list[Tensor] = []  # an address must not come to be another tensor's

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call, and write it down."""
        kwargs = kwargs or {}
        self.program.append((resolve_name(func) or repr(func), self._token((args, kwargs))))
        result = func(*args, **kwargs)
        is_of_tensors = next(_tensors_in((args, kwargs)), None) is not None
        for tensor in _tensors_in(result):
            if id(tensor) not in self._known and not is_of_tensors:
                # Its values came from nothing that was seen; as they are now, for sums are often added to it in place.
                self._constant(tensor, tensor.detach().clone())
            elif id(tensor) not in self._known:
                self._know(tensor, ("result", len(self._known)))
        return result

    def is_known(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a parameter, or was met or made inside."""
        return id(tensor) in self._known

    def _know(self, tensor: Tensor, token: Token) -> Token:
        self._held.append(tensor)
        self._known[id(tensor)] = token
        return token

    def _constant(self, tensor: Tensor, values: Tensor) -> Token:
        self.constants.append(values)
        return self._know(tensor, ("constant", len(self.constants), tensor.shape, tensor.dtype))

    def _token(self, value: Any) -> Token:
        """Return a value that stands for what a call is given, equal for equal ones."""
        if isinstance(value, Tensor):
            if id(value) in self._known:
                return self._known[id(value)]
            self.handed_in.append(value)
            return self._constant(value, value)
        if isinstance(value, (tuple, list)):
            return (type(value).__name__, *map(self._token, value))
        if isinstance(value, dict):
            return ("dict", *((name, self._token(part)) for name, part in value.items()))
        if isinstance(value, slice):
            return ("slice", *map(self._token, (value.start, value.stop, value.step)))
        if isinstance(value, (np.ndarray, np.generic)):
            return ("array", value.shape, value.dtype.str, value.tobytes())
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype, torch.device)):
            return (type(value).__name__, repr(value))
        return ("a", f"{type(value).__module__}.{type(value).__qualname__}")


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors_in(part)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))
