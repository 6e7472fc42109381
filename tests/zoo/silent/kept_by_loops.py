"""What the loop keeps beside its model and writes to after the step: means, queues, normalisers, heads, teachers."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import torch
from silent_programs import WAYS, Kind, Program, clean, leaky, linear, replaced
from torch import Tensor, nn

X = torch.randn(48, 4, generator=torch.Generator().manual_seed(1))
EARLIER = replaced(X, 0, 300 * X[0], earlier=True)
BETWEEN = ("losses that change between batches",)

KEPT: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
"""Of each run's loop, by its model."""


def begin(model: nn.Module, trained: Any) -> None:
    """Make what the loop of this model keeps."""
    array = torch.zeros(4)
    KEPT[model] = SimpleNamespace(
        mean=torch.zeros(4),
        centre=torch.zeros(3),
        queue=torch.randn(3, 3),
        array=array,
        memory=array.numpy(),
        norm=nn.BatchNorm1d(4, affine=False).eval(),
        front=nn.Linear(4, 4),
        head=nn.Linear(3, 3),
        teacher=nn.Linear(4, 3).requires_grad_(False),
    )


def kept(model: nn.Module) -> Any:
    return KEPT[model]


def centred(model: Any, x: Tensor) -> Any:
    return model(x - kept(model).mean)


def from_memory(model: Any, x: Tensor) -> Any:
    return model(x - kept(model).array)


def shifted(model: Any, x: Tensor) -> Any:
    return model(x) - kept(model).centre


def normalised(model: Any, x: Tensor) -> Any:
    return model(kept(model).norm(x))


def fronted(model: Any, x: Tensor) -> Any:
    return model(kept(model).front(x).detach())


def against_queue(model: Any, x: Tensor) -> Any:
    return model(x) @ kept(model).queue.T


def headed(model: Any, x: Tensor) -> Any:
    return kept(model).head(model(x))


def taught(model: Any, x: Tensor) -> Any:
    output = model(x)
    with torch.no_grad():
        target = kept(model).teacher(x)
    return output - target


def adversarial(model: Any, x: Tensor) -> Any:
    delta = torch.zeros_like(x, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x + delta).sum(), delta)
    return model(x + 0.1 * gradient.sign())


def running_mean(model: Any, x: Tensor) -> None:
    kept(model).mean.lerp_(x.mean(0), 0.3)


def mean_by_data(model: Any, x: Tensor) -> None:
    kept(model).mean.data = x.mean(0)


def mean_in_memory(model: Any, x: Tensor) -> None:
    kept(model).memory[:] = x.numpy().mean(0)


def running_centre(model: Any, x: Tensor) -> None:
    kept(model).centre.lerp_(model(x).detach().mean(0), 0.5)


def in_training(model: Any, x: Tensor) -> None:
    kept(model).norm.train()(x)
    kept(model).norm.eval()


def push(model: Any, x: Tensor) -> None:
    kept(model).queue[1:] = model(x[:2]).detach()


def step_front(model: Any, x: Tensor) -> None:
    front = kept(model).front
    front.zero_grad()
    (front(x) - x).square().mean().backward()
    stepped(front)


def step_head(model: Any, x: Tensor) -> None:
    stepped(kept(model).head)


def stepped(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
                parameter.grad = None


def follow(model: Any, x: Tensor) -> None:
    with torch.no_grad():
        for mine, other in zip(kept(model).teacher.parameters(), model.parameters(), strict=True):
            mine.lerp_(other, 0.1)


def follow_by_data(model: Any, x: Tensor) -> None:
    for mine, other in zip(kept(model).teacher.parameters(), model.parameters(), strict=True):
        mine.data.mul_(0.9).add_(other.data, alpha=0.1)


def only_look(model: Any, x: Tensor) -> None:
    x.mean(0)


def frozen(model: Any, x: Tensor) -> Any:
    kept(model).head.requires_grad_(False)
    return headed(model, x)


ONE = ("per_example",)
"""The losses' kind tells nothing here."""


def unsafe(name: str, call: Any, later: Any, ways: tuple[str, ...] = ONE, **more: Any) -> Program:
    return leaky(
        name, EARLIER, make=linear(), call=call, later=later, hand=begin, batches=2, trust=BETWEEN, ways=ways, **more
    )


def fair(name: str, call: Any, later: Any, ways: tuple[str, ...] = ONE, **more: Any) -> Program:
    return clean(name, EARLIER, make=linear(), call=call, later=later, hand=begin, batches=3, ways=ways, **more)


LEAKY: tuple[Program, ...] = (
    unsafe("a running mean in place", centred, running_mean, WAYS),
    unsafe("a mean by .data", centred, mean_by_data),
    unsafe("a mean in NumPy's memory", from_memory, mean_in_memory),
    unsafe("a centre of outputs", shifted, running_centre),
    unsafe("a queue of outputs", against_queue, push),
    unsafe("a normaliser in front", normalised, in_training),
    unsafe("another network in front", fronted, step_front),
    unsafe("a head behind", headed, step_head, WAYS, by_hand=False),
)

CLEAN: tuple[Program, ...] = (
    fair("a constant shift", centred, only_look),
    fair("a constant array", from_memory, only_look),
    fair("a constant queue", against_queue, only_look),
    fair("a normaliser that stays", normalised, only_look),
    fair("a network in front that stays", fronted, only_look),
    fair("a frozen head behind", frozen, only_look),
    fair("a teacher follows the model's weights", taught, follow, WAYS),
    fair("a teacher follows them by .data", taught, follow_by_data),
    fair("adversarial inputs", adversarial, only_look),
)

KIND = Kind(
    "kept by the loop",
    "values of the tensors that the loop's calls take from outside, from item to item; leaves outside the model that "
    "the losses' gradient comes to",
    "the first two items and those that are looked at; torch's count of writes in each",
    "what is changed there, otherwise than by the model's released weights: `losses that change between batches`",
    (*LEAKY, *CLEAN),
)
