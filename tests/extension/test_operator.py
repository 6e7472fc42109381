"""An operator of somebody else's in one file: refused as it is, exact once registered, found where it mixes."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad
from hushgrad import DPSGD, FlatClipping, PoissonSampling, Session, privatize
from hushgrad.errors import (
    CrossSampleLeakError,
    HushgradError,
    InvalidArgumentError,
    PrivacyUnitError,
    StrayGradientError,
    UncoveredParameterUseError,
)
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time

B, D = 6, 5
C = 0.7
NAME = f"{__name__}.ScaleAndShift"


class ScaleAndShift(torch.autograd.Function):
    """A fused scale and shift, whose backward sums over the batch as kernels do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight + bias

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        x, weight = ctx.saved_tensors
        rows = tuple(range(gradient.ndim - 1))
        return gradient * weight, (gradient * x).sum(rows), gradient.sum(rows)


class LinearGelu(torch.autograd.Function):
    """A fused linear layer and GELU that keeps nothing but its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.gelu(x @ weight.T)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        with torch.enable_grad():
            hidden = (x @ weight.T).requires_grad_()
            (gradient,) = torch.autograd.grad(F.gelu(hidden), hidden, gradient)
        return gradient @ weight, gradient.flatten(0, -2).T @ x.flatten(0, -2)


class BackwardMixes(ScaleAndShift):
    """Forward is right; backward hands each example a part of the others' gradients."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return ScaleAndShift.backward(ctx, gradient + gradient.sum(0, keepdim=True))


class ForwardMixes(ScaleAndShift):
    """The planted bug: a statistic of the batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ScaleAndShift.forward(ctx, x - 0.1 * x.mean(0, keepdim=True), weight, bias)


scale_and_shift = hushgrad.register_operator(ScaleAndShift)
linear_gelu = hushgrad.register_operator(LinearGelu)


class Fused(nn.Module):
    """A small model with the operators between torch's own layers."""

    def __init__(self, scale: Callable[..., Tensor], act: Callable[..., Tensor] = linear_gelu) -> None:
        super().__init__()
        self.scale, self.act = scale, act
        self.first, self.last = nn.Linear(D, D), nn.Linear(D, 3)
        self.weight, self.bias = nn.Parameter(torch.rand(D) + 0.5), nn.Parameter(torch.randn(D))
        self.inner = nn.Parameter(torch.randn(D, D))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.scale(self.first(x).tanh(), self.weight, self.bias)
        return self.last(self.act(hidden, self.inner))


def session_of(model: nn.Module) -> tuple[Session, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    mechanism = DPSGD(
        noise_multiplier=0, clipping=FlatClipping(C), sampling=PoissonSampling(0.5), expected_batch_size=B
    )
    return privatize(model, optimizer, mechanism), optimizer


def losses(out: Tensor) -> Tensor:
    return out.flatten(1).sin().sum(1)


def step(model: nn.Module, x: Tensor) -> Session:
    """Train for one step, clipped and without noise; the session is still open."""
    session, optimizer = session_of(model)
    one_step(session, optimizer, model, x)
    return session


def one_step(session: Session, optimizer: torch.optim.Optimizer, model: nn.Module, x: Tensor) -> None:
    session.backward(losses(model(x)))
    optimizer.step()


def refused(error: type[HushgradError], match: str, model: nn.Module, x: Tensor) -> None:
    session, optimizer = session_of(model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    try:
        with pytest.raises(error, match=match):
            one_step(session, optimizer, model, x)
    finally:
        session.close()
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def assert_exact(model: nn.Module, x: Tensor) -> None:
    """Compare the update of one step with the clipped sum of gradients of one example at a time."""
    alone = copy.deepcopy(model)
    runs = [lambda i=i: losses(alone(x[i : i + 1])).sum() for i in range(x.shape[0])]
    wanted = clipped_sum_of(one_at_a_time(alone, runs), FlatClipping(C))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    step(model, x).close()
    for name, parameter in model.named_parameters():
        found = (before[name] - parameter.detach()) * B
        torch.testing.assert_close(found, wanted[name], rtol=1e-5, atol=1e-5)


# Without registration ------------------------------------------------------------------------------------------------


class Kernel(ScaleAndShift):
    """One that computes out of torch's sight, as kernels do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.from_numpy(x.numpy() * weight.numpy() + bias.numpy())


def test_a_custom_function_is_refused_and_the_message_names_the_way_on() -> None:
    refused(UncoveredParameterUseError, r"hushgrad\.register_operator", Fused(Kernel.apply), torch.randn(B, D))


def test_a_custom_function_made_of_torch_operators_is_refused_with_the_same_way_on() -> None:
    refused(StrayGradientError, r"hushgrad\.register_operator", Fused(ScaleAndShift.apply), torch.randn(B, D))


class Alone(nn.Module):
    """A model that is one operator."""

    def __init__(self, operator: Callable[..., Tensor]) -> None:
        super().__init__()
        self.operator = operator
        self.weight, self.bias = nn.Parameter(torch.rand(D) + 0.5), nn.Parameter(torch.randn(D))

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(x, self.weight, self.bias)


def test_a_custom_function_that_ends_the_model_is_refused_with_the_same_way_on() -> None:
    refused(StrayGradientError, r"hushgrad\.register_operator", Alone(ScaleAndShift.apply), torch.randn(B, D))


def test_a_custom_function_of_data_alone_is_refused_with_the_same_way_on() -> None:
    model = Fused(lambda x, weight, bias: Kernel.apply(x, torch.ones(D), torch.zeros(D)) * weight + bias)
    refused(PrivacyUnitError, r"hushgrad\.register_operator", model, torch.randn(B, D))


# With it -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(B, D), (B, 3, D), (1, D)])
def test_a_registered_operator_trains_exactly(shape: tuple[int, ...]) -> None:
    assert_exact(Fused(scale_and_shift), torch.randn(shape))


def test_a_registered_operator_that_is_the_whole_model_trains_exactly() -> None:
    assert_exact(Alone(scale_and_shift), torch.randn(B, D))


def test_a_registered_operator_takes_derived_parameters_and_keywords() -> None:
    model = Fused(lambda x, weight, bias: plain(x=x, weight=weight.exp(), bias=2 * bias))
    assert_exact(model, torch.randn(B, D))


def test_a_registered_operator_of_data_alone_trains_exactly() -> None:
    model = Fused(lambda x, weight, bias: scale_and_shift(x, torch.ones(D), torch.zeros(D)) * weight + bias)
    assert_exact(model, torch.randn(B, D))


def test_positions_that_are_folded_into_the_batch_stay_with_their_example() -> None:
    model = Fused(lambda x, *own: scale_and_shift(x.flatten(0, 1), *own).unflatten(0, (-1, 3)))
    assert_exact(model, torch.randn(B, 3, D))


def test_what_a_registered_operator_returns_can_be_changed_in_place() -> None:
    assert_exact(Fused(lambda *args: scale_and_shift(*args).mul_(2).relu_()), torch.randn(B, D))


@hushgrad.register_operator
def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A registered function keeps its name and its words."""
    out: Tensor = ScaleAndShift.apply(x, weight, bias)
    return out


@hushgrad.register_operator
def two_outputs(x: Tensor, weight: Tensor) -> tuple[Tensor, None, Tensor]:
    return x * weight, None, (x * weight).sum(-1).detach()


def test_a_registered_operator_may_return_several_tensors() -> None:
    def scale(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out, nothing, aside = two_outputs(x, weight)
        assert nothing is None
        return out + aside.unsqueeze(-1) + bias

    assert_exact(Fused(scale), torch.randn(B, D))


def test_a_registered_function_keeps_its_name_and_runs_as_it_is_elsewhere() -> None:
    x, weight, bias = torch.randn(B, D), torch.randn(D), torch.randn(D)
    assert (plain.__name__, plain.__doc__) == ("plain", "A registered function keeps its name and its words.")
    torch.testing.assert_close(plain(x, weight, bias), x * weight + bias)
    torch.testing.assert_close(scale_and_shift(x, weight, bias), x * weight + bias)


def test_each_call_with_gradients_holds_one_example() -> None:
    """Guarantee: what the loss gets from a registered operator comes from calls that held one example each."""
    seen: list[tuple[int, bool]] = []

    @hushgrad.register_operator
    def looks(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        seen.append((x.shape[0], torch.is_grad_enabled()))
        return x * weight + bias

    step(Fused(looks), torch.randn(B, D)).close()
    assert {rows for rows, with_gradients in seen if with_gradients} == {1}


def test_a_backward_that_mixes_examples_has_none_to_mix() -> None:
    """Called one at a time it gives what it gives for that example alone, whatever it does with a batch."""
    assert_exact(Fused(hushgrad.register_operator(BackwardMixes)), torch.randn(B, D))


def test_autocast_is_no_reason_to_refuse() -> None:
    model = Fused(plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step(model, torch.randn(B, D)).close()


def test_an_example_that_is_not_finite_reaches_no_other() -> None:
    x = torch.randn(B, D)
    x[2, 1] = torch.nan
    assert_exact(Fused(scale_and_shift), x)


def test_a_part_without_gradients_is_followed_too() -> None:
    def scale(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.no_grad():
            aside = scale_and_shift(x, weight, bias)
        return scale_and_shift(x, weight, bias) + aside

    assert_exact(Fused(scale), torch.randn(B, D))


@pytest.mark.slow
def test_a_training_with_a_registered_operator_is_verified() -> None:
    dataset = TensorDataset(torch.randn(40, D), torch.arange(40) % 3)
    loader = DataLoader(dataset, batch_size=8)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(C), sampling=PoissonSampling(0.2), expected_batch_size=8
    )
    verdict = hushgrad.verify(Fused(scale_and_shift), loader, nn.CrossEntropyLoss(), mechanism)
    assert verdict.passed, str(verdict)


# Planted bugs --------------------------------------------------------------------------------------------------------


def test_a_registered_operator_that_mixes_examples_is_refused() -> None:
    mixing = hushgrad.register_operator(ForwardMixes)
    for _ in range(2):  # what was refused is not taken for examined
        refused(CrossSampleLeakError, "mixes examples", Fused(mixing), torch.randn(B, D))


def test_a_mix_that_begins_later_is_found_by_a_look_in_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    mixes = False

    @hushgrad.register_operator
    def late(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (x - x.mean(0, keepdim=True) if mixes else x) * weight + bias

    model = Fused(late)
    session = step(model, torch.randn(B, D))
    mixes = True
    monkeypatch.setattr(secrets, "randbelow", lambda below: 1)
    model(torch.randn(B, D))
    monkeypatch.setattr(secrets, "randbelow", lambda below: 0)
    with pytest.raises(CrossSampleLeakError, match="mixes examples"):
        model(torch.randn(B, D))
    session.close()


def test_a_registered_operator_that_draws_random_numbers_is_refused() -> None:
    drops = hushgrad.register_operator(lambda x, weight: F.dropout(x, 0.5, True) * weight)
    model = Fused(lambda x, weight, bias: drops(x, weight) + bias)
    refused(CrossSampleLeakError, "random numbers", model, torch.randn(B, D))


def test_mixing_without_gradients_is_refused() -> None:
    mixing = hushgrad.register_operator(lambda x: x - x.mean(0, keepdim=True))

    def scale(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.no_grad():
            aside = mixing(x)
        return aside * weight + bias

    refused(CrossSampleLeakError, "mixes examples", Fused(scale), torch.randn(B, D))


def test_a_loss_that_sums_over_the_batch_is_refused() -> None:
    summed = hushgrad.register_operator(lambda x, weight: (x * weight).sum())
    model = Fused(lambda x, weight, bias: x + summed(x, weight) + bias)
    refused(CrossSampleLeakError, "reduction=", model, torch.randn(B, D))


def test_a_number_made_of_one_example_is_refused() -> None:
    numbers = hushgrad.register_operator(lambda x, weight: (x * weight, float(x.sum())))
    model = Fused(lambda x, weight, bias: numbers(x, weight)[0] + bias)
    refused(CrossSampleLeakError, "class float", model, torch.randn(B, D))


def test_a_registered_operator_that_changes_its_argument_is_refused() -> None:
    def doubled(x: Tensor, weight: Tensor) -> Tensor:
        with torch.no_grad():
            x.mul_(1)
        return x * weight

    changing = hushgrad.register_operator(doubled)
    model = Fused(lambda x, weight, bias: changing(x, weight) + bias)
    refused(UncoveredParameterUseError, "in place", model, torch.randn(B, D))


def test_a_batch_on_another_axis_is_refused() -> None:
    model = Fused(lambda x, weight, bias: scale_and_shift(x.transpose(0, 1), weight, bias).transpose(0, 1))
    refused(PrivacyUnitError, "axis 0", model, torch.randn(B, 3, D))


def test_examples_that_were_mixed_before_are_refused() -> None:
    model = Fused(lambda x, weight, bias: scale_and_shift(x - x.mean(0), weight, bias))
    refused(PrivacyUnitError, "since mean", model, torch.randn(B, D))


def test_data_that_is_no_argument_is_refused() -> None:
    held: list[Tensor] = []
    hidden = hushgrad.register_operator(lambda x: x * held[0].mean(0))
    of_nothing = hushgrad.register_operator(lambda constant: constant * held[0].mean(0))

    def scale(operator: Callable[..., Tensor], x: Tensor) -> Tensor:
        held[:] = [x]
        return operator(x)

    for run in (hidden, lambda x: x * of_nothing(torch.ones(D))):
        model = Fused(lambda x, weight, bias, run=run: scale(run, x) * weight + bias)
        refused(UncoveredParameterUseError, "not one of its arguments", model, torch.randn(B, D))


def test_an_argument_that_hides_tensors_is_refused() -> None:
    class Held:
        def __init__(self, x: Tensor) -> None:
            self.mean = x.mean(0)

    hidden = hushgrad.register_operator(lambda x, held: x * held.mean)
    model = Fused(lambda x, weight, bias: hidden(x, Held(x)) * weight + bias)
    refused(UncoveredParameterUseError, "class Held", model, torch.randn(B, D))


class Outer(torch.autograd.Function):
    """A weight from two factors, as low-rank adapters have it; its backward leaves torch, so no `vmap` can run it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(weight, bias)
        return weight.outer(bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = (value.detach().numpy() for value in ctx.saved_tensors)
        rows = gradient.detach().numpy()
        return torch.from_numpy(rows @ bias), torch.from_numpy(rows.T @ weight)


def test_a_registered_operator_of_parameters_alone_trains_exactly() -> None:
    doubled = hushgrad.register_operator(lambda weight: 2 * weight)
    assert_exact(Fused(lambda x, weight, bias: x * doubled(weight) + bias), torch.randn(B, D))
    outer = hushgrad.register_operator(Outer)
    assert_exact(Fused(lambda x, weight, bias: (x @ outer.apply(weight, bias)).tanh()), torch.randn(B, D))


def test_a_custom_function_of_parameters_alone_is_refused_with_the_line_that_registers_it() -> None:
    line = f"Say {__name__}.Outer = hushgrad.register_operator\\({__name__}.Outer\\)"
    refused(UncoveredParameterUseError, line, Fused(lambda x, w, b: x @ Outer.apply(w, b)), torch.randn(B, D))
    derived = Fused(lambda x, w, b: x @ Outer.apply(w * 2, b))
    refused(UncoveredParameterUseError, line, derived, torch.randn(B, D))


def test_a_custom_function_that_takes_a_derived_parameter_and_data_is_refused_with_its_line() -> None:
    line = f"Say {__name__}.ScaleAndShift = hushgrad.register_operator"
    model = Fused(lambda x, w, b: ScaleAndShift.apply(x, w * 2, b * 2))
    refused(UncoveredParameterUseError, line, model, torch.randn(B, D))


def test_a_registered_operator_of_parameters_that_takes_data_from_elsewhere_is_refused() -> None:
    held: list[Tensor] = []
    scaled = hushgrad.register_operator(lambda weight: weight * held[-1].mean(0))
    model = Fused(lambda x, weight, bias: held.append(x) or x * scaled(weight) + bias)
    refused(HushgradError, "not one of its arguments|mixes the examples", model, torch.randn(B, D))


def test_what_a_registered_operator_of_parameters_returns_must_meet_the_batch() -> None:
    squared = hushgrad.register_operator(lambda weight: weight.square())
    model = Fused(lambda x, weight, bias: squared(weight).expand(len(x), -1))
    refused(HushgradError, "DP30", model, torch.randn(B, D))


def test_a_registered_operator_of_constants_is_a_constant() -> None:
    table = hushgrad.register_operator(lambda constant: constant.cos())
    assert_exact(Fused(lambda x, weight, bias: x * table(torch.ones(D)) * weight + bias), torch.randn(B, D))


def test_a_parameter_that_is_no_argument_is_refused() -> None:
    kept = nn.Parameter(torch.randn(D))
    hidden = hushgrad.register_operator(lambda x: x * kept)
    model = Fused(lambda x, weight, bias: hidden(x) * weight + bias)
    model.kept = kept
    refused(UncoveredParameterUseError, "not one of its arguments", model, torch.randn(B, D))


# The register --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", [ScaleAndShift, scale_and_shift, plain])
def test_an_operator_that_is_registered_twice_is_refused(operator: Callable[..., Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="registered already"):
        hushgrad.register_operator(operator)


@pytest.mark.parametrize("operator", [F.linear, torch.add, F.prelu, F.batch_norm, torch.softmax])
def test_an_operator_of_torch_that_is_known_is_refused(operator: Callable[..., Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="knows this operator"):
        hushgrad.register_operator(operator)


@pytest.mark.parametrize("operator", [nn.Linear(2, 2), nn.Linear, 3, "linear"])
def test_what_is_no_operator_is_refused(operator: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="takes a function"):
        hushgrad.register_operator(operator)


def test_the_guarantee_names_the_operator_and_no_other_does() -> None:
    session = step(Fused(scale_and_shift, lambda x, weight: F.gelu(x @ weight.T)), torch.randn(B, D))
    told = [condition.sentence for condition in session.guarantee(1e-5).conditions if "operator" in condition.name]
    assert len(told) == 1
    assert NAME in told[0]
    session.close()
    assert NAME in str(session.guarantee(1e-5))
    other = step(nn.Linear(D, 3), torch.randn(B, D))
    assert "third-party operator" not in {condition.name for condition in other.guarantee(1e-5).conditions}
    other.close()
