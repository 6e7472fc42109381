"""What runs in a loop's backward is run again with what it reads, and gradients that nothing explains are said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from programs import OUTPUT, TARGETS, B
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.backward_watch import OTHER_GRADIENTS
from hushgrad.guards.probing.loss_examination import require_separate_program
from hushgrad.guards.probing.loss_trace import LossTrace
from hushgrad.torch_internals import TorchDispatchMode

Loss = Callable[[Tensor, Tensor], Tensor]


def ce(output: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(output, targets, reduction="none")


def factor_of(output: Tensor) -> Tensor:
    return 1 / output.detach().abs().max()


class Late(torch.autograd.Function):
    """Scales gradients by what is put on its `ctx`."""

    last: Any = None

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        Late.last, ctx.factor = ctx, 1.0
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * ctx.factor  # type: ignore[no-any-return]


def examined(loss: Loss, *, around: Any = None) -> str:
    """Return why the program of a loop that runs this backward could not be told; "" where it could."""
    item = (torch.zeros(B, 2), TARGETS.clone())
    trace = LossTrace(B, item, {})
    try:
        trace.given(((item[0],), {}), ())
        output = OUTPUT.clone().requires_grad_() * 1
        trace.returned(output)
        losses = loss(output, item[1])
        trace.loss(losses, is_rows=True)
        runs = output.register_hook(lambda _: trace.runs([losses]))  # type: ignore[no-untyped-call]
        with around or torch.enable_grad():
            losses.backward(torch.full((B,), 1 / B))  # type: ignore[no-untyped-call]
        runs.remove()
    finally:
        trace.end_runs()
        trace.take_up()
    try:
        return require_separate_program(trace.program, "mean", None) or trace.backward.untold(trace.program)
    finally:
        trace.end()


def tensor_hook(scale: Any) -> Loss:
    def loss(output: Tensor, targets: Tensor) -> Tensor:
        factor = scale(output)
        output.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]
        return ce(output, targets)

    return loss


def node_hook(scale: Any) -> Loss:
    def loss(output: Tensor, targets: Tensor) -> Tensor:
        factor, found = scale(output), ce(output, targets)
        node: Any = found.grad_fn
        node.next_functions[0][0].register_prehook(lambda gradients: (gradients[0] * factor,))
        return found

    return loss


def unpacking(scale: Any) -> Loss:
    def loss(output: Tensor, targets: Tensor) -> Tensor:
        held = [1.0]
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor * held[0]):
            output = output * torch.ones(3)
        held[0] = scale(output)
        return ce(output, targets)

    return loss


WAYS = {"a hook on a tensor": tensor_hook, "a hook on a node": node_hook, "saved tensors": unpacking}


@pytest.mark.parametrize("way", WAYS)
def test_what_reads_the_batch_in_a_backward_is_refused_and_what_reads_a_constant_is_not(way: str) -> None:
    assert examined(WAYS[way](lambda output: torch.tensor(0.5))) == ""
    with pytest.raises(CrossSampleLeakError):
        examined(WAYS[way](factor_of))


def test_a_factor_for_each_example_is_its_own() -> None:
    assert examined(tensor_hook(lambda output: output.detach()[:, :1].sigmoid())) == ""


def again(scale: Any) -> Loss:
    def loss(output: Tensor, targets: Tensor) -> Tensor:
        held = [torch.ones(())]
        made = checkpoint(lambda values: torch.sin(values) * held[0], output, use_reentrant=False)
        held[0] = scale(output)
        return ce(made, targets)

    return loss


def on_ctx(scale: Any) -> Loss:
    def loss(output: Tensor, targets: Tensor) -> Tensor:
        made = Late.apply(output)  # type: ignore[no-untyped-call]
        Late.last.factor = scale(output)
        return ce(made, targets)

    return loss


@pytest.mark.parametrize("way", [again, on_ctx], ids=["a block that is computed again", "a value put on ctx"])
def test_gradients_that_the_calls_do_not_explain_are_said(way: Any) -> None:
    assert examined(way(lambda output: torch.tensor(1.0))) == ""
    assert examined(way(factor_of)) == OTHER_GRADIENTS


class Scaling(TorchDispatchMode):
    """A mode of the user's."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_a_mode_of_the_loops_own_around_the_backward_is_said_and_torchs_own_are_not() -> None:
    assert "Scaling" in examined(ce, around=Scaling())
    assert examined(ce, around=FlopCounterMode(display=False)) == ""


def test_what_packs_and_draws_honestly_is_told() -> None:
    def packed(output: Tensor, targets: Tensor) -> Tensor:
        with save_on_cpu():
            return ce(output.sin(), targets)

    assert examined(packed) == ""
    assert examined(lambda o, y: ce(F.dropout(o, 0.5), y)) == ""


def test_nothing_is_left_on_the_graph_afterwards() -> None:
    trace = LossTrace(B, (TARGETS,), {})
    output = OUTPUT.clone().requires_grad_() * 1
    trace.returned(output)
    trace.end()
    node: Any = output.grad_fn
    handle = node.register_prehook(lambda gradients: None)
    assert len(handle.hooks_dict_ref()) == 1
