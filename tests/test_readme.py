"""The README's code runs as it is written."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

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
