"""The page about extensions says what is so: its examples run."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from hushgrad import DPSGD, FlatClipping, Mechanism, PoissonSampling, Session, privatize
from hushgrad.accounting import accountants as table
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
REST: dict[str, Any] = {"clipping": FlatClipping(1.0), "expected_batch_size": 4}


def names_of(section: str) -> dict[str, Any]:
    """Return what the example of a section defines."""
    (text,) = re.findall(
        rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    names: dict[str, Any] = {"__name__": "extending"}
    for source in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(source, names)
    return names


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page defines has a module, as dataclasses want."""
    monkeypatch.setitem(sys.modules, "extending", types.ModuleType("extending"))


def one_pass(mechanism: Mechanism) -> Session:
    """Train for ten steps; the session stays open."""
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = privatize(model, optimizer, mechanism)
    for (inputs,) in session.batches(TensorDataset(torch.randn(40, 8))):
        session.backward(model(inputs).square().sum(1))
        optimizer.step()
    return session


def test_the_operator_of_the_page_trains() -> None:
    model = names_of("An operator")["Model"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = privatize(model, optimizer, DPSGD(noise_multiplier=1, sampling=PoissonSampling(0.1), **REST))
    session.backward(model(torch.randn(4, 8)).square().sum(1))
    optimizer.step()
    assert "extending.ScaleAndShift" in str(session.guarantee(1e-5))
    session.close()


def test_the_clip_rule_of_the_page_trains_as_its_reference_says() -> None:
    names = names_of("A clip rule")
    rule, session, model, before, x = (names[name] for name in ("rule", "session", "model", "before", "x"))
    assert "The clip rule was extending.PerParameter" in str(session.guarantee(1e-5))
    runs = [lambda i=i: before(x[i : i + 1]).square().sum() for i in range(len(x))]
    wanted = clipped_sum_of(one_at_a_time(before, runs), rule)
    for (name, parameter), old in zip(model.named_parameters(), before.parameters(), strict=True):
        torch.testing.assert_close((old - parameter) * len(x), wanted[name], rtol=1e-4, atol=1e-5)


def test_the_sampling_scheme_of_the_page_trains() -> None:
    scheme = names_of("A sampling scheme")["FixedSize"](4, 40)
    session = one_pass(DPSGD(noise_multiplier=1, sampling=scheme, **REST))
    assert 0 < session.epsilon(1e-5, "rdp") < 20
    told = str(session.guarantee(1e-5, "rdp"))
    assert "exactly 4 of 40 records in every step" in told
    assert "extending.FixedSize" in told
    session.close()


def test_the_noise_mechanism_of_the_page_trains() -> None:
    noise = names_of("A noise mechanism")["TwoParties"](1.1)
    session = one_pass(Mechanism(noise=noise, sampling=PoissonSampling(0.1), **REST))
    ours = DPSGD(noise_multiplier=1.1, sampling=PoissonSampling(0.1), steps=10, **REST)
    assert session.epsilon(1e-5) == ours.epsilon(1e-5)
    assert "extending.TwoParties" in str(session.guarantee(1e-5))
    session.close()


def test_the_monitor_of_the_page_watches() -> None:
    monitor = names_of("A monitor")["NormMonitor"]()
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mechanism = DPSGD(noise_multiplier=1, sampling=PoissonSampling(0.1), **REST)
    session = privatize(model, optimizer, mechanism, monitors=[monitor])
    session.backward(model(torch.randn(4, 8)).square().sum(1))
    optimizer.step()
    assert monitor.report()["steps"] == 1
    assert 0.1 < monitor.report()["largest"] < 10
    session.close()


def test_the_accountant_of_the_page_bounds_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_KNOWN", dict(table._KNOWN))
    monkeypatch.setattr(table, "ACCOUNTANTS", table._KNOWN)
    names_of("An accountant")
    mechanism = DPSGD(noise_multiplier=1.1, sampling=PoissonSampling(0.1), steps=10, **REST)
    assert mechanism.epsilon(1e-5) < mechanism.epsilon(1e-5, "zcdp") < 20


def test_the_adapter_of_the_page_trains() -> None:
    fit = names_of("A framework adapter")["fit"]
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = privatize(model, optimizer, DPSGD(noise_multiplier=1, sampling=PoissonSampling(0.1), **REST))
    data = TensorDataset(torch.randn(40, 8), torch.randn(40, 2))
    loader = session.batches(data, max_physical_batch_size=2)
    fit(session, model, optimizer, loader, lambda outputs, y: (outputs - y).square().mean(1))
    assert session.steps == len(loader) == 10
    session.close()
