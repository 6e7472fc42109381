"""Terms of parameters alone, declared by `session.regularizer`: their gradients are added to the noised update.

A function of the parameters is a function of what was released already, so its gradient costs no privacy, is neither
clipped nor noised, and moves no sensitivity. That it reads nothing else is not believed: see `term_program`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from hushgrad.accounting.conditions import CONSTANTS_OF_A_TERM, Condition
from hushgrad.arguments import positive_number
from hushgrad.capture.scope import Scope
from hushgrad.errors import InvalidArgumentError, ProtocolError
from hushgrad.session.term_program import CURE, TermProgram
from hushgrad.torch_internals import distributions_validate, versions_of

Term = Callable[[], Tensor]
CLOSE = 1e-4
"""So near must the gradient of a term's operators be to its own, relative to the largest; ten times in 16 bits."""


class _Declared(NamedTuple):
    program: TermProgram
    weight: float


class Regularizers:
    """The declared terms of one session.

    Guarantee: what is added to an update is a function of the parameters and of constants from before the first batch.

    Args:
        parameters: what is trained, by name.
        scope: captures the forwards of the model; not those that a term makes.
        sparse: names of tables of which some rows alone are updated, so that no term may read them.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], scope: Scope, sparse: Sequence[str] = ()) -> None:
        self._parameters = parameters
        self._sparse = frozenset(sparse)
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

    @property
    def weights(self) -> list[float]:
        """The weights of the declared terms, in their order."""
        return [term.weight for term in self._terms]

    def declare(self, function: Term, weight: float) -> None:
        """Write a term down, to be run in each update; see `Session.regularizer`."""
        factor = positive_number("weight", weight)
        if not callable(function):
            raise InvalidArgumentError(
                f"must be a function without arguments, got {type(function).__name__}",
                where="the regularizer",
                cure="Pass lambda: (model.weight - first).square().sum(), say",
            )
        where = f"the regularizer {getattr(function, '__name__', type(function).__name__)}"
        if self._is_late:
            raise ProtocolError(
                "is declared after the first batch was handed out, whose values it may hold",
                where=where,
                cure="Call session.regularizer right after make_private, before the loop",
            )
        before = versions_of(self._parameters.values())
        with self._aside():
            value = function()
            if versions_of(self._parameters.values()) != before:
                raise InvalidArgumentError("writes to parameters", where=where, cure=CURE)
            if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
                came = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InvalidArgumentError(f"must return one floating-point scalar, got {came}", where=where, cure=CURE)
            program = TermProgram(function, self._parameters, where)
        if versions_of(self._parameters.values()) != before:
            raise InvalidArgumentError("writes to parameters", where=where, cure=CURE)
        own, found, again = self._gradients(value), self._gradients(program()), self._gradients(program())
        if not found:
            raise InvalidArgumentError("depends by its graph on no parameter that is trained", where=where, cure=CURE)
        if tables := sorted(self._sparse & own.keys()):
            raise InvalidArgumentError(
                f"reads {', '.join(tables)}, of which each step updates some rows alone (SparseRows): its gradient is "
                f"of all rows",
                where=where,
                cure="Let the term read the other parameters alone",
            )
        if not (_are_close(own, found) and _are_close(found, again)):
            raise InvalidArgumentError(
                "has another gradient than its operators have (by a hook, or a backward of its own), or another one "
                "each time",
                where=where,
                cure=CURE,
            )
        self._has_constants |= not all(self._is_a_copy(constant) for constant in program.reads)
        self._terms.append(_Declared(program, factor))

    def gradients(self) -> dict[str, Tensor]:
        """Return Σ weight · ∇term by each parameter that is trained now and that a term reads."""
        found: dict[str, Tensor] = {}
        for term in self._terms:
            for name, part in self._gradients(term.program()).items():
                weighed = part * term.weight
                found[name] = found[name] + weighed if name in found else weighed
        return found

    def _gradients(self, value: Tensor) -> dict[str, Tensor]:
        trained = {name: parameter for name, parameter in self._parameters.items() if parameter.requires_grad}
        if not value.requires_grad:
            return {}  # all that it reads is frozen for a while
        parts = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
        return {name: part for name, part in zip(trained, parts, strict=True) if part is not None}

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Run code of the loop's: its forwards are not captured, and torch.distributions takes no numbers out."""
        validates = distributions_validate()
        Distribution.set_default_validate_args(False)
        try:
            with self._scope.off(), torch.enable_grad():
                yield
        finally:
            Distribution.set_default_validate_args(validates)

    def _is_a_copy(self, constant: Tensor) -> bool:
        return any(
            constant.shape == parameter.shape and constant.dtype == parameter.dtype and torch.equal(constant, parameter)
            for parameter in self._parameters.values()
            if constant.device == parameter.device
        )


def _are_close(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether gradients are the same up to rounding; NaN is itself."""
    if one.keys() != other.keys():
        return False
    for name, gradient in one.items():
        largest = float(gradient.detach().abs().nan_to_num(0, 0, 0).max()) if gradient.numel() else 0.0
        loose = CLOSE * (10 if gradient.element_size() < 4 else 1)
        if not torch.allclose(gradient, other[name], rtol=loose, atol=loose * largest, equal_nan=True):
            return False
    return True
