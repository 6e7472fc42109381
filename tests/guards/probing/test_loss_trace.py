"""What a loop computes between an item and its loss is written down, and nothing else is."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from programs import OUTPUT, TARGETS, B, program, trace_of
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hushgrad.errors import UncoveredParameterUseError
from hushgrad.guards.probing.live_memory import UNSEEN_MEMORY
from hushgrad.guards.probing.loss_examination import require_separate_program
from hushgrad.guards.probing.loss_trace import LossTrace
from hushgrad.losses import PerExampleLoss
from hushgrad.torch_internals import top_mode


class Twice(torch.autograd.Function):
    """An operator of the loop's own."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values * 2

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Tensor:
        return gradients * 2


def names(found: Any) -> list[str]:
    return [call.name for call in found.calls]


def test_calls_on_values_of_the_batch_are_written_down_in_order_and_others_are_not() -> None:
    found = program(lambda o, y: (F.cross_entropy(o, y, reduction="none") * torch.ones(B).mul(2)).mean())
    assert names(found) == ["cross_entropy", "mul", "mean"]
    assert not found.hidden


def test_a_gradient_of_the_loops_own_that_losses_are_made_of_is_told_and_one_that_is_only_asked_for_is_not() -> None:
    def loss(output: Tensor, targets: Tensor, share: float) -> Tensor:
        own = torch.zeros((), requires_grad=True)
        (own * output.detach().square().mean()).backward()  # type: ignore[no-untyped-call]
        gradient = own.grad
        losses = F.cross_entropy(output, targets, reduction="none")
        return (losses * gradient if share else losses).mean()

    assert trace_of(lambda o, y: loss(o, y, 1.0), OUTPUT, TARGETS).program.hidden == UNSEEN_MEMORY
    assert not trace_of(lambda o, y: loss(o, y, 0.0), OUTPUT, TARGETS).program.hidden


def test_what_a_wrapped_criterion_calls_is_named_by_the_line_of_the_loop_that_calls_it() -> None:
    criterion = PerExampleLoss(nn.MSELoss(), loss_reduction="mean", batch_size=lambda: B)
    found = program(lambda o, y: criterion(o, o.detach() * y[:, None]))
    own = [call for call in found.calls if call.place.is_criterions]
    assert {"mse_loss", "reshape", "mean"} <= {call.name for call in own}
    assert {call.place[:2] for call in found.calls} == {("test_loss_trace.py", found.calls[0].place.line)}
    assert str(next(call for call in own if call.name == "reshape")).startswith("reshape of the criterion (test_loss_t")


def test_numbers_that_leave_torch_are_written_down() -> None:
    found = program(lambda o, y: o.square().mean() / float(o.std()))
    assert [call.name for call in found.calls if call.taken is not None] == ["float"]


@pytest.mark.parametrize(
    "read",
    [
        str,
        lambda y: f"{y}",
        lambda y: y.untyped_storage().tolist(),
        lambda y: y.data_ptr(),
        lambda y: np.from_dlpack(y).max(),
        lambda y: pickle.dumps(y),
        lambda y: suppressed(lambda: torch.zeros(1)[y]),
    ],
    ids=["text", "format", "storage", "address", "DLPack", "pickle", "a call that fails"],
)
def test_values_that_leave_as_texts_memory_or_failures_were_read(read: Any) -> None:
    def loss(output: Tensor, targets: Tensor) -> Tensor:
        read(targets)
        return F.cross_entropy(output, targets)

    assert trace_of(loss, OUTPUT, TARGETS).has_read


def test_shapes_types_and_new_values_of_the_batchs_shape_are_no_reading() -> None:
    def loss(output: Tensor, targets: Tensor) -> Tensor:
        assert output.shape[0] == len(targets) == targets.numel()
        assert (output.dtype, targets.device, output.dim()) == (torch.float32, torch.device("cpu"), 2)
        noisy = output + 0.1 * torch.randn_like(output) + torch.zeros_like(output)
        return F.cross_entropy(noisy, targets) * (1 - 0.1 * torch.ones_like(targets)).mean()

    trace = trace_of(loss, OUTPUT, TARGETS)
    assert not trace.has_read
    assert not trace.outside.has_come


def suppressed(call: Any) -> None:
    with contextlib.suppress(IndexError):
        call()


def test_an_autograd_function_of_the_loops_own_is_one_call() -> None:
    found = program(lambda o, y: Twice.apply(o).mean())  # type: ignore[no-untyped-call]
    assert names(found) == ["Twice", "mean"]
    assert not found.hidden


def test_what_is_not_seen_is_said() -> None:
    assert program(lambda o, y: torch.vmap(lambda row: row.sum())(o).mean()).hidden


def test_a_mode_lies_below_those_of_the_user_and_is_gone_afterwards() -> None:
    class Own(TorchFunctionMode):
        """A mode of the user's."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    before = top_mode()
    with Own() as own:
        trace = LossTrace(B, (torch.ones(B),), {})
        assert top_mode() is own
    assert LossTrace.here() == [trace]
    trace.end()
    assert top_mode() is before


def test_gradients_by_parameters_of_the_batch_that_are_not_there_are_refused_by_a_typed_error() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(UncoveredParameterUseError, match="gradients of trained parameters"):
        program(lambda o, y: torch.autograd.grad(o.sum(), [weight], retain_graph=True)[0])


@pytest.mark.parametrize(
    ("weight", "is_live"),
    [
        (lambda y: torch.zeros_like(y), False),
        (lambda y: torch.rand_like(y, dtype=torch.float32), False),
        (lambda y: torch.full_like(y, 2), False),
        (lambda y: torch.full_like(input=y, fill_value=2), False),
        (lambda y: torch.full_like(y, y.max()), True),
        (lambda y: torch.full_like(input=y, fill_value=y.max()), True),
        (lambda y: torch.randint_like(y, y.max() + 1), True),
        (lambda y: torch.full_like(y, int(y.sum()) * 1.37), True),
    ],
)
def test_what_has_the_batchs_shape_is_of_the_batch_where_a_value_or_a_number_of_it_goes_in(
    weight: Any, is_live: bool
) -> None:
    found = program(lambda o, y: F.cross_entropy(o, y) * weight(y).mul(3).sum())
    assert ("mul" in [call.name for call in found.calls[:-1]]) is is_live


def test_draws_by_a_generator_of_the_loops_own_are_run_again_from_where_it_stood() -> None:
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)

    def drawn(o: Tensor, y: Tensor) -> Tensor:
        return (F.cross_entropy(o, y, reduction="none") * torch.bernoulli(y / 3, generator=generator)).mean()

    assert require_separate_program(program(drawn), "mean", None) == ""


def test_a_transform_is_hidden_where_it_is_of_anything_of_the_batch_and_fails_nowhere() -> None:
    def squares(values: Tensor) -> Tensor:
        return torch.func.grad(lambda row: row.square().sum())(values)

    own = program(lambda o, y: (o * squares(o.detach())).sum(1).mean())
    assert own.hidden == "a transform of torch.func"
    constant = program(lambda o, y: (o * squares(torch.ones(3))).sum(1).mean())
    assert constant.hidden == ""
    rows = program(lambda o, y: (o * torch.func.vmap(torch.func.grad(lambda row: row.sum()))(o.detach())).mean())
    assert rows.hidden == "a transform of torch.func"
