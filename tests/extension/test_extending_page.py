"""The page about extensions says what is so: its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from hushgrad import DPSGD, FlatClipping, PoissonSampling, privatize

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def example_of(section: str) -> dict[str, object]:
    """Run the example of a section, and return its names."""
    text = PAGE.read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    (source,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {"__name__": "extending"}
    exec(source, names)
    return names


def test_the_operator_of_the_page_trains() -> None:
    names = example_of("An operator")
    model = names["Model"]()  # type: ignore[operator]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mechanism = DPSGD(
        noise_multiplier=1, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.1), expected_batch_size=4
    )
    session = privatize(model, optimizer, mechanism)
    session.backward(model(torch.randn(4, 8)).square().sum(1))
    optimizer.step()
    assert "extending.ScaleAndShift" in str(session.guarantee(1e-5))
    session.close()


def test_the_monitor_of_the_page_watches() -> None:
    monitor = example_of("A monitor")["NormMonitor"]()  # type: ignore[operator]
    model = torch.nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mechanism = DPSGD(
        noise_multiplier=1, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.1), expected_batch_size=4
    )
    session = privatize(model, optimizer, mechanism, monitors=[monitor])
    session.backward(model(torch.randn(4, 8)).square().sum(1))
    optimizer.step()
    assert monitor.report()["steps"] == 1
    assert 0.1 < monitor.report()["largest"] < 10
    session.close()
