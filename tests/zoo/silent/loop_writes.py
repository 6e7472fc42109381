"""What the loop writes into the model between two steps: buffers, parameters, a teacher."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from silent_programs import Kind, Program, clean, leaky, linear, replaced
from torch import Tensor, nn

X = torch.randn(48, 4, generator=torch.Generator().manual_seed(1))
EARLIER = replaced(X, 0, 300 * X[0], earlier=True)
BETWEEN = ("losses that change between batches",)
WRITTEN = ("parameters written by the loop",)


class Scaled(nn.Module):
    """Divides by a buffer that only the loop writes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.mean = nn.Linear(4, 3), nn.Linear(4, 3).requires_grad_(False)
        self.register_buffer("size", torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) / self.size


def largest(model: Any, x: Tensor) -> None:
    model.size.copy_(x.abs().max())


def constant(model: Any, x: Tensor) -> None:
    model.size.fill_(3.0)


def centre(model: Any, x: Tensor) -> None:
    model.centre = x.mean(0)


def first_row(model: Any, x: Tensor) -> None:
    model.centre.data.copy_(x[0])


class Centred(nn.Module):
    """Subtracts a tensor that only the loop sets."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.centre = nn.Linear(4, 3), torch.zeros(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - self.centre)


class Begun(nn.Linear):
    """Takes its bias from the first batch that it sees."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.has_begun = False


def from_first(model: Any, x: Tensor) -> Any:
    if not model.has_begun:
        model.has_begun = True
        with torch.no_grad():
            model.bias.copy_(x.mean(0)[:3])
    return model(x)


def scaled_by_first(model: Any, x: Tensor) -> Any:
    if not model.has_begun:
        model.has_begun = True
        model.weight.data.mul_(x.abs().max())
    return model(x)


class Named(Scaled):
    """Divides by a number that only the loop sets."""

    def __init__(self) -> None:
        super().__init__()
        self.divisor = 3.0

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) / self.divisor


def as_number(model: Any, x: Tensor) -> None:
    model.divisor = float(x.abs().max())


def same_number(model: Any, x: Tensor) -> None:
    model.divisor = 3.0


def same_centre(model: Any, x: Tensor) -> None:
    model.centre = torch.zeros(4)


SETTINGS = {"divisor": 3.0}
"""What a forward of this file reads and a loop writes."""


class Configured(nn.Module):
    """Divides by what only the loop sets: in a dictionary, an object, a variable of this file, the environment."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.parts: dict[str, Any] = {"sizes": [3.0]}
        self.given = SimpleNamespace(divisor=torch.tensor(3.0))
        SETTINGS["divisor"] = 3.0
        os.environ["SILENT_ZOO_DIVISOR"] = "3.0"

    def forward(self, x: Tensor) -> Tensor:
        divisor = self.parts["sizes"][0] * self.given.divisor * SETTINGS["divisor"]
        return 27 * self.layer(x) / divisor / (float(os.environ["SILENT_ZOO_DIVISOR"]) / 3.0)


WRITES: dict[str, Callable[[Any, float], None]] = {
    "a list in a dictionary of the model": lambda model, value: model.parts.update(sizes=[value]),
    "a tensor of an object of the model": lambda model, value: setattr(model.given, "divisor", torch.tensor(value)),
    "a dictionary of the file": lambda model, value: SETTINGS.update(divisor=value),
    "a variable of the environment": lambda model, value: os.environ.update(SILENT_ZOO_DIVISOR=str(value)),
}


def writing(where: str, value: Callable[[Tensor], float]) -> dict[str, Any]:
    """Return a loop that writes there after each backward."""
    return {"make": Configured, "after": lambda model, x: WRITES[where](model, value(x))}


class Taught(nn.Module):
    """A student, and what follows its released weights."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(4, 3), nn.Linear(4, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)


def follow(model: Any, x: Tensor) -> None:
    with torch.no_grad():
        for mine, other in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
            mine.lerp_(other, 0.1)


LEAKY: tuple[Program, ...] = (
    leaky("a buffer gets the batch's largest value", EARLIER, make=Scaled, after=largest, batches=2, trust=BETWEEN),
    leaky("a tensor attribute gets the batch's mean", EARLIER, make=Centred, after=centre, batches=2, trust=BETWEEN),
    leaky("a tensor attribute gets the first record", EARLIER, make=Centred, after=first_row, batches=2, trust=BETWEEN),
    leaky("an attribute gets the batch's largest value", EARLIER, make=Named, after=as_number, batches=2,
          trust=BETWEEN),
    *(leaky(f"{where} gets the batch's largest value", EARLIER, batches=2, trust=BETWEEN,
            **writing(where, lambda x: float(x.abs().max()))) for where in WRITES),
    leaky("a bias gets the first batch's mean", EARLIER, make=Begun, call=from_first, batches=3, trust=WRITTEN),
    leaky("weights times the first batch's largest", EARLIER, make=Begun, call=scaled_by_first, batches=3,
          trust=WRITTEN),
)  # fmt: skip

CLEAN: tuple[Program, ...] = (
    clean("a buffer gets the same number", EARLIER, make=Scaled, after=constant, batches=3),
    clean("a tensor attribute gets the same values", EARLIER, make=Centred, after=same_centre, batches=3),
    clean("an attribute gets the same number", EARLIER, make=Named, after=same_number, batches=3),
    *(clean(f"{where} gets the same number", EARLIER, batches=3, **writing(where, lambda x: 3.0)) for where in WRITES),
    clean("a step that only looks", EARLIER, make=Scaled, after=lambda m, x: float(x.abs().max()), batches=3),
    clean("a teacher follows the student's weights", EARLIER, make=Taught, after=follow, batches=3),
    clean("nothing is written", EARLIER, make=linear(), batches=3),
)

KIND = Kind(
    "the loop writes to the model",
    "values of parameters at each step; buffers, tensors and numbers of the model, and what the user's code of its "
    "forwards names, in the model or outside, from item to item",
    "every step; the first two items, those that are looked at and the first of each pass",
    "what is written: `losses that change between batches`, `parameters written by the loop`",
    (*LEAKY, *CLEAN),
)
