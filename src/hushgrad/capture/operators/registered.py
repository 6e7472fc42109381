"""Operators of other libraries and of users: registered, they are called on one example at a time.

A custom `autograd.Function` (a fused norm, a fused loss, attention) does not show itself to a mode, and its backward
sums over examples before anybody can look. A registered one is a function that does show itself, by torch's own
protocol for functions of libraries. The mode then calls it once for each example, with that example's rows and with
the example's own view of each parameter, and joins the outputs. What autograd returns for the views is the gradient
per example; no forward that is differentiated, and no backward, ever holds rows of two examples.

With x `[B, d]` and a weight `[d]`: the weight is seen as `[B, d]` (a view, no memory), example i runs
`operator(x[i:i+1], weight_Bd[i])`, the B outputs `[1, d]` are joined to `[B, d]`.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function

from hushgrad.capture.axes.table import AXIS_RULES
from hushgrad.capture.derivation import derive
from hushgrad.capture.operators.broadcast import Expand
from hushgrad.capture.operators.operator import ForwardContext, autocast_dtype, capture
from hushgrad.capture.operators.table import COMPOSITES, FIRST, RULES
from hushgrad.capture.transforms import refuse_transforms, transform_in_force
from hushgrad.errors import CrossSampleLeakError, InvalidArgumentError, PrivacyUnitError, UncoveredParameterUseError
from hushgrad.printable import full_name
from hushgrad.torch_internals import tree_flatten, tree_leaves, tree_unflatten, version

LOOKS_AGAIN = 64
"""One call in so many is compared again, drawn in secret, so that no operator can know when it is looked at."""

CLOSE = {torch.float64: 1e-6, torch.float32: 2e-3}
"""How far an output may be from itself, relative to its largest value. Kernels on a GPU multiply in TF32."""
CLOSE_IN_16_BITS = 5e-2

PLAIN = (Tensor, bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
"""What an argument may be, in tuples, lists and dictionaries: nothing that holds tensors out of sight."""

_known: set[Callable[..., Any]] = set()
"""What was registered, and what came of it."""


def register_operator(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Make an operator known to capture, and return the function that the model is to call in its place.

    For what torch's own operators are not made of: a subclass of `torch.autograd.Function` (its `apply` is called), or
    a function that calls one. Every tensor that it takes from the batch, and every tensor that it returns, must hold
    the batch on axis 0. Parameters are arguments. In a private training it is then called once for each example; that
    it gives the same for a batch is compared on the first call of a kind, and in later calls at random. Elsewhere it
    runs as it is.

    Guarantee: what the loss gets from a registered operator comes from calls that held one example each.

    Args:
        operator: the function, or the class itself. May stand as a decorator.

    Raises:
        InvalidArgumentError: not such an operator, registered already, or one of torch's that hushgrad knows.
    """
    if isinstance(operator, nn.Module) or not callable(operator):
        kind = type(operator).__name__
        raise InvalidArgumentError(
            f"takes a function or a subclass of torch.autograd.Function, got an object of class {kind}",
            where="register_operator",
            cure="Register the function that it calls, with its parameters as arguments",
        )
    run: Callable[..., Any] = operator
    if isinstance(operator, type):
        if not issubclass(operator, torch.autograd.Function):
            raise InvalidArgumentError(
                f"takes a function or a subclass of torch.autograd.Function, got the class {operator.__name__}",
                where="register_operator",
                cure="Register the function that it calls, with its parameters as arguments",
            )
        run = operator.apply
    if operator in _known:
        raise InvalidArgumentError(
            "is registered already",
            where=full_name(operator),
            cure="Register an operator once, and call what that returned",
        )
    if any(operator in table for table in (RULES, COMPOSITES, FIRST, AXIS_RULES)):
        raise InvalidArgumentError("hushgrad knows this operator", where=full_name(operator), cure="Call it as it is")

    @functools.wraps(operator, updated=())
    def registered(*args: Any, **kwargs: Any) -> Any:
        tensors = tuple(value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
        if has_torch_function(tensors):
            return handle_torch_function(registered, tensors, *args, **kwargs)
        return run(*args, **kwargs)

    registered.apply = registered  # type: ignore[attr-defined]  # what it returns stands in the place of a class, too
    FIRST[registered] = _OneAtATime(full_name(operator), run)
    _known.update((operator, registered))
    return registered


class _Watch(TorchFunctionMode):
    """Refuses what an operator takes from elsewhere: tensors of the batch or parameters that are no arguments of it."""

    def __init__(self, context: ForwardContext, name: str) -> None:
        super().__init__()
        self._context = context
        self._name = name

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for value in tree_leaves((args, kwargs)):
            if self._context.leaf(value) is not None or self._context.is_data(value):
                raise UncoveredParameterUseError(
                    f"a registered operator uses a parameter or a tensor of the batch of shape {list(value.shape)} "
                    f"that is not one of its arguments",
                    where=self._name,
                    cure="Pass it as an argument",
                )
        return func(*args, **kwargs)


class _OneAtATime:
    """The rule of a registered operator: one call for each example."""

    def __init__(self, name: str, run: Callable[..., Any]) -> None:
        self._name = name
        self._run = run
        self._compared: set[Any] = set()

    def __call__(
        self, context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        flat, spec = tree_flatten((args, kwargs))
        leaves = {position: leaf for position, value in enumerate(flat) if (leaf := context.leaf(value)) is not None}
        data = {
            position: value for position, value in enumerate(flat) if position not in leaves and context.is_data(value)
        }
        if (transform := transform_in_force()) is not None:
            refuse_transforms(transform, next((leaf.name for leaf in leaves.values()), self._name))
        strange = next((value for value in flat if value is not None and not isinstance(value, PLAIN)), None)
        if strange is not None:
            raise UncoveredParameterUseError(
                f"a registered operator takes tensors (in tuples, lists and dictionaries), numbers and names, got an "
                f"object of class {type(strange).__name__}, in which tensors cannot be seen",
                where=self._name,
                cure="Pass the tensors themselves",
            )
        if leaves and not data and torch.is_grad_enabled():
            context.registered.add(self._name)
            with _Watch(context, self._name):
                return derive(context, func, args, kwargs, list(leaves.values()))
        if not data:
            with _Watch(context, self._name):
                return self._run(*args, **kwargs)
        size = self._batch(context, list(data.values()))
        versions = {position: version(value) for position, value in enumerate(flat) if isinstance(value, Tensor)}

        def run(values: dict[int, Any]) -> Any:
            new_args, new_kwargs = tree_unflatten([values.get(i, value) for i, value in enumerate(flat)], spec)
            return self._run(*new_args, **new_kwargs)

        # What is compared is run first: an operator that keeps something of its last call then meets another one.
        kind = self._kind(flat, data)
        whole = None
        if kind not in self._compared or secrets.randbelow(LOOKS_AGAIN) == 0:
            with torch.no_grad():
                whole = run({position: leaf.value for position, leaf in leaves.items()})
        views = {
            position: capture(Expand(f"{self._name}({leaf.name})", leaf, 0, (size, *leaf.value.shape)), context)
            for position, leaf in leaves.items()
        }
        parts = []
        for i in range(size):
            own = {position: _rows(value, i, size) for position, value in data.items()}
            own |= {position: view[i] for position, view in views.items()}
            with _Watch(context, self._name):
                parts.append(run(own))
        if any(version(flat[position]) != before for position, before in versions.items()):
            raise UncoveredParameterUseError(
                "a registered operator changed one of its arguments in place",
                where=self._name,
                cure="Let it return a new tensor",
            )
        result = self._joined(context, parts)
        # What the operator rounds inside is not seen: under autocast it counts as rounded.
        narrow = autocast_dtype(next(iter(data.values()))) is not None
        context.axes.is_narrow |= narrow
        if whole is not None and self._compare(whole, result, narrow) and size > 1:
            self._compared.add(kind)
        context.registered.add(self._name)
        return result

    def _batch(self, context: ForwardContext, data: Sequence[Tensor]) -> int:
        """Return the number of examples that the data hold on axis 0."""
        size = context.batch_size
        for value in data:
            axis = context.axes.get(value)
            if axis is None and size is not None:
                context.check_batch(self._name, [None])
            if size is None or axis != 0 or value.shape[0] % max(size, 1):
                raise PrivacyUnitError(
                    f"a registered operator takes the batch on axis 0 of its arguments, got a tensor of shape "
                    f"{list(value.shape)} with the batch on axis {axis}",
                    where=self._name,
                    cure="Move the batch to axis 0 (transpose, movedim)",
                )
        if not size:
            raise PrivacyUnitError(
                "a registered operator needs at least one example, got none",
                where=self._name,
                cure="Skip the call where the batch is empty",
            )
        return size

    def _kind(self, flat: Sequence[Any], data: dict[int, Tensor]) -> Any:
        """Return what tells calls of one kind apart: shapes but for the batch, dtypes and settings."""
        return tuple(
            (value.shape[1:] if position in data else value.shape, value.dtype, value.device)
            if isinstance(value, Tensor)
            else (value if isinstance(value, (bool, int, str)) else type(value))
            for position, value in enumerate(flat)
        )

    def _joined(self, context: ForwardContext, parts: Sequence[Any]) -> Any:
        """Join what the examples gave; every tensor holds the batch on axis 0."""
        flat, specs = zip(*(tree_flatten(part) for part in parts), strict=True)
        if any(spec != specs[0] for spec in specs):
            raise UncoveredParameterUseError(
                "a registered operator returned another structure for one example than for the others",
                where=self._name,
                cure="Return the same structure of tensors for every example",
            )
        outputs = []
        for column in zip(*flat, strict=True):
            first = column[0]
            if not isinstance(first, Tensor):
                if any(isinstance(part, Tensor) or part != first for part in column[1:]):
                    raise CrossSampleLeakError(
                        f"a registered operator returned a value of class {type(first).__name__} that is not the same "
                        f"for all examples",
                        where=self._name,
                        cure="Return tensors with the batch on axis 0",
                    )
                outputs.append(first)
                continue
            if first.ndim == 0 or any(part.shape != first.shape for part in column):
                raise CrossSampleLeakError(
                    f"a registered operator must return tensors with the batch on axis 0 and equally many rows for "
                    f"each example, got a tensor of shape {list(first.shape)} for one example",
                    where=self._name,
                    cure='Return one value for each example (for a loss, reduction="none")',
                )
            out = torch.cat(column)
            context.axes.set(out, 0)
            outputs.append(out)
        return tree_unflatten(outputs, specs[0])

    def _compare(self, whole: Any, result: Any, narrow: bool) -> bool:
        """Refuse an operator that gives another output for a batch; return whether all of it could be compared.

        No gradient rests on this: called example by example, the operator cannot mix them. But what is trained would
        not be what the model computes elsewhere.
        """
        is_finite = True
        for batch, joined in zip(tree_leaves(whole), tree_leaves(result), strict=True):
            if not isinstance(joined, Tensor) or not joined.is_floating_point():
                continue
            is_finite &= bool(torch.isfinite(joined).all())
            if batch.shape != joined.shape or not _close(batch, joined, narrow):
                raise CrossSampleLeakError(
                    "a registered operator gave another output for the batch than for its examples one at a time, so "
                    "it mixes examples or draws random numbers",
                    where=self._name,
                    cure="Move what spans the batch (statistics, a mean, dropout) out of the operator",
                )
        return is_finite


def _rows(value: Tensor, example: int, size: int) -> Tensor:
    """Return the rows of one of `size` examples, each of which has equally many of them."""
    count = value.shape[0] // size
    return value.narrow(0, example * count, count)


def _close(batch: Tensor, joined: Tensor, narrow: bool) -> bool:
    tolerance = CLOSE_IN_16_BITS if narrow else CLOSE.get(joined.dtype, CLOSE_IN_16_BITS)
    values = joined.detach()
    largest = float(values.nan_to_num(0, 0, 0).abs().amax()) if values.numel() else 0.0
    return torch.allclose(batch.detach(), values, rtol=tolerance, atol=tolerance * largest, equal_nan=True)
