"""What an operator costs whose batch axis is found by measurement: once for its shapes, and then in every step.

`python -m benchmarks.measured`: processor time inside `capture/axes/measured.py`, as a share of the private step around
it, for models of several sizes that take distances to prototypes (`cdist`) or solve a system for each example.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hushgrad import DPSGD, FlatClipping, PoissonSampling, privatize
from hushgrad.capture.axes import measured, table

STEPS, WARM = 60, 10


class Prototypes(nn.Module):
    """Distances of an embedding to learned prototypes."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.register_buffer("prototypes", torch.randn(10, hidden))

    def forward(self, x: Tensor) -> Tensor:
        """Return minus the distances, `[B, 10]`."""
        return -torch.cdist(self.embed(x), self.prototypes)  # type: ignore[call-overload, no-any-return]


class Solved(nn.Module):
    """A system that is solved for each example."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.head, self.last = nn.Linear(width, hidden), nn.Linear(hidden, 10)
        self.register_buffer("matrix", torch.randn(hidden, hidden) + hidden * torch.eye(hidden))

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, 10]`."""
        solved: Tensor = torch.linalg.solve(self.matrix, self.head(x).unsqueeze(-1))
        return self.last(solved.squeeze(-1))  # type: ignore[no-any-return]


WORKLOADS: dict[str, tuple[Callable[[int, int], nn.Module], int, int, int]] = {
    "cdist, 4-8, B=5": (Prototypes, 4, 8, 5),
    "cdist, 64-64, B=32": (Prototypes, 64, 64, 32),
    "cdist, 784-1024, B=256": (Prototypes, 784, 1024, 256),
    "solve, 4-8, B=5": (Solved, 4, 8, 5),
    "solve, 64-64, B=32": (Solved, 64, 64, 32),
}


class Clock:
    """Times the rule of every measured operator."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Return the rule, timed."""

        def timed(*args: Any) -> Any:
            began = time.process_time()
            try:
                return rule(*args)
            finally:
                self.seconds += time.process_time() - began

        return timed


def shares(make: Callable[[int, int], nn.Module], width: int, hidden: int, size: int) -> tuple[float, float, float]:
    """Return the milliseconds of the first measurement, and of one step, and the share of later steps."""
    clock = Clock()
    for func in [func for func, rule in table.AXIS_RULES.items() if rule is measured.measured]:
        table.AXIS_RULES[func] = clock.over(measured.measured)
    torch.manual_seed(0)
    model = make(width, hidden)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = privatize(
        model,
        optimizer,
        DPSGD(
            noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.01), expected_batch_size=size
        ),
    )
    x, y = torch.randn(size, width), torch.randint(10, (size,))
    whole, inside, first = [], [], 0.0
    for step in range(STEPS):
        clock.seconds, began = 0.0, time.process_time()
        session.backward(nn.functional.cross_entropy(model(x), y, reduction="none"))
        optimizer.step()
        whole.append(time.process_time() - began)
        inside.append(clock.seconds)
        first = inside[0] if step == 0 else first
    session.close()
    share = statistics.median(a / b for a, b in zip(inside[WARM:], whole[WARM:], strict=True))
    for func in [func for func in table.AXIS_RULES if getattr(table.AXIS_RULES[func], "__name__", "") == "timed"]:
        table.AXIS_RULES[func] = measured.measured
    return first * 1e3, statistics.median(whole[WARM:]) * 1e3, share


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| model | first measurement | private step | share of later steps |\n| --- | ---: | ---: | ---: |")
    for name, (make, width, hidden, size) in WORKLOADS.items():
        first, step, share = shares(make, width, hidden, size)
        print(f"| {name} | {first:.1f} ms | {step:.2f} ms | {share:.2%} |")


if __name__ == "__main__":
    main()
