"""A leaf outside of the model that persists and gets a gradient of the private losses is refused; others are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.errors import UncoveredParameterUseError

D, K, B = 4, 3, 8
GENERATOR = torch.Generator().manual_seed(5)
X, Y = torch.randn(24, D, generator=GENERATOR), torch.arange(24) % K


def ce(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y, reduction="none")


class Prompted(nn.Module):
    """Takes a prompt beside its inputs, if any."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, K)

    def forward(self, x: Tensor, prompt: Tensor | None = None) -> Tensor:
        return self.layer(x if prompt is None else x + prompt)


class Loop:
    """What a loop has beside its model."""

    def __init__(self, model: nn.Module, engine: PrivacyEngine) -> None:
        self.model, self.engine = model, engine
        self.head, self.front, self.prompt = nn.Linear(K, K), nn.Linear(D, D), nn.Parameter(torch.zeros(1, D))
        self.temperature = torch.ones(1, requires_grad=True)
        self.logits = torch.zeros(2, requires_grad=True)
        self.generator, self.optimizer = nn.Linear(2, D), torch.optim.SGD([self.temperature], lr=0.1)
        self.criterion = engine.per_example(ce)
        self.warm = engine.per_example(lambda output, y: ce(output * self.temperature, y))
        self.pairs = engine.per_example(lambda real, made: F.softplus(-real[:, 0]) + F.softplus(made[:, 0]))

    def rows(self, losses: Tensor) -> None:
        self.engine.session.backward(losses)

    def adversarial(self, x: Tensor, y: Tensor) -> None:
        """FGSM on a leaf that is made anew."""
        delta = nn.Parameter(torch.zeros_like(x))
        (gradient,) = torch.autograd.grad(ce(self.model(x + delta), y).sum(), delta)
        self.criterion(self.model(x + 0.1 * gradient.sign()), y).backward()

    def with_leaf(self, x: Tensor, y: Tensor) -> None:
        """A leaf of this item alone, whose gradient is formed and not used."""
        self.criterion(self.model(x + torch.zeros(1, D, requires_grad=True)), y).backward()

    def on_inputs(self, x: Tensor, y: Tensor) -> None:
        self.criterion(self.model(x.requires_grad_()), y).backward()

    def probed(self, x: Tensor, y: Tensor) -> None:
        """A head that reads what the model gives, and gives nothing back."""
        output = self.model(x)
        ce(self.head(output.detach()), y).mean().backward()
        self.criterion(output, y).backward()


Step = Callable[[Loop, Tensor, Tensor], Any]

LEAKY: dict[str, Step] = {
    "a head behind": lambda a, x, y: a.rows(ce(a.head(a.model(x)), y)),
    "a head behind, a scalar loss": lambda a, x, y: F.cross_entropy(a.head(a.model(x)), y).backward(),
    "a learned temperature": lambda a, x, y: a.warm(a.model(x), y).backward(),
    "learned weights of two losses": lambda a, x, y: a.rows(ce(a.model(x), y) * (-a.logits[0]).exp() + a.logits.sum()),
    "a network in front": lambda a, x, y: a.criterion(a.model(a.front(x)), y).backward(),
    "a prompt given to the model": lambda a, x, y: a.criterion(a.model(x, a.prompt.expand(B, D)), y).backward(),
    "a prompt added by the loop": lambda a, x, y: a.criterion(a.model(x + a.prompt), y).backward(),
}

HONEST: dict[str, Step] = {
    "a frozen head": lambda a, x, y: (a.head.requires_grad_(False), a.rows(ce(a.head(a.model(x)), y))),
    "a constant temperature": lambda a, x, y: a.rows(ce(a.model(x) * a.temperature.detach(), y)),
    "a network in front, detached": lambda a, x, y: a.criterion(a.model(a.front(x).detach()), y).backward(),
    "an adversarial step": lambda a, x, y: a.adversarial(x, y),
    "a leaf of the item": lambda a, x, y: a.with_leaf(x, y),
    "gradients at the inputs": lambda a, x, y: a.on_inputs(x, y),
    "a head that gives nothing back": lambda a, x, y: a.probed(x, y),
    "a generator's fakes": lambda a, x, y: a.pairs(a.model(x), a.model(a.generator(torch.randn(B, 2)))).backward(),
}


class Run:
    """Some steps of a loop."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.engine: Any = PrivacyEngine(test_key=4)
        model: Any = Prompted()
        self.optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
        _, _, self.loader = self.engine.make_private(
            module=model,
            optimizer=self.optimizer,
            data_loader=DataLoader(TensorDataset(X, Y), batch_size=B),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            poisson_sampling=False,
        )
        self.loop = Loop(model, self.engine)

    def go(self, step: Step) -> None:
        for x, y in self.loader:
            self.optimizer.zero_grad()
            step(self.loop, x, y)
            self.optimizer.step()


@pytest.mark.parametrize("name", LEAKY)
def test_a_leaf_that_persists_and_gets_a_gradient_is_refused_with_its_line(name: str) -> None:
    with pytest.raises(UncoveredParameterUseError, match="no part of the private model") as caught:
        Run().go(LEAKY[name])
    assert caught.value.where.startswith("test_outside_leaves.py, line")
    assert "freeze it" in caught.value.cure


@pytest.mark.parametrize("name", HONEST)
def test_leaves_that_get_none_or_are_the_items_train(name: str) -> None:
    run = Run()
    run.go(HONEST[name])
    assert run.engine.session.steps == 3


def test_it_is_refused_in_each_item_before_anything_is_released_until_it_is_frozen() -> None:
    run = Run()
    for _ in range(4):  # of which two are looked at anyway
        with pytest.raises(UncoveredParameterUseError):
            run.go(LEAKY["a head behind"])
        run.engine.session.discard()
    assert run.engine.session.steps == 0
    run.go(HONEST["a frozen head"])
    assert run.engine.session.steps == 3


def test_no_hook_stays_on_a_leaf() -> None:
    run = Run()
    with pytest.raises(UncoveredParameterUseError):
        run.go(LEAKY["a head behind"])
    run.engine.session.close()
    assert not run.loop.head.weight._post_accumulate_grad_hooks  # type: ignore[attr-defined]
