"""The shape of a rule, and the one autograd function that runs all of them."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from hushgrad.capture.axes.batch_axes import BatchAxes
from hushgrad.capture.axes.owners import BatchLocation
from hushgrad.capture.leaves import TrackedTensor, distinct_parameters
from hushgrad.capture.uses import UsePool
from hushgrad.errors import PrivacyUnitError, UncoveredParameterUseError
from hushgrad.gradients.contribution import Contribution, accumulation_dtype, full_precision
from hushgrad.gradients.placement import part_here
from hushgrad.torch_internals import is_view, will_execute

Recorded = Sequence[tuple[TrackedTensor, Contribution]]
"""Contributions of a captured call to the per-example gradients of its leaves."""


class GraphAnchor:
    """A scalar that keeps the graph of captured operators alive without making the data require gradients.

    The first layer then has no input gradient to pay for. Whether the engine will reach the anchor tells whether a
    backward accumulates gradients into leaves (`loss.backward()`) or only asks for some inputs (`autograd.grad`).
    """

    def __init__(self) -> None:
        self.tensor = torch.zeros((), requires_grad=True)
        self._node = torch.autograd.graph.get_gradient_edge(self.tensor).node

    def is_accumulating(self) -> bool:
        """Return whether the backward that is running accumulates gradients."""
        return will_execute(self._node)


@dataclass
class ForwardContext:
    """What the operators of one forward share: its leaves, its batch axes, where uses go.

    `registered` takes the names of the operators of others that ran (`register_operator`). `hangs_hooks` is set where
    the forward hangs hooks on tensors or nodes, which see and change gradients. `hidden_line` is the cure for the last
    custom autograd function in which a parameter met data.
    """

    pool: UsePool
    anchor: GraphAnchor
    axes: BatchAxes
    leaves: dict[int, TrackedTensor]
    batch_size: int | None
    held: list[Tensor]
    registered: set[str] = field(default_factory=set)
    hangs_hooks: bool = False
    hidden_line: str = ""

    def leaf(self, value: Any) -> TrackedTensor | None:
        """Return the leaf that a tensor stands for, or None for any other value."""
        return self.leaves.get(id(value)) if isinstance(value, Tensor) else None

    def is_data(self, value: Any) -> bool:
        """Return whether a value is a tensor that descends from the batch."""
        return isinstance(value, Tensor) and self.axes.descends(value)

    @property
    def may_be_asked(self) -> bool:
        """Whether the backward that runs is `autograd.grad` of the loop's: not inside the forward, nor of a loss."""
        return not self.leaves and not self.anchor.is_accumulating()

    def ask(self, gradient: Tensor) -> None:
        """A gradient by an input was computed so that it can be differentiated again; losses may be made of it.

        Raises:
            UncoveredParameterUseError: the model is split over processes.
        """
        pool, anchor = self.pool, self.anchor
        if pool.is_split:
            raise UncoveredParameterUseError(
                "a gradient is to be differentiated again (a gradient penalty, say), and the model lies on several "
                "processes, none of which has all of it by then",
                where="create_graph=True",
                cure="Leave the penalty out, or train the model whole, in DistributedDataParallel",
            )
        pool.asked.append(gradient)

        def hook(_: Tensor) -> None:
            pool.is_penalized |= anchor.is_accumulating()

        if gradient.requires_grad:
            gradient.register_hook(hook)  # type: ignore[no-untyped-call]

    def check_batch(self, where: str, axes: Sequence[BatchLocation]) -> None:
        """Refuse a backward whose examples cannot be told apart, or whose forward saw another number of examples."""
        if None in axes:
            raise PrivacyUnitError(
                f"the examples of the batch cannot be told apart in what it was used on, since "
                f"{self.axes.lost_by or 'the forward began'}",
                where=where,
                cure=self.axes.cure,
            )
        if self.pool.batch_size is not None and self.batch_size != self.pool.batch_size:
            views, rest = divmod(self.batch_size or 0, self.pool.batch_size or 1)
            raise PrivacyUnitError(
                f"saw {self.batch_size} rows for {self.pool.batch_size} examples",
                where=where,
                cure=(
                    "Give the model one row for each example, with the batch on the first axis of its inputs"
                    if rest or views < 2
                    else f"Where these are {views} views of each example, call the model once for each view, or give "
                    f"it [B, {views}, ...] and fold the views inside its forward"
                )
                + ". Of rows that the loop makes itself (a generator's fakes) make one for each example: "
                "torch.randn(len(x), ...)",
            )

    def record(
        self, where: str, locations: Sequence[BatchLocation], uses: Callable[..., Recorded], *arguments: Any
    ) -> None:
        """Record the uses of one captured call, from inside its backward. Every autograd function of ours does it here.

        Nothing is recorded in a backward that only asks for gradients by some inputs (`autograd.grad`).

        Args:
            where: what the call is called in messages.
            locations: where the batch lies in the outputs whose gradients came.
            uses: makes the contributions, to parameters or to tensors derived from some.
            arguments: what `uses` is called with.

        Raises:
            PrivacyUnitError: the examples cannot be told apart, or are others than those of the physical batch.
        """
        if not self.anchor.is_accumulating():
            return
        self.check_batch(where, locations)
        conversions = self.axes.conversions
        is_cut = conversions is not None and conversions.has_row
        names = set()
        for leaf, contribution in uses(*arguments):
            for name, part in leaf.to_parameters(contribution):
                names.add(name)
                self.pool.add(name, _part_here(leaf, name, part) if is_cut else part)
        self.pool.call_ended(names)

    def announce(self, leaves: Iterable[TrackedTensor | None], tensors: Iterable[Tensor | None]) -> None:
        """A captured call runs in a forward: its backward will record uses of the leaves, made of such tensors.

        Of a parameter the tensors are held, or its gradients for each example, whichever is less.
        """
        pool = self.pool
        if pool.expected is None:
            return
        parameters = distinct_parameters([leaf for leaf in leaves if leaf is not None])
        values = sum(leaf.value.numel() * accumulation_dtype(leaf.value.dtype).itemsize for leaf in parameters)
        held = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        pool.announce([leaf.name for leaf in parameters], min(held, (self.batch_size or 1) * values))


def _part_here(leaf: TrackedTensor, name: str, contribution: Contribution) -> Contribution:
    """Return the part of a contribution that this process has of a tensor parallel model."""
    [value] = [parameter.value for parameter in leaf.parameters() if parameter.name == name]
    return part_here(value, contribution)


class Operator(ABC):
    """One captured call: static facts as fields, tensors as arguments.

    `autocasts` says whether autocast runs the operator in its 16-bit dtype; `shows_leaf` whether the result is a view
    of a leaf's own memory.
    """

    name: str
    axis: BatchLocation
    autocasts: ClassVar[bool] = False
    shows_leaf: ClassVar[bool] = False

    @property
    def leaves(self) -> list[TrackedTensor]:
        """The leaves among its fields."""
        return [value for value in vars(self).values() if isinstance(value, TrackedTensor)]

    @abstractmethod
    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return the ordinary result and the tensors that backward needs."""

    @abstractmethod
    def input_gradients(
        self, saved: tuple[Tensor | None, ...], gradient: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """Return the gradients of `inputs`, None where not needed."""

    def input_gradient_again(
        self, context: ForwardContext, saved: tuple[Tensor | None, ...], gradient: Tensor
    ) -> Tensor | None:
        """Return the gradient of the first input as a captured call, which can be differentiated and records its use.

        None where the operator has no such form. The gradient of the input is itself an operator on data and on the
        same leaves (a gradient penalty differentiates it): of `x Wᵀ` it is `g W`.
        """
        return None

    @abstractmethod
    def record(self, pool: UsePool, saved: tuple[Tensor | None, ...], gradient: Tensor) -> Recorded:
        """Return the contributions of this call to the per-example gradients of its leaves."""


Backward = Callable[..., tuple[Any, ...]]


def first_order_only(backward: Backward) -> Backward:
    """Run a backward without a graph, and refuse to differentiate what it returns.

    torch's `once_differentiable` lets outputs pass as constants when the incoming gradient is one, which would drop a
    gradient penalty silently.
    """

    @functools.wraps(backward)
    def run(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        with torch.no_grad(), full_precision():
            outputs = backward(ctx, *gradients)
        if not torch.is_grad_enabled() or all(out is None for out in outputs):
            return outputs
        found = [out.detach().requires_grad_() for out in outputs if out is not None]
        marked = iter(_FirstOrder.apply(*found))  # type: ignore[no-untyped-call]
        return tuple(None if out is None else next(marked) for out in outputs)

    return run


class _FirstOrder(torch.autograd.Function):
    """Hands on gradients that must not be differentiated again."""

    @staticmethod
    def forward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradient.view_as(gradient) for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        raise UncoveredParameterUseError(
            "the gradient of a gradient through a private model (a gradient penalty, say) has no per-example form here",
            where="create_graph=True",
            cure="Ask for it in the loop, by torch.autograd.grad(out.sum(), x, create_graph=True) after the forward, "
            "of a model whose parameters are those of linear layers, convolutions, layer and group normalisation, or "
            "meet data elementwise; freeze the parameters of other layers (requires_grad_(False)). Or leave out the "
            "penalty",
        )


class _Captured(torch.autograd.Function):
    """Runs an operator's ordinary forward; in backward records the use and forms no parameter gradient."""

    @staticmethod
    def forward(
        ctx: Any, operator: Operator, context: ForwardContext, anchor: Tensor, *inputs: Tensor | None
    ) -> Tensor:
        output, saved = operator.forward(*inputs)
        if is_view(output) and not operator.shows_leaf:
            output = output.data  # the only one to hold its memory; as a view it could not be changed in place
        ctx.operator, ctx.context = operator, context
        ctx.save_for_backward(*saved)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled() and ctx.context.may_be_asked and any(ctx.needs_input_grad[3:]):
            found = ctx.operator.input_gradient_again(ctx.context, ctx.saved_tensors, gradient)
            if found is not None:
                ctx.context.ask(found)
                return (None, None, None, found, *(None for _ in ctx.needs_input_grad[4:]))
        return _Captured._once(ctx, gradient)

    @staticmethod
    @first_order_only
    def _once(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        operator, context = ctx.operator, ctx.context
        saved = ctx.saved_tensors
        context.record(operator.name, [operator.axis], operator.record, context.pool, saved, gradient)
        return (None, None, None, *operator.input_gradients(saved, gradient, ctx.needs_input_grad[3:]))


def capture(operator: Operator, context: ForwardContext, *inputs: Tensor | None) -> Tensor:
    """Run an operator so that its backward records the use of its leaves."""
    given = in_autocast_dtype(inputs) if operator.autocasts else inputs
    output: Tensor = _Captured.apply(operator, context, context.anchor.tensor, *given)  # type: ignore[no-untyped-call]
    if context.pool.expected is not None:
        leaves = operator.leaves
        data = [value for value in inputs if not any(value is leaf.value for leaf in leaves)]
        context.announce(leaves, (output, *data))
    return output


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """Return the dtype of the autocast that is on for the tensor's device, or None."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def in_autocast_dtype(inputs: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the tensors as autocast would hand them to an operator that it runs in 16 bits.

    Cast here, what is kept for the backward has one dtype, and the gradient of the data is cast back by autograd.
    """
    dtype = autocast_dtype(next(value for value in inputs if value is not None))
    if dtype is None:
        return list(inputs)
    return [
        value.to(dtype) if value is not None and value.is_floating_point() and value.dtype != torch.float64 else value
        for value in inputs
    ]


Rule = Callable[[ForwardContext, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""A rule runs one call that uses a leaf, or returns NotImplemented when the call is not of the form it knows."""

Rules = Mapping[Callable[..., Any], Rule]

Composite = Rule
"""A rule of an operator made of others; it runs with the mode on, so that its parts are captured."""
