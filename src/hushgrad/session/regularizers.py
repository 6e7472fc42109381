"""Terms of parameters alone, declared by `session.regularizer`: their gradients are added to the noised update.

A function of the parameters is a function of what was released already, so its gradient costs no privacy, is neither
clipped nor noised, and moves no sensitivity. That it reads nothing else is not believed but looked at, in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from hushgrad.accounting.conditions import CONSTANTS_OF_A_TERM, Condition
from hushgrad.arguments import positive_number
from hushgrad.capture.scope import Scope
from hushgrad.errors import ContractChangedError, InvalidArgumentError, ProtocolError
from hushgrad.session.term_reading import TermReading, Token
from hushgrad.torch_internals import versions_of

Term = Callable[[], Tensor]

CURE = (
    "Compute one scalar of the model's parameters and of tensors that nobody writes to (a clone of the first weights, "
    "say), with torch's operators, no random numbers and no numbers taken out by item(); what reads the batch belongs "
    "in the loss of each example"
)


@dataclass(frozen=True, eq=False)
class _Declared:
    """A term with what it read when it was declared: the same calls, and copies of the constants."""

    function: Term
    weight: float
    program: list[Token]
    constants: list[Tensor]


class Regularizers:
    """The declared terms of one session.

    Guarantee: a term that reads anything but trained parameters and constants of before the first batch is refused.

    Args:
        parameters: what is trained, by name.
        scope: captures the forwards of the model; not those that a term makes.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], scope: Scope) -> None:
        self._parameters = parameters
        self._scope = scope
        self._terms: list[_Declared] = []
        self._is_late = False
        self._has_constants = False

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What is on trust: that constants other than copies of the parameters hold nothing of the records."""
        return (CONSTANTS_OF_A_TERM,) if self._has_constants else ()

    def batch_comes(self) -> None:
        """A batch is handed out: what is declared from here on may hold its values."""
        self._is_late = True

    def declare(self, function: Term, weight: float) -> None:
        """Add a term, evaluated twice now and once in each update; see `Session.regularizer`."""
        factor = positive_number("weight", weight)
        if not callable(function):
            raise InvalidArgumentError(
                f"must be a function without arguments, got {type(function).__name__}",
                where="the regularizer",
                cure="Pass lambda: (model.weight - first).square().sum(), say",
            )
        where = _place(function)
        if self._is_late:
            raise ProtocolError(
                "is declared after the first batch was handed out, whose values it may hold",
                where=where,
                cure="Call session.regularizer right after make_private, before the loop",
            )
        value, reading = self._evaluated(function)
        constants = [constant.detach().clone() for constant in reading.constants]
        if any(constant.requires_grad for constant in reading.handed_in):
            raise InvalidArgumentError(
                "reads a tensor with a gradient or a graph of its own, which is no parameter that is trained",
                where=where,
                cure=CURE,
            )
        self._require_leaves(value, where)
        again, second = self._evaluated(function)
        if not _is_same(value.detach(), again.detach()) or not _reads_the_same(reading.program, constants, second):
            raise InvalidArgumentError("gives another value when it is evaluated again", where=where, cure=CURE)
        self._has_constants |= not all(self._is_a_copy(constant) for constant in reading.handed_in)
        self._terms.append(_Declared(function, factor, reading.program, constants))

    def gradients(self) -> dict[str, Tensor]:
        """Return Σ weight · ∇term by each parameter that is trained now and that a term reads.

        Raises:
            ContractChangedError: a term reads something else than when it was declared.
            InvalidArgumentError: it no longer gives a scalar, or writes to parameters.
        """
        trained = {name: parameter for name, parameter in self._parameters.items() if parameter.requires_grad}
        found: dict[str, Tensor] = {}
        for term in self._terms:
            value, reading = self._evaluated(term.function)
            if not _reads_the_same(term.program, term.constants, reading):
                raise ContractChangedError(
                    "reads other tensors, values or numbers than when it was declared",
                    where=_place(term.function),
                    cure=CURE,
                )
            if not value.requires_grad:
                continue  # all that it reads is frozen for a while
            parts = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
            for name, part in zip(trained, parts, strict=True):
                if part is not None:
                    weighed = part * term.weight
                    found[name] = found[name] + weighed if name in found else weighed
        return found

    def _evaluated(self, function: Term) -> tuple[Tensor, TermReading]:
        reading, values = TermReading(self._parameters), list(self._parameters.values())
        before, paused = versions_of(values), self._scope.paused
        self._scope.paused = True
        try:
            with torch.enable_grad(), reading:
                value = function()
        finally:
            self._scope.paused = paused
        where = _place(function)
        if versions_of(values) != before:
            raise InvalidArgumentError("writes to parameters", where=where, cure=CURE)
        if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
            came = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InvalidArgumentError(f"must return one floating-point scalar, got {came}", where=where, cure=CURE)
        if not reading.is_known(value):
            raise InvalidArgumentError("returned a tensor that it did not compute", where=where, cure=CURE)
        return value, reading

    def _require_leaves(self, value: Tensor, where: str) -> None:
        own = {id(parameter) for parameter in self._parameters.values()}
        leaves = list(_leaves_of(value))
        if not leaves or any(id(leaf) not in own for leaf in leaves):
            raise InvalidArgumentError(
                "depends by its graph on no parameter that is trained"
                if not leaves
                else "depends by its graph on tensors that are no parameters of this model",
                where=where,
                cure=CURE,
            )

    def _is_a_copy(self, constant: Tensor) -> bool:
        return any(
            constant.shape == parameter.shape and constant.dtype == parameter.dtype and torch.equal(constant, parameter)
            for parameter in self._parameters.values()
            if constant.device == parameter.device
        )


def _place(function: Term) -> str:
    return f"the regularizer {getattr(function, '__name__', type(function).__name__)}"


def _reads_the_same(program: list[Token], constants: list[Tensor], reading: TermReading) -> bool:
    return (
        reading.program == program
        and len(reading.constants) == len(constants)
        and all(_is_same(one.detach(), other) for one, other in zip(reading.constants, constants, strict=True))
    )


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values; NaN is itself."""
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    return torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _leaves_of(value: Tensor) -> Iterable[Tensor]:
    """Yield the leaves of a graph: the tensors at which gradients would be accumulated."""
    if value.grad_fn is None:
        if value.requires_grad:
            yield value
        return
    waiting: list[Node] = [value.grad_fn]
    seen: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            yield leaf
        waiting += [part for part, _ in node.next_functions if part is not None]
