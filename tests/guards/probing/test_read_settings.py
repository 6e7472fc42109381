"""What the user's code of a forward reads, in the model or outside, is told; what it does not name is not."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from hushgrad.guards.probing.read_settings import kept_around, read_by_forwards

TABLE, LEVEL, PLACE, UNREAD = {"t": [1.0]}, 1.0, SimpleNamespace(t=torch.ones(1)), {"t": 1.0}


def of_a_helper() -> float:
    return float(PLACE.t)


def around() -> tuple[Callable[[], float], Callable[[float], None]]:
    number = 1.0

    def write(value: float) -> None:
        nonlocal number
        number = value

    return lambda: number, write


class Part(nn.Module):
    """Is read by the model it is a part of, and has no forward."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = {"t": torch.ones(2)}


class Reading(nn.Module):
    """Reads all over, and keeps what it does not read."""

    shared: ClassVar[dict[str, float]] = {"t": 1.0}

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.part = nn.Linear(3, 2), Part()
        self.table, self._hidden, self.by_name = {"t": 1.0}, [1.0], [1.0]
        self.call, self.write = around()
        self.partial = functools.partial(max, [1.0])
        self.history: list[float] = []
        self.report = {"loss": 0.0}

    def forward(self, x: Tensor) -> Tensor:
        outside = TABLE["t"][0] * LEVEL * of_a_helper() * float(os.environ.get("TEST_READ_SETTINGS", "1"))
        inside = self.table["t"] * self.divisor * getattr(self, "by_name")[0] * self.call() * self.partial()  # noqa: B009
        return self.layer(x) / outside / inside / self.part.sizes["t"] / self.shared["t"]

    @property
    def divisor(self) -> float:
        return self._hidden[0]

    def training_step(self, x: Tensor) -> Any:
        self.history.append(UNREAD["t"])
        self.report["loss"] = 1.0


def level(value: float) -> None:
    globals()["LEVEL"] = value


WRITES: dict[str, Callable[[Reading, float], Any]] = {
    "a dictionary": lambda m, value: m.table.update(t=value),
    "a new key": lambda m, value: m.table.update({f"k{value}": 1.0}),
    "a hidden list behind a property": lambda m, value: m._hidden.__setitem__(0, value),
    "an attribute by its name": lambda m, value: m.by_name.__setitem__(0, value),
    "a variable around a function": lambda m, value: m.write(value),
    "an argument of a partial": lambda m, value: m.partial.args[0].__setitem__(0, value),
    "a tensor of a part": lambda m, value: m.part.sizes["t"].fill_(value),
    "a dictionary of the class": lambda m, value: m.shared.update(t=value),
    "a dictionary of the file": lambda m, value: TABLE.update(t=[value]),
    "a number of the file": lambda m, value: level(value),
    "what a helper reads": lambda m, value: setattr(PLACE, "t", torch.full((1,), value)),
    "the environment": lambda m, value: os.environ.update(TEST_READ_SETTINGS=str(value)),
}


@pytest.mark.parametrize("write", WRITES)
def test_what_forwards_read_is_told_wherever_it_is_written(write: str) -> None:
    model = Reading()
    WRITES[write](model, 1.0)
    before = read_by_forwards(model)
    model(torch.ones(1, 3))
    assert read_by_forwards(model) == before
    WRITES[write](model, 2.0)
    assert read_by_forwards(model) != before
    WRITES[write](model, 1.0)


def test_what_a_hook_keeps_and_what_is_asked_of_the_system_are_told() -> None:
    kept = {"t": 1.0}

    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(os.getenv("TEST_READ_SETTINGS", "1"))

    model = Asking()
    model.register_forward_hook(lambda module, args, out: out * kept["t"])
    for write in (lambda v: kept.update(t=v), lambda v: os.environ.update(TEST_READ_SETTINGS=str(v))):
        write(1.0)
        before = read_by_forwards(model)
        write(2.0)
        assert read_by_forwards(model) != before


def test_what_no_forward_names_parameters_and_layers_of_torch_are_not() -> None:
    model = Reading()
    before = read_by_forwards(model)
    model.training_step(torch.ones(1, 3))
    model.layer.extra = {"t": 1.0}
    with torch.no_grad():
        model.layer.weight.add_(1)
    UNREAD["t"] += 1
    assert read_by_forwards(model) == before
    assert read_by_forwards(nn.Sequential(nn.Linear(3, 2), nn.ReLU())) == {}


def test_of_a_criterion_that_is_no_module_all_that_it_keeps_is_told() -> None:
    weights = torch.ones(3)

    def weighed(out: Tensor, y: Tensor) -> Tensor:
        return out.square().sum(1) * weights[y]

    before = kept_around(weighed)
    assert kept_around(weighed) == before
    weights.mul_(2)
    assert kept_around(weighed) != before


def test_a_forward_within_a_function_of_a_library_is_read() -> None:
    class Wrapped(nn.Module):
        @torch.autocast("cpu", enabled=False)
        def forward(self, x: Tensor) -> Tensor:
            return x / TABLE["t"][0]

    model = Wrapped()
    before = read_by_forwards(model)
    WRITES["a dictionary of the file"](Reading(), 2.0)
    assert read_by_forwards(model) != before
    WRITES["a dictionary of the file"](Reading(), 1.0)
