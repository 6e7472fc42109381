"""Terms of parameters alone: their gradients join the noised update, and what reads anything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from private_loops import NO_NOISE, NOISY, Training, attach, losses, network, values
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PoissonSampling, PrivacyEngine, Session, verify
from hushgrad.errors import InvalidArgumentError, ProtocolError, StrayGradientError
from hushgrad.randomness import KeyStream

EMPTY = torch.zeros(0)


def squared_distance(model: nn.Module, first: list[Tensor]) -> Tensor:
    return torch.stack([(p - q).square().sum() for p, q in zip(model.parameters(), first, strict=True)]).sum()


def released(model: nn.Module, optimizer: Any, session: Session, given: Tensor) -> list[Tensor]:
    """Return what one step hands to the optimizer."""
    found: list[Tensor] = []

    def keep(*_: Any) -> None:
        found.extend(p.grad.clone() for p in model.parameters() if p.grad is not None)

    handle = optimizer.register_step_pre_hook(keep)
    session.backward(given)
    optimizer.step()
    handle.remove()
    return found


# What is added ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_proximal_term_is_its_gradient_by_hand_in_full_and_in_empty_draws(reduction: str) -> None:
    model, optimizer, session = attach(replace(NO_NOISE, loss_reduction=reduction))
    first = [p.detach().clone() + 0.5 for p in model.parameters()]
    session.regularizer(lambda: squared_distance(model, first), weight=0.3)
    x = torch.randn(5, 3, dtype=torch.float64)
    for given in (x, x[:0], x):
        weights = values(model)
        plain = torch.autograd.grad(losses_of(weights, given), weights) if len(given) else [0 * w for w in weights]
        divisor = 8 if reduction == "mean" else 1
        found = released(model, optimizer, session, losses(model, given) if len(given) else EMPTY)
        for update, weight, gradient, origin in zip(found, weights, plain, first, strict=True):
            expected = gradient / divisor + 0.3 * 2 * (weight.detach() - origin)
            torch.testing.assert_close(update, expected)


def losses_of(weights: list[Tensor], x: Tensor) -> Tensor:
    """The sum of the losses of `private_loops.network`, on weights that require gradients from now on."""
    w1, b1, w2, b2 = (weight.requires_grad_() for weight in weights)
    return ((x @ w1.t() + b1).tanh() @ w2.t() + b2).square().sum()


class Bayesian(nn.Module):
    """A linear layer with a Gaussian posterior of which one sample is used."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_std = nn.Parameter(torch.randn(2, 3).double()), nn.Parameter(torch.randn(2, 3).double())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.mean + self.log_std.exp() * 0.1)


def test_the_kl_divergence_of_a_posterior_from_its_prior_is_added() -> None:
    model, optimizer, session = attach(model=Bayesian())

    def divergence() -> Tensor:
        prior = torch.distributions.Normal(torch.zeros(()).double(), 1.0)
        posterior = torch.distributions.Normal(model.mean, model.log_std.exp())
        return torch.distributions.kl_divergence(posterior, prior).sum()

    session.regularizer(divergence, weight=0.01)
    for _ in range(2):
        mean, log_std = values(model)
        by_mean, by_log_std = released(model, optimizer, session, EMPTY)
        torch.testing.assert_close(by_mean, 0.01 * mean)
        torch.testing.assert_close(by_log_std, 0.01 * (torch.exp(2 * log_std) - 1))
    assert "constants of a regularizer" not in str(session.guarantee(1e-5).conditions)


def test_several_terms_add_up_and_a_frozen_parameter_gets_none() -> None:
    model, optimizer, session = attach()
    session.regularizer(lambda: model[0].weight.sum(), weight=2.0)
    session.regularizer(lambda: model[0].weight.sum() + model[2].bias.sum(), weight=1.0)
    first, _, _, last = released(model, optimizer, session, EMPTY)
    assert torch.equal(first, torch.full_like(first, 3.0))
    assert torch.equal(last, torch.ones_like(last))
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    assert len(released(model, optimizer, session, EMPTY)) == 3
    assert torch.equal(model[0].weight, before)


def test_it_is_added_once_for_a_logical_batch_however_many_items_it_comes_in() -> None:
    updates = []
    for physical in (3, 8):
        torch.manual_seed(4)
        training = Training(physical=physical)
        training.session.regularizer(lambda: training.model[0].weight.square().sum(), weight=0.1)  # noqa: B023
        training.run(training.work)
        assert training.session.steps == 3
        updates.append(training.values())
    for one, other in zip(*updates, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_the_noise_the_clipped_sum_and_the_charge_are_those_without_it() -> None:
    """Guarantee: a term that reads anything but trained parameters and constants of before the first batch is refused.

    What is left is a function of what was released, added to the same update.
    """
    x = torch.randn(6, 3, dtype=torch.float64) * 50
    found = {}
    for weight in (None, 0.5):
        torch.manual_seed(3)
        model, optimizer, session = attach(NOISY, key=KeyStream.fixed_for_tests(4))
        first = [p.detach() + 1 for p in model.parameters()]
        if weight is not None:
            session.regularizer(lambda: squared_distance(model, first), weight=weight)  # noqa: B023 - called here
        found[weight] = released(model, optimizer, session, losses(model, x)), session
    for plain, other in zip(found[None][0], found[0.5][0], strict=True):
        torch.testing.assert_close(other, plain - 1.0)  # 0.5 · 2 · (w − (w + 1))
    one, two = (found[weight][1] for weight in (None, 0.5))
    assert one.charged == two.charged
    assert one.mechanism == two.mechanism
    assert one.epsilon(1e-5) == two.epsilon(1e-5)
    assert one.noise_monitor.finding() == two.noise_monitor.finding()


def test_verify_passes_with_one_declared() -> None:
    data = TensorDataset(torch.randn(64, 3), torch.randn(64, 2))

    def loop(session: Session, model: nn.Module, optimizer: Any, loader: Any, criterion: Any) -> None:
        first = [p.detach().clone() for p in model.parameters()]
        session.regularizer(lambda: squared_distance(model, first), weight=0.1)
        while True:
            for x, y in loader:
                criterion(model(x), y).backward()
                optimizer.step()

    mechanism = replace(NOISY, sampling=PoissonSampling(0.25), expected_batch_size=16)
    verdict = verify(nn.Linear(3, 2), DataLoader(data, batch_size=16), nn.MSELoss(), mechanism, session_loop=loop)
    assert verdict.passed, str(verdict)


def running_sum(model: Any) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for parameter in model.parameters():
        total += parameter.abs().sum()
    return total


def by_name(model: Any) -> Tensor:
    return sum(p.square().sum() for name, p in model.named_parameters() if "weight" in name)  # type: ignore[return-value]


HONEST: dict[str, Callable[[Any], Tensor]] = {
    "a running sum in place": running_sum,
    "a sum of Python's": by_name,
    "of a subset": lambda m: m[0].weight[1:, [0, 2]].norm(),
    "an orthogonal weight": lambda m: (m[0].weight.t() @ m[0].weight - torch.eye(3).double()).square().sum(),
    "a spectral norm": lambda m: torch.linalg.matrix_norm(m[0].weight, 2),
    "vectors of all": lambda m: torch.cat([p.flatten() for p in m.parameters()]).logsumexp(0),
    "foreach": lambda m: torch.stack(torch._foreach_norm(list(m.parameters()))).sum(),
    "through a functional call": lambda m: torch.func.functional_call(
        m, dict(m.named_parameters()), (torch.ones(1, 3).double(),)
    ).sum(),
}


@pytest.mark.parametrize("name", HONEST)
def test_usual_terms_are_added_step_after_step(name: str) -> None:
    term = HONEST[name]
    model, optimizer, session = attach()
    session.regularizer(lambda: term(model), weight=0.2)
    for _ in range(3):
        plain = network()
        plain.load_state_dict(model.state_dict())
        found = torch.autograd.grad(term(plain), list(plain.parameters()), allow_unused=True)
        for update, gradient in zip(released(model, optimizer, session, EMPTY), found, strict=True):
            torch.testing.assert_close(update, torch.zeros_like(update) if gradient is None else 0.2 * gradient)


# Refused ---------------------------------------------------------------------------------------------------------


class Kept:
    """What a loop may write the values of a batch to."""

    def __init__(self) -> None:
        self.tensor, self.number = torch.zeros(3, dtype=torch.float64), 1.0
        self.array, self.list = np.zeros(3), [0.0, 0.0, 0.0]
        self.flag, self.other = False, torch.ones(3, dtype=torch.float64)


LEAKY: dict[str, tuple[Callable[[Any, Kept], Tensor], Callable[[Kept, Tensor], Any]]] = {
    "a tensor written in place": (
        lambda w, kept: (w * kept.tensor).sum(),
        lambda kept, x: kept.tensor.copy_(x[0]),
    ),
    "a tensor written through .data": (
        lambda w, kept: (w * kept.tensor).sum(),
        lambda kept, x: kept.tensor.data.copy_(x[0]),
    ),
    "another tensor": (lambda w, kept: (w * kept.tensor).sum(), lambda kept, x: setattr(kept, "tensor", x[0])),
    "a number": (lambda w, kept: (w * kept.number).sum(), lambda kept, x: setattr(kept, "number", float(x[0, 0]))),
    "an array": (
        lambda w, kept: (w * torch.from_numpy(kept.array)).sum(),
        lambda kept, x: kept.array.__setitem__(slice(None), x[0].numpy()),
    ),
    "an array, copied": (
        lambda w, kept: (w * torch.tensor(kept.array)).sum(),
        lambda kept, x: kept.array.__setitem__(slice(None), x[0].numpy()),
    ),
    "a list": (
        lambda w, kept: (w * torch.tensor(kept.list, dtype=torch.float64)).sum(),
        lambda kept, x: setattr(kept, "list", x[0].tolist()),
    ),
    "a branch": (
        lambda w, kept: w.square().sum() if kept.flag else w.abs().sum(),
        lambda kept, x: setattr(kept, "flag", bool(x[0, 0] != 0)),
    ),
    "which tensor": (
        lambda w, kept: (w * kept.tensor).sum() + (w * kept.other).sum(),
        lambda kept, x: kept.__dict__.update(tensor=kept.other, other=kept.tensor),
    ),
    "an index": (
        lambda w, kept: w[:, int(kept.number)].sum(),
        lambda kept, x: setattr(kept, "number", 1 + int(x[0, 0] != 0)),
    ),
}


@pytest.mark.parametrize("name", LEAKY)
def test_what_the_loop_rewrites_later_is_not_read(name: str) -> None:
    """Guarantee: what is added to an update is a function of the parameters and of constants from before the first."""
    term, rewrite = LEAKY[name]
    model, optimizer, session = attach()
    kept = Kept()
    session.regularizer(lambda: term(model[0].weight, kept), weight=0.1)
    x = torch.randn(4, 3, dtype=torch.float64)
    first = released(model, optimizer, session, EMPTY)
    rewrite(kept, x)
    with torch.no_grad():
        for parameter, update in zip(model.parameters(), first, strict=True):
            parameter.add_(update)  # plain SGD at rate 1, taken back
    for one, other in zip(first, released(model, optimizer, session, EMPTY), strict=True):
        assert torch.equal(one, other)


class Doubled(torch.autograd.Function):
    """The identity, with another gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


def hooked(x: Tensor) -> Tensor:
    x.register_hook(lambda gradient: 3 * gradient)  # type: ignore[no-untyped-call]
    return x


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "random numbers": (lambda m: (m[0].weight * torch.randn(4, 3).double()).sum(), "random numbers"),
    "random numbers like one": (
        lambda m: (m[0].weight * torch.randn_like(m[0].weight)).sum(),
        "random numbers",
    ),
    "dropout": (lambda m: nn.functional.dropout(m[0].weight).sum(), "random numbers"),
    "a leaf of its own": (lambda m: (m[0].weight * LEAF).sum(), "a gradient or a graph of its own"),
    "no parameter": (lambda m: torch.ones(()).double(), "no parameter"),
    "a detached one": (lambda m: m[0].weight.detach().sum(), "no parameter"),
    "no scalar": (lambda m: m[0].weight.sum(0), r"one floating-point scalar, got \[3\]"),
    "a hook": (lambda m: hooked(m[0].weight.square().sum()), "another gradient"),
    "a backward of its own": (lambda m: Doubled.apply(m[0].weight).sum(), "another gradient"),
    "uninitialised memory": (lambda m: (m[0].weight * torch.empty_like(m[0].weight)).sum(), "memory"),
    "a number taken out": (lambda m: m[0].weight.sum() * m[0].weight.sum().item(), "cannot be written down"),
    "a branch": (lambda m: m[0].weight.sum() if m[0].weight.sum() > 9 else m[0].bias.sum(), "cannot be written down"),
    "a number": (lambda m: 3.0, "one floating-point scalar, got float"),
    "a write": (
        lambda m: (m[0].weight.data.mul_(1.0), m[0].weight.detach().mul_(1), m[0].weight.sum())[2],
        "writes to",
    ),
}
LEAF = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_term_of_parameters_alone_is_refused_when_it_is_declared(name: str) -> None:
    term, what = REFUSED[name]
    model, optimizer, session = attach()
    with pytest.raises(InvalidArgumentError, match=what):
        session.regularizer(lambda: term(model), weight=0.1)
    session.backward(EMPTY)
    optimizer.step()  # nothing of it stays


def test_what_was_computed_before_is_refused() -> None:
    model, _, session = attach()
    value = model[0].weight.square().sum()
    with pytest.raises(InvalidArgumentError, match="a graph of its own"):
        session.regularizer(lambda: value, weight=0.1)
    out = model(torch.randn(2, 3).double())
    with pytest.raises(InvalidArgumentError, match="a graph of its own"):
        session.regularizer(lambda: out.mean() + model[0].weight.sum(), weight=0.1)


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), "1"])
def test_a_weight_that_is_no_positive_number_is_refused(weight: Any) -> None:
    model, _, session = attach()
    with pytest.raises(InvalidArgumentError, match="weight"):
        session.regularizer(lambda: model[0].weight.sum(), weight=weight)
    with pytest.raises(InvalidArgumentError, match="function without arguments, got float"):
        session.regularizer(3.0, weight=1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("when", ["in an item", "after a step", "after a discard", "after a declared backward"])
def test_after_the_first_batch_was_handed_out_none_is_declared(when: str) -> None:
    if when == "after a declared backward":
        model, _, session = attach()
        session.backward(losses(model, torch.randn(2, 3).double()))
    else:
        training = Training(physical=None)
        model, session = training.model, training.session
        item = next(iter(training.loader))
        if when == "after a step":
            training.work(item)
        elif when == "after a discard":
            session.discard()
    with pytest.raises(ProtocolError, match="declared after the first batch"):
        session.regularizer(lambda: model[0].weight.sum(), weight=1.0)


def test_a_term_may_call_the_model_on_constants_and_nothing_of_it_is_captured() -> None:
    model, optimizer, session = attach()
    anchors = torch.randn(4, 3, dtype=torch.float64)
    session.regularizer(lambda: model(anchors).square().mean(), weight=1.0)
    plain = network()
    plain.load_state_dict(model.state_dict())
    expected = torch.autograd.grad(plain(anchors).square().mean(), list(plain.parameters()))
    for update, gradient in zip(released(model, optimizer, session, EMPTY), expected, strict=True):
        torch.testing.assert_close(update, gradient)
    assert [c.name for c in session.guarantee(1e-5).conditions].count("constants of a regularizer") == 1


def test_copies_of_the_parameters_are_no_condition_and_other_constants_are() -> None:
    for shift, is_told in ((0.0, False), (1.0, True)):
        model, _, session = attach()
        first = [p.detach() + shift for p in model.parameters()]
        session.regularizer(lambda: squared_distance(model, first), weight=1.0)  # noqa: B023 - called here
        names = [condition.name for condition in session.guarantee(1e-5).conditions]
        assert ("constants of a regularizer" in names) is is_told


def test_a_number_in_the_terms_own_code_is_no_condition_and_one_in_a_tensor_is() -> None:
    handed = torch.tensor(2.0, dtype=torch.float64)
    for factor, is_told in ((lambda: torch.tensor(2.0, dtype=torch.float64), False), (lambda: handed, True)):
        model, _, session = attach()
        session.regularizer(lambda: model[0].weight.sum() * factor(), weight=1.0)  # noqa: B023 - called here
        names = [condition.name for condition in session.guarantee(1e-5).conditions]
        assert ("constants of a regularizer" in names) is is_told


def test_a_penalty_in_the_loop_is_told_of_it() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = PrivacyEngine()
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(TensorDataset(torch.randn(16, 3)), batch_size=8),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )

    def loop() -> None:
        for (x,) in loader:
            (model(x).square().sum(1).mean() + 0.1 * model.weight.square().sum()).backward()
            optimizer.step()

    with pytest.raises(StrayGradientError, match=r"DP401 .*session\.regularizer\(fn, weight=\.\.\.\)"):
        loop()
