"""Programs that are refused: by a typed error, with nothing left behind, and training goes on exactly without them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from exact_training import (
    C,
    Net,
    Training,
    batch,
    losses,
    nothing_left,
    richer_net,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import (
    CrossSampleLeakError,
    HushgradError,
    PrivacyUnitError,
    StrayGradientError,
    UncoveredParameterUseError,
    UnsupportedModelError,
)
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time


def _forward_mode(model: nn.Module, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return losses(model(forward_ad.make_dual(x, x)))


IN_THE_LOOP: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "vmap": lambda model, x: losses(torch.func.vmap(model)(x)),
    "grad": lambda model, x: torch.func.grad(lambda x: losses(model(x)).sum())(x).sum(1),
    "jvp": lambda model, x: losses(torch.func.jvp(model, (x,), (x,))[0]),
    "jacrev": lambda model, x: torch.func.jacrev(model)(x).sum((0, 1, 3)),
    "vmap of grad": lambda model, x: torch.func.vmap(torch.func.grad(lambda row: model(row).sum()))(x).sum(1),
    "forward-mode differentiation": _forward_mode,
}


@pytest.mark.parametrize("name", IN_THE_LOOP)
def test_a_program_of_the_loop_is_refused_by_a_typed_error(name: str) -> None:
    training = Training()
    training.require_exact_step()
    with nothing_left(), pytest.raises(UncoveredParameterUseError):
        training.session.backward(IN_THE_LOOP[name](training.model, batch()))
    training.session.discard()
    training.require_exact_step()


def test_a_copy_of_the_model_may_be_transformed() -> None:
    training = Training()
    with nothing_left():
        rows = torch.func.vmap(copy.deepcopy(training.model))(batch())
    torch.testing.assert_close(rows, training.model(batch()))
    training.require_exact_step()


def test_a_model_whose_parameters_were_replaced_may_be_transformed() -> None:
    training = Training()
    frozen = {name: parameter.detach() for name, parameter in training.model.named_parameters()}
    with nothing_left():
        rows = torch.func.vmap(lambda x: torch.func.functional_call(training.model, frozen, (x,)))(batch())
    torch.testing.assert_close(rows, training.model(batch()))
    training.require_exact_step()


def test_a_backward_between_two_batches_is_told_of_pauses() -> None:
    training = Training()
    training.require_exact_step()
    with nothing_left(), pytest.raises(PrivacyUnitError, match=r"session\.paused\(\)"):
        losses(training.model(batch())).sum().backward()
    with training.session.paused():
        losses(training.model(batch().requires_grad_())).sum().backward()
    training.require_exact_step()


class Times(torch.autograd.Function):
    """A custom function of a parameter, which keeps a name of its own on its node."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Tensor) -> Tensor:
        ctx.save_for_backward(x, p)
        ctx.name = "times"
        return x * p

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, p = ctx.saved_tensors
        return gradient * p, (gradient * x).sum(0)


def _inner_step(m: Net, h: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(m.c(h).square().sum(), m.c.weight)
    return F.linear(h, m.c.weight - 0.1 * gradient, m.c.bias)


def _penalty_inside(m: Net, h: Tensor) -> Tensor:
    x = h.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(m.c(x).square().sum(), x, create_graph=True)
    return h + gradient


def _dual_inside(m: Net, h: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(m.c(forward_ad.make_dual(h, h))).tangent


def _multi_view(m: Net, h: Tensor) -> Tensor:
    one, two = m.c(h).chunk(2, 1)
    return torch.cat([one.relu_(), two], 1)


def _view_of_a_generic_call(m: Net, h: Tensor) -> Tensor:
    return torch.einsum("bi,ij->bj", h, m.c.weight).relu_()


IN_THE_FORWARD: dict[str, tuple[Callable[[Net, Tensor], Tensor], type[HushgradError]]] = {
    "a custom function": (lambda m, h: Times.apply(h, m.p), StrayGradientError),
    "a custom function of a derived parameter": (lambda m, h: Times.apply(h, m.p * 2), UncoveredParameterUseError),
    "an inner gradient step": (_inner_step, UncoveredParameterUseError),
    "a gradient penalty": (_penalty_inside, HushgradError),
    "vmap": (lambda m, h: torch.func.vmap(m.c)(h), UncoveredParameterUseError),
    "vmap of a function": (lambda m, h: torch.func.vmap(lambda row: row * m.p)(h), UncoveredParameterUseError),
    "jvp": (lambda m, h: torch.func.jvp(m.c, (h,), (h,))[1], UncoveredParameterUseError),
    "forward-mode differentiation": (_dual_inside, UncoveredParameterUseError),
    "one of several views changed in place": (_multi_view, UncoveredParameterUseError),
    "a part without parameters in TorchScript": (lambda m, h: m.script(h), PrivacyUnitError),
    "squeeze_": (lambda m, h: m.c(h.unsqueeze(1)).squeeze_(1), PrivacyUnitError),
    "the mean of the batch": (lambda m, h: h - h.mean(0), PrivacyUnitError),
}


@pytest.mark.parametrize("name", IN_THE_FORWARD)
def test_a_program_of_the_forward_is_refused_by_a_typed_error(name: str) -> None:
    between, kind = IN_THE_FORWARD[name]
    training = Training(richer_net(between))
    with nothing_left(), pytest.raises(kind):
        training.step(batch())
    training.optimizer.zero_grad()
    training.session.discard()
    training.model.between = []
    training.require_exact_step()


EXACT: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "relu_ of a product over positions": lambda m, h: m.c(h.unsqueeze(1)).relu_().squeeze(1),
    "squeeze_ before a layer": lambda m, h: m.c(h).unsqueeze_(1).squeeze(1),
    "transpose_ and back": lambda m, h: m.c(h).transpose_(0, 1).transpose_(1, 0) * m.p,
    "swapaxes_ of positions": lambda m, h: m.c(h).view(-1, 2, 3).swapaxes_(1, 2).flatten(1) * m.p,
    "unsqueeze_ in front and back": lambda m, h: m.c(h).unsqueeze_(0).movedim(1, 0).flatten(1) * m.p,
    "masked_fill_ on a slice": lambda m, h: (h := m.c(h), h[:, :2].masked_fill_(h[:, :2] > 0, 0.0))[0],
    "masked_fill_ on a slice over positions": lambda m, h: (
        h := m.c(h.unsqueeze(1)),
        h[:, :, :2].masked_fill_(h[:, :, :2] > 0, 0.0),
    )[0].squeeze(1),
    "mul_ of looked-up rows": lambda m, h: h + m.e((h > 0).long()).mul_(2.0).sum(1),
}


@pytest.mark.parametrize("name", EXACT)
def test_what_ordinary_layers_allow_in_place_is_exact(name: str) -> None:
    model = richer_net(EXACT[name])
    model.e = nn.Embedding(2, 6).double()
    with nothing_left():
        Training(model).require_exact_step()


@pytest.mark.parametrize(
    ("part", "named"),
    [
        (lambda layer: torch.jit.trace(layer, torch.randn(2, 4)), "part"),
        (lambda layer: torch.jit.script(layer), "part"),
        (lambda layer: nn.Sequential(nn.Tanh(), torch.jit.script(nn.Sequential(layer))), r"part\.1"),
    ],
    ids=["traced", "scripted", "nested"],
)
def test_a_part_in_torchscript_with_trainable_parameters_is_refused_at_set_up(part: Any, named: str) -> None:
    model = nn.Sequential()
    model.add_module("part", part(nn.Linear(4, 6)))
    model.add_module("head", nn.Linear(6, 3))
    with nothing_left(), pytest.raises(UnsupportedModelError, match=rf"{named}: a scripted or traced part"):
        Training(model)
    whole = torch.jit.trace(nn.Linear(4, 3), torch.randn(2, 4))
    with nothing_left(), pytest.raises(UnsupportedModelError, match="the model itself: a scripted or traced part"):
        Training(whole)


@pytest.mark.parametrize("between", [False, True])
def test_a_parameter_that_is_frozen_for_a_while_is_no_leak(between: bool) -> None:
    data = TensorDataset(torch.stack([batch(seed)[0] for seed in range(8)]))
    model = Net()
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=DataLoader(data, batch_size=8),
        noise_multiplier=0.0,
        max_grad_norm=C,
        poisson_sampling=False,
    )
    before = copy.deepcopy(model)
    for (x,) in loader:
        model.b.bias.requires_grad_(between)
        loss = losses(model(x)).mean()
        loss.backward()
        model.b.bias.requires_grad_(False)
        optimizer.step()
    before.b.bias.requires_grad_(between)
    runs = [lambda i=i: losses(before(data.tensors[0][i : i + 1])).sum() for i in range(8)]
    expected = clipped_sum_of(one_at_a_time(before, runs), FlatClipping(C))
    for name, parameter in before.named_parameters():
        found = dict(model.named_parameters())[name]
        update = torch.zeros_like(parameter) if name == "b.bias" else expected[name] / 8
        torch.testing.assert_close(parameter - found, update, rtol=1e-9, atol=1e-11)


def test_a_criterion_of_three_arguments_trains_in_three_ways_alike() -> None:
    data = TensorDataset(torch.randn(16, 4).double(), torch.zeros(16))
    model = Net()
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=16),
        noise_multiplier=0.0,
        max_grad_norm=C,
        poisson_sampling=False,
    )
    triplet = nn.TripletMarginLoss(reduction="none")
    updates = []
    for way in ("arguments", "session", "tuple"):
        copied = copy.deepcopy(model.state_dict())
        for x, y in loader:
            out = tuple(model(x * scale) for scale in (1, 2, 3))
            if way == "session":
                engine.session.backward(triplet(*out))
            elif way == "arguments":
                engine.per_example(nn.TripletMarginLoss())(*out).backward()
            else:
                engine.per_example(lambda out, y: triplet(*out))(out, y).backward()
            optimizer.step()
        updates.append(torch.cat([(value - copied[key]).flatten() for key, value in model.state_dict().items()]))
        model.load_state_dict(copied)
    assert updates[1].norm() > 0
    torch.testing.assert_close(updates[1], updates[0])
    torch.testing.assert_close(updates[1], updates[2])


class Packing(nn.Module):
    """A recurrent model of sequences that come sorted by their length."""

    def __init__(self, *, enforce_sorted: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.enforce_sorted = nn.GRU(1, 3, batch_first=True).double(), enforce_sorted

    def forward(self, x: Tensor) -> Tensor:
        lengths = (x > -9).sum(1)
        packed = nn.utils.rnn.pack_padded_sequence(
            x.unsqueeze(2), lengths, batch_first=True, enforce_sorted=self.enforce_sorted
        )
        return self.layer(packed)[1][0]


def test_a_model_that_takes_records_in_order_of_length_trains_with_either_setting() -> None:
    x = batch().masked_fill(torch.arange(4) > torch.tensor([3, 2, 2, 1, 1]).unsqueeze(1), -10.0)
    for enforce_sorted in (True, False):
        Training(Packing(enforce_sorted=enforce_sorted)).step(x)


def test_a_model_that_cannot_run_twice_on_a_batch_is_told_so() -> None:
    calls: SimpleQueue[int] = SimpleQueue()  # which nobody can put back
    calls.put(1)
    with nothing_left(), pytest.raises((UnsupportedModelError, CrossSampleLeakError), match="Empty"):
        Training(Net(lambda m, h: h + calls.get_nowait())).backward(batch())
