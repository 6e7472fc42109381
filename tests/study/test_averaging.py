from dataclasses import replace

import pytest
import torch
from torch import nn

from hushgrad.errors import InvalidArgumentError
from hushgrad.study.averaging import ParameterAverage
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.outcome import Callbacks
from hushgrad.study.scoring import score
from hushgrad.study.tasks import TaskOptions, load_task
from hushgrad.study.training import train


def test_the_average_forgets_early_steps_soon_and_late_ones_by_its_decay():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = ParameterAverage(model, 0.5)
    expected = 0.0
    for step in range(1, 30):
        model.weight.data.fill_(float(step))
        average.update(model)
        kept = min(0.5, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * step
    assert average.model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == 29.0


def test_buffers_are_as_they_are_now():
    model = nn.Module()
    model.register_buffer("seen", torch.zeros(2))
    average = ParameterAverage(model, 0.9)
    model.seen.fill_(3.0)
    average.update(model)
    assert average.model.seen.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, float("nan")])
def test_a_decay_that_is_no_share_is_refused(decay):
    with pytest.raises(InvalidArgumentError, match="average_decay: must be"):
        ParameterAverage(nn.Linear(1, 1), decay)


@pytest.mark.parametrize("privacy", [None, Privacy(noise_multiplier=2.0, max_grad_norm=1.0)])
def test_what_is_tested_and_given_back_is_the_average(privacy):
    pytest.importorskip("sklearn")
    task = load_task("digits", TaskOptions())
    config = replace(suggested_run("digits", privacy=privacy), epochs=3, average_decay=0.9)
    model, outcome = train(config, task, Callbacks())
    assert outcome.test_accuracy == score(model, task.test, "cpu").accuracy
    if privacy is None:
        last, _ = train(replace(config, average_decay=0.0), task, Callbacks())
        difference = nn.utils.parameters_to_vector(model.parameters()) - nn.utils.parameters_to_vector(
            last.parameters()
        )
        assert difference.norm() > 1e-3
