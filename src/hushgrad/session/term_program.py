"""A term of parameters alone as a program of torch's operators: written down once, when it is declared.

What runs in each update is this program and no code of the loop's. So a term cannot read what the loop computes later,
wherever it hides it: in a closure, in a hook, in a backward of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from hushgrad.errors import HushgradError, InvalidArgumentError, where_raised
from hushgrad.torch_internals import OpOverload

UNWRITTEN = ("empty", "new_empty", "resize", "set_")
"""Operators by the beginnings of their names that hand out memory as it is, whatever was there before."""

CURE = (
    "Compute one scalar of the model's parameters and of tensors that nobody writes to (a clone of the first weights, "
    "say), with torch's operators, no random numbers, no numbers taken out by item() and no decisions on values "
    "(torch.distributions: validate_args=False); what reads the batch belongs in the loss of each example"
)


class TermProgram:
    """The operators of one term, over the parameters as they are and constants as they were.

    Args:
        function: the term.
        parameters: what is trained, by name.
        where: what messages call it.

    Raises:
        InvalidArgumentError: it is no function of the parameters alone.
    """

    def __init__(self, function: Callable[[], Tensor], parameters: Mapping[str, nn.Parameter], where: str) -> None:
        self._where = where
        try:
            with torch.enable_grad():
                self._graph = make_fx(function)()
        except HushgradError:
            raise
        except Exception as error:
            raise self._refused(
                f"cannot be written down as operators ({where_raised(error)}): it takes numbers out of torch, decides "
                f"on values, or returns no tensor"
            ) from None
        self.reads: list[Tensor] = []
        """The tensors that it was handed, of which it holds copies."""
        self._take(parameters)
        self._require_plain()

    def __call__(self) -> Tensor:
        """Return the term for the parameters as they are, with its graph."""
        with torch.enable_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            value: Tensor = self._graph.forward()
        return value

    def _take(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Copy every constant, so that nobody else can write to it."""
        own = {id(parameter) for parameter in parameters.values()}
        copies: dict[int, Tensor] = {}
        for node in list(self._graph.graph.nodes):
            if node.op != "get_attr":
                continue
            tensor = getattr(self._graph, node.target)
            if id(tensor) in own:
                continue
            if not isinstance(tensor, Tensor):
                raise self._refused(f"reads an object that is no tensor ({type(tensor).__name__})")
            if tensor.requires_grad:
                raise self._refused(
                    "reads a tensor with a gradient or a graph of its own, which is no parameter that is trained"
                )
            if id(tensor) not in copies:
                if not all(str(user.target).startswith("aten.lift_fresh") for user in node.users):
                    self.reads.append(tensor)  # and no number of the term's own code, which it makes a tensor of
                copies[id(tensor)] = tensor.detach().clone()
            delattr(self._graph, node.target)
            self._graph.register_buffer(node.target, copies[id(tensor)])

    def _require_plain(self) -> None:
        for target in self._operators():
            if torch.Tag.nondeterministic_seeded in target.tags:
                raise self._refused("draws random numbers, and gives another value each time")
            if target.__name__.startswith(UNWRITTEN):
                raise self._refused(f"reads memory that nothing has written to ({target.__name__.partition('.')[0]})")

    def _operators(self) -> Iterator[OpOverload]:
        for node in self._graph.graph.nodes:
            if node.op == "call_function" and isinstance(node.target, OpOverload):
                yield node.target

    def _refused(self, what: str) -> InvalidArgumentError:
        return InvalidArgumentError(what, where=self._where, cure=CURE)
