"""Live bytes are counted by the storages that operators make, and by what they are."""

import pytest
import torch
from benchmarks.sharded_memory import GRADIENTS, OTHER, PARAMETERS, STATE, LiveBytes, main
from click.testing import CliRunner
from torch import nn


def test_live_bytes_are_those_of_the_storages_that_are_alive():
    model = nn.Linear(64, 32, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    live, x = LiveBytes(model, optimizer), torch.ones(8, 64)
    weight = 4 * 64 * 32
    with live:
        for _ in range(3):
            x + 1  # gone at once
        assert live.peak.at_once == {PARAMETERS: weight, OTHER: x.nbytes}
        model(x).sum().backward()
        optimizer.step()
    assert live.peak.at_once[PARAMETERS] == live.peak.most[STATE] == live.peak.most[GRADIENTS] == weight
    assert live.peak.most[OTHER] < 3 * x.nbytes + 2 * weight


@pytest.mark.slow
def test_ordinary_and_private_steps_of_a_sharded_model_are_counted():
    small = [
        "--width",
        "16",
        "--depth",
        "2",
        "--vocabulary",
        "11",
        "--positions",
        "6",
        "--rows",
        "2",
        "--checkpointing",
    ]
    result = CliRunner().invoke(main, small)
    assert result.exit_code == 0, result.output
    assert "operands" in result.output
