"""A private model without noise whose updates are known, and what must be as before whatever happened to it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from hushgrad import DPSGD, FlatClipping, PoissonSampling, Session, privatize
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time

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
        expected = clipped_sum_of(one_at_a_time(alone, runs), FlatClipping(C))
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


class OwnError(Exception):
    """The user's own."""


class Stop(BaseException):
    """No Exception."""


def raising(kind: type[BaseException]) -> Callable[[Net, Tensor], Tensor]:
    def between(m: Net, h: Tensor) -> Tensor:
        raise kind

    return between


def richer_net(between: Callable[[Net, Tensor], Tensor]) -> Net:
    model = Net(between)
    model.c, model.p = nn.Linear(6, 6), nn.Parameter(torch.ones(6))
    model.script = torch.jit.script(nn.Tanh())
    return model.double()
