"""The README's code runs as it is written."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_first_block_trains_and_prints_its_guarantee(capsys):
    exec(compile(BLOCKS[0], "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "differential privacy" in printed
    assert "add/remove-one" in printed


def test_the_block_of_the_custom_loop_takes_a_private_step():
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.weight.detach().clone()
    losses_of = BLOCKS[1].replace("session.backward(losses)", "session.backward(model(x).squeeze(1).square())")
    names = {"model": model, "optimizer": optimizer, "x": torch.randn(5, 4)}
    exec(compile(losses_of, "README.md", "exec"), names)
    assert names["session"].steps == 1
    assert not torch.equal(model.weight, before)


def test_the_block_of_logical_batches_takes_one_step_for_each():
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = {
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99),
        "dataset": TensorDataset(torch.randn(50_000, 4), torch.randn(50_000, 1)),
        "losses_of": lambda outputs, y: (outputs - y).square().squeeze(1),
    }
    exec(compile(BLOCKS[1].split("session.backward")[0], "README.md", "exec"), names)
    exec(compile(BLOCKS[2], "README.md", "exec"), names)
    assert names["session"].steps == len(names["loader"]) == 100
    assert names["scheduler"].last_epoch == 100
