"""The way back to an open session, and the story it is for: a notebook cell that runs twice."""

from __future__ import annotations

import contextlib
import gc
import itertools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from private_loops import attach
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad
from hushgrad import PrivacyEngine, session_of
from hushgrad.errors import InvalidArgumentError, ProtocolError


def test_the_session_is_found_by_its_model_a_part_a_whole_and_its_optimizer() -> None:
    model, optimizer, session = attach()
    for known in (model, model[0], nn.Sequential(nn.Tanh(), model), optimizer):
        assert session_of(known) is session
    session.close()
    for known in (model, optimizer):
        with pytest.raises(ProtocolError, match="no open session owns this"):
            session_of(known)


def test_what_belongs_to_no_session_or_to_several_is_refused() -> None:
    (one, _, first), (two, optimizer, second) = attach(), attach()
    with pytest.raises(ProtocolError, match="belong to 2 open sessions"):
        session_of(nn.ModuleList([one, two]))
    with pytest.raises(ProtocolError, match="no open session owns this model"):
        session_of(nn.Linear(2, 2))
    with pytest.raises(InvalidArgumentError, match="must be a model or an optimizer, got Session"):
        session_of(first)  # type: ignore[arg-type]
    assert session_of(optimizer) is second


def test_a_session_that_nobody_holds_is_not_kept_for_this() -> None:
    model, optimizer, session = attach()
    gone = weakref.ref(session)
    del model, optimizer, session
    gc.collect()
    assert gone() is None


class Notebook:
    """The names of a notebook, and its cells, which run in any order and as often as one likes."""

    def __init__(self, ledger: Path | None) -> None:
        self.names: dict[str, Any] = {"torch": torch, "nn": nn, "hushgrad": hushgrad, "PrivacyEngine": PrivacyEngine}
        self.names |= {"data": TensorDataset(torch.randn(16, 3)), "DataLoader": DataLoader, "ledger": ledger}
        self.run("model = nn.Linear(3, 2)")
        self.run("optimizer = torch.optim.SGD(model.parameters(), lr=0.1)")

    def run(self, cell: str) -> None:
        exec(cell, self.names)

    def make_private(self) -> None:
        self.run(
            "engine = PrivacyEngine(ledger=ledger)\n"
            "_, _, loader = engine.make_private(module=model, optimizer=optimizer, "
            "data_loader=DataLoader(data, batch_size=4), noise_multiplier=1.0, max_grad_norm=1.0)"
        )

    def train(self) -> None:
        self.run(
            "for (x,) in loader:\n"
            "    engine.session.backward(model(x).square().sum(1))\n"
            "    optimizer.step()\n"
            "    optimizer.zero_grad()"
        )


@pytest.mark.parametrize("ledger", [True, False])
@pytest.mark.parametrize("known", ["model", "optimizer"])
def test_a_cell_that_ran_twice_runs_again_after_the_session_was_found_and_closed(
    ledger: bool, known: str, tmp_path: Path
) -> None:
    notebook = Notebook(tmp_path / "ledger" if ledger else None)
    notebook.make_private()
    notebook.train()
    with pytest.raises(ProtocolError, match=r"DP203 .* private already.*hushgrad\.session_of\(model\)\.close\(\)"):
        notebook.make_private()  # `engine` is another one by now
    weights = notebook.names["model"].weight.detach().clone()
    notebook.run(f"hushgrad.session_of({known}).close()")
    assert torch.equal(notebook.names["model"].weight, weights)
    notebook.make_private()
    notebook.train()
    engine = notebook.names["engine"]
    assert engine.session.steps == (8 if ledger else 4)
    assert ("4 earlier steps of this model" in str(engine.guarantee(1e-5))) is not ledger


ACTIONS: dict[str, Callable[[Notebook], None]] = {
    "make private": Notebook.make_private,
    "make private again": Notebook.make_private,
    "close": lambda notebook: notebook.run("hushgrad.session_of(model).close()"),
    "train": Notebook.train,
    "a new optimizer": lambda n: n.run("optimizer = torch.optim.SGD(model.parameters(), lr=0.1)"),
}


# "make private" and "make private again" are one action: of two orders that differ in which comes first, one is run.
ORDERS = [
    order
    for order in itertools.permutations(ACTIONS)
    if order.index("make private") < order.index("make private again")
]


@pytest.mark.parametrize("order", ORDERS, ids=", ".join)
def test_in_whatever_order_cells_run_closing_and_making_private_again_continues_one_account(
    order: tuple[str, ...], tmp_path: Path
) -> None:
    """Whatever a cell out of turn raises is a typed error, or Python's that a name is not there yet."""
    notebook = Notebook(tmp_path / "ledger")
    trained = 0
    for name in order:
        try:
            ACTIONS[name](notebook)
        except (hushgrad.errors.HushgradError, NameError):
            continue
        trained += name == "train"
    with contextlib.suppress(ProtocolError):  # none is open in some orders
        session_of(notebook.names["model"]).close()
    notebook.make_private()
    notebook.train()
    assert notebook.names["engine"].session.steps == 4 * (trained + 1)
    assert "earlier step" not in str(notebook.names["engine"].guarantee(1e-5))
