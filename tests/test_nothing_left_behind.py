"""Whatever happens in a forward or a backward, in whatever thread: errors are typed and nothing is left behind.

Of each program it is asked that `except HushgradError` catches its refusal, that torch's stack of function modes is
what it was, that an unrelated layer trains, and that private training goes on exactly.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import DPSGD, FlatClipping, PoissonSampling, PrivacyEngine, privatize
from hushgrad.errors import (
    CrossSampleLeakError,
    HushgradError,
    InvalidArgumentError,
    PrivacyUnitError,
    StrayGradientError,
    UncoveredParameterUseError,
    UnsupportedModelError,
)
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time
from hushgrad.session.session import Session

B, C = 5, 0.7
MECHANISM = DPSGD(
    noise_multiplier=0.0, clipping=FlatClipping(C), sampling=PoissonSampling(rate=0.1), expected_batch_size=B
)


class Net(nn.Module):
    """Two layers, and something of the test's between them."""

    def __init__(self, between: Callable[[Net, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.between = [] if between is None else [between]
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        for between in self.between:
            h = between(self, h)
        return self.b(h)


def batch(seed: int = 1) -> Tensor:
    return torch.randn(B, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def losses(out: Tensor) -> Tensor:
    return out.sin().sum(1)


class Training:
    """A private model without noise, whose updates are known."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self.model = model or Net()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        self.session: Session = privatize(self.model, self.optimizer, MECHANISM)

    def backward(self, x: Tensor) -> None:
        self.session.backward(losses(self.model(x)))

    def step(self, x: Tensor) -> None:
        self.backward(x)
        self.optimizer.step()

    def require_exact_step(self) -> None:
        """Run a step and compare the update with clipping one example at a time on an ordinary copy."""
        x, alone = batch(), copy.deepcopy(self.model)
        runs = [lambda i=i: losses(alone(x[i : i + 1])).sum() for i in range(B)]
        expected = clipped_sum_of(one_at_a_time(alone, runs), C)
        before = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        self.optimizer.zero_grad()
        self.step(x)
        for name, parameter in self.model.named_parameters():
            torch.testing.assert_close(before[name] - parameter, expected[name] / B, rtol=1e-9, atol=1e-11)


def require_ordinary_training() -> None:
    """Train a layer that has nothing to do with any session, with keywords, batch statistics and changes in place."""
    layer = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(inplace=True))
    x = torch.randn(4, 3)
    x -= x.mean(0)
    layer(x).sum().backward()
    assert layer[0].weight.grad is not None
    nn.init.normal_(torch.empty_like(layer[0].weight))


@contextmanager
def nothing_left() -> Iterator[None]:
    before = _get_current_function_mode_stack()
    yield
    assert _get_current_function_mode_stack() == before
    require_ordinary_training()
    assert _get_current_function_mode_stack() == before


# Forwards that are left in the middle ---------------------------------------------------------------------------------


class OwnError(Exception):
    """The user's own."""


class Stop(BaseException):
    """No Exception."""


def _raising(kind: type[BaseException]) -> Callable[[Net, Tensor], Tensor]:
    def between(m: Net, h: Tensor) -> Tensor:
        raise kind

    return between


@pytest.mark.parametrize("kind", [OwnError, RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit, Stop])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_forward_that_is_left_by_an_exception_leaves_no_mode(kind: type[BaseException], is_first: bool) -> None:
    training = Training()
    if not is_first:
        training.require_exact_step()
    training.model.between = [_raising(kind)]
    with nothing_left():
        try:
            training.model(batch())
            raise AssertionError
        except kind:
            pass
        training.model.between = []
    training.require_exact_step()


def test_while_the_exception_of_a_left_forward_is_held_calls_pass_through_untouched() -> None:
    training = Training(Net(_raising(KeyboardInterrupt)))
    x = batch()
    with pytest.raises(KeyboardInterrupt) as held:
        training.model(x)
    require_ordinary_training()
    x -= x.mean(0)  # a tensor that the forward knew
    x.mul_(other := torch.ones(B, 1, dtype=torch.float64))
    assert other.sum() == B
    training.model.between = []
    training.require_exact_step()
    del held
    assert _get_current_function_mode_stack() == []


def test_a_part_left_by_a_base_exception_that_the_forward_catches_changes_nothing() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6).double()

        def forward(self, h: Tensor) -> Tensor:
            self.layer(h)
            raise Stop

    def between(m: Net, h: Tensor) -> Tensor:
        try:
            return m.inner(h)  # type: ignore[no-any-return]
        except Stop:
            return h

    model = Net(between)
    model.inner = Inner()
    training = Training(model)
    with nothing_left():
        training.require_exact_step()


def test_a_generator_that_runs_layers_may_be_closed_early() -> None:
    def between(m: Net, h: Tensor) -> Tensor:
        def rows() -> Iterator[Tensor]:
            try:
                while True:
                    yield m.c(h)
            finally:
                m.c(h)

        found = rows()
        first = next(found)
        found.close()
        return h + first

    model = Net(between)
    model.c = nn.Linear(6, 6).double()
    with nothing_left():
        Training(model).require_exact_step()


def test_a_pre_hook_that_raises_before_ours_leaves_nothing() -> None:
    def refuse(module: nn.Module, args: Any) -> None:
        if is_refusing:
            raise OwnError

    model = Net()
    handles = [part.register_forward_pre_hook(refuse) for part in (model, model.b)]
    training = Training(model)
    for handle in handles[1:], handles[:1]:
        is_refusing = True
        with nothing_left(), pytest.raises(OwnError):
            model(batch())
        is_refusing = False
        training.require_exact_step()
        handle[0].remove()


def test_hooks_that_are_taken_away_during_a_forward_leave_nothing() -> None:
    training = Training(Net(lambda m, h: (training.session.close(), h)[1]))
    with nothing_left():
        training.model(batch())
    training.model.between = []
    losses(training.model(batch())).sum().backward()  # an ordinary model again
    assert all(parameter.grad is not None for parameter in training.model.parameters())


def test_a_hook_that_hands_on_other_arguments_changes_nothing() -> None:
    model = Net()
    training = Training(model)
    model.register_forward_pre_hook(lambda module, args, kwargs: (args, dict(kwargs)), with_kwargs=True)
    with nothing_left():
        training.require_exact_step()


def test_what_a_backward_raises_leaves_nothing() -> None:
    def refuse(gradient: Tensor) -> None:
        raise OwnError

    def between(m: Net, h: Tensor) -> Tensor:
        h.register_hook(refuse)
        return h

    training = Training()
    training.require_exact_step()
    training.model.between = [between]
    with nothing_left(), pytest.raises(OwnError):
        training.backward(batch())
    training.model.between = []
    training.session.discard()
    training.require_exact_step()


# Refusals in the loop -------------------------------------------------------------------------------------------------


def _penalty(model: nn.Module, x: Tensor) -> Tensor:
    x.requires_grad_()
    out = model(x)
    (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    return losses(out) + gradient.square().sum(1)


def _forward_mode(model: nn.Module, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return losses(model(forward_ad.make_dual(x, x)))


IN_THE_LOOP: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "a gradient penalty": _penalty,
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


# Refused models -------------------------------------------------------------------------------------------------------


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


def _sparse(m: Net, h: Tensor) -> Tensor:
    change = torch.sparse_coo_tensor(torch.tensor([[0, 1], [1, 0]]), m.p[:2], (6, 6))
    return (torch.sparse.mm(change, h.t())).t()


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
    "a sparse tensor of a parameter": (_sparse, UncoveredParameterUseError),
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


def _net(between: Callable[[Net, Tensor], Tensor]) -> Net:
    model = Net(between)
    model.c, model.p = nn.Linear(6, 6), nn.Parameter(torch.ones(6))
    model.script = torch.jit.script(nn.Tanh())
    return model.double()


@pytest.mark.parametrize("name", IN_THE_FORWARD)
def test_a_program_of_the_forward_is_refused_by_a_typed_error(name: str) -> None:
    between, kind = IN_THE_FORWARD[name]
    training = Training(_net(between))
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
    "a gradient by data inside": lambda m, h: h,
}


@pytest.mark.parametrize("name", EXACT)
def test_what_ordinary_layers_allow_in_place_is_exact(name: str) -> None:
    model = _net(EXACT[name])
    model.e = nn.Embedding(2, 6).double()
    with nothing_left():
        Training(model).require_exact_step()


@pytest.mark.parametrize(
    ("part", "named"),
    [
        (lambda layer: torch.jit.trace(layer, torch.randn(2, 4)), "'part'"),
        (lambda layer: torch.jit.script(layer), "'part'"),
        (lambda layer: nn.Sequential(nn.Tanh(), torch.jit.script(nn.Sequential(layer))), r"'part\.1'"),
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
    expected = clipped_sum_of(one_at_a_time(before, runs), C)
    for name, parameter in before.named_parameters():
        found = dict(model.named_parameters())[name]
        update = torch.zeros_like(parameter) if name == "b.bias" else expected[name] / 8
        torch.testing.assert_close(parameter - found, update, rtol=1e-9, atol=1e-11)


def test_a_criterion_of_three_arguments_is_told_of_two_ways_that_work() -> None:
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
    for way in ("refused", "session", "tuple"):
        copied = copy.deepcopy(model.state_dict())
        for x, y in loader:
            out = tuple(model(x * scale) for scale in (1, 2, 3))
            if way == "refused":
                with nothing_left(), pytest.raises(InvalidArgumentError, match=r"session\.backward"):
                    engine.per_example(nn.TripletMarginLoss())(*out)
                engine.session.discard()
                break
            if way == "session":
                engine.session.backward(triplet(*out))
            else:
                engine.per_example(lambda out, y: triplet(*out))(out, y).backward()
            optimizer.step()
        updates.append(torch.cat([(value - copied[key]).flatten() for key, value in model.state_dict().items()]))
        model.load_state_dict(copied)
    assert updates[1].norm() > 0
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


def test_a_model_that_counts_on_the_order_of_records_is_told_so() -> None:
    x = batch().masked_fill(torch.arange(4) > torch.tensor([3, 2, 2, 1, 1]).unsqueeze(1), -10.0)
    training = Training(Packing(enforce_sorted=True))
    with nothing_left(), pytest.raises(UnsupportedModelError, match="enforce_sorted=False"):
        training.step(x)
    Training(Packing(enforce_sorted=False)).step(x)


def test_a_model_that_cannot_run_twice_on_a_batch_is_told_so() -> None:
    calls = iter(range(1))
    with nothing_left(), pytest.raises((UnsupportedModelError, CrossSampleLeakError), match="StopIteration"):
        Training(Net(lambda m, h: h + next(calls))).backward(batch())


# Threads --------------------------------------------------------------------------------------------------------------


def in_thread(run: Callable[[], Any]) -> list[Any]:
    """Run a function in another thread to its end; return what it returned or raised, and the modes it left there."""
    found: list[Any] = []

    def body() -> None:
        try:
            found.append(run())
        except BaseException as error:
            found.append(error)
        found.append(len(_get_current_function_mode_stack()))
        require_ordinary_training()
        found.append("trains")

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return found


def _shown(model: nn.Module, *, no_grad: bool) -> Tensor:
    """Run the model, which calls nothing of the test's meanwhile."""
    with torch.set_grad_enabled(not no_grad):
        return model(torch.ones(3, 4, dtype=torch.float64)).detach()


@pytest.mark.parametrize("no_grad", [True, False])
@pytest.mark.parametrize("times", [1, 3])
def test_another_thread_may_run_the_model_in_the_middle_of_a_forward(no_grad: bool, times: int) -> None:
    """Guarantee: threads that run one model at the same time do not see each other's modes."""
    results: list[list[Any]] = []

    def between(m: Net, h: Tensor) -> Tensor:
        if threading.current_thread() is threading.main_thread():
            for _ in range(times):
                results.append(in_thread(lambda: _shown(m, no_grad=no_grad)))
        return h

    training = Training()
    training.require_exact_step()
    training.model.between = [between]
    with nothing_left():
        alone = copy.deepcopy(training.model)
        alone.between = []
        shown = _shown(alone, no_grad=True)
        training.backward(batch())
    assert len(results) == times
    for value, modes, end in results:
        torch.testing.assert_close(value, shown)
        assert (modes, end) == (0, "trains")
    training.session.discard()
    training.model.between = []
    training.require_exact_step()


@pytest.mark.parametrize("no_grad", [True, False])
def test_another_thread_may_be_in_the_middle_of_a_forward_while_a_step_is_done(no_grad: bool) -> None:
    inside, done = threading.Event(), threading.Event()

    def between(m: Net, h: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            assert done.wait(60)
        return h

    training = Training()
    training.require_exact_step()
    training.model.between = [between]
    modes = []

    def other() -> None:
        _shown(training.model, no_grad=no_grad)
        modes.append(len(_get_current_function_mode_stack()))

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(60)
    training.model.between = []  # the other thread is in it already, and copies of the model do not wait
    try:
        with nothing_left():
            training.require_exact_step()
    finally:
        done.set()
        thread.join()
    assert modes == [0]
    training.require_exact_step()


def test_what_another_thread_raises_in_the_model_stays_there() -> None:
    training = Training()
    training.require_exact_step()
    for kind in (OwnError, KeyboardInterrupt, Stop):
        training.model.between = [_raising(kind)]
        with nothing_left():
            error, _, end = in_thread(lambda: training.model(batch()))
        assert isinstance(error, kind)
        assert end == "trains"
        training.model.between = []
        training.require_exact_step()


def test_a_transform_in_another_thread_is_refused_there() -> None:
    training = Training()
    training.require_exact_step()
    with nothing_left():
        error, modes, end = in_thread(lambda: torch.func.vmap(training.model)(batch()))
    assert isinstance(error, UncoveredParameterUseError)
    assert (modes, end) == (0, "trains")
    training.require_exact_step()


def test_training_may_run_in_a_thread_of_its_own() -> None:
    training = Training()
    with nothing_left():
        assert in_thread(lambda: [training.require_exact_step() for _ in range(2)])[1:] == [0, "trains"]
        training.require_exact_step()


def test_a_backward_may_run_in_another_thread_than_its_forward() -> None:
    training = Training()
    x, alone = batch(), copy.deepcopy(training.model)
    expected = clipped_sum_of(
        one_at_a_time(alone, [lambda i=i: losses(alone(x[i : i + 1])).sum() for i in range(B)]), C
    )
    before = {name: parameter.detach().clone() for name, parameter in training.model.named_parameters()}
    with nothing_left():
        out = losses(training.model(x))
        assert in_thread(lambda: training.session.backward(out)) == [None, 0, "trains"]
        training.optimizer.step()
    for name, parameter in training.model.named_parameters():
        torch.testing.assert_close(before[name] - parameter, expected[name] / B, rtol=1e-9, atol=1e-11)


def test_parts_that_a_forward_runs_in_threads_are_captured_or_refused() -> None:
    def between(m: Net, h: Tensor) -> Tensor:
        found = in_thread(lambda: m.c(h))
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]  # type: ignore[no-any-return]

    training = Training(_net(between))
    with nothing_left(), pytest.raises(PrivacyUnitError, match="cannot be told apart"):
        training.backward(batch())
    training.session.discard()
    training.model.between = []
    training.require_exact_step()
