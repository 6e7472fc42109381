"""The page about extensions says what is so: its examples run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from hushgrad import DPSGD, FlatClipping, PoissonSampling, privatize
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def names_of(section: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what the examples of a section define, run from top to bottom."""
    (text,) = re.findall(
        rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    module = ModuleType("extending")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look it up
    for source in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(source, vars(module))
    return vars(module)


def test_the_operator_of_the_page_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    names = names_of("An operator", monkeypatch)
    model = names["Model"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mechanism = DPSGD(
        noise_multiplier=1, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.1), expected_batch_size=4
    )
    session = privatize(model, optimizer, mechanism)
    session.backward(model(torch.randn(4, 8)).square().sum(1))
    optimizer.step()
    assert "extending.ScaleAndShift" in str(session.guarantee(1e-5))
    session.close()


def test_the_clip_rule_of_the_page_trains_as_its_reference_says(monkeypatch: pytest.MonkeyPatch) -> None:
    names = names_of("A clip rule", monkeypatch)
    rule, session, model, before, x = (names[name] for name in ("rule", "session", "model", "before", "x"))
    assert "The clip rule was PerParameter" in str(session.guarantee(1e-5))
    runs = [lambda i=i: before(x[i : i + 1]).square().sum() for i in range(len(x))]
    wanted = clipped_sum_of(one_at_a_time(before, runs), rule)
    for (name, parameter), old in zip(model.named_parameters(), before.parameters(), strict=True):
        torch.testing.assert_close((old - parameter) * len(x), wanted[name], rtol=1e-4, atol=1e-5)
