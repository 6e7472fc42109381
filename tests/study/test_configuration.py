from dataclasses import replace

import pytest

from hushgrad.errors import InvalidArgumentError
from hushgrad.study.configuration import OPTIMIZERS, Privacy, suggested_run
from hushgrad.study.tasks import TASKS

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("task", TASKS)
def test_the_suggested_settings_of_every_task_are_valid(task):
    config = suggested_run(task, privacy=None)
    assert config.task == task
    assert config.optimizer in OPTIMIZERS


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"noise_multiplier": -1.0}, "noise_multiplier: must be >= 0, got -1"),
        ({"noise_multiplier": NAN}, "noise_multiplier: must be finite"),
        ({"noise_multiplier": INF}, "noise_multiplier: must be finite"),
        ({"noise_multiplier": True}, "real number, got bool"),
        ({"noise_multiplier": "1"}, "real number, got str"),
        ({"noise_multiplier": None}, "exactly one"),
        ({"target_epsilon": 3.0}, "exactly one"),
        ({"noise_multiplier": None, "target_epsilon": 0.0}, "target_epsilon: must be > 0"),
        ({"noise_multiplier": None, "target_epsilon": INF}, "target_epsilon: must be finite"),
        ({"max_grad_norm": 0.0}, "max_grad_norm: must be > 0"),
        ({"max_grad_norm": INF}, "max_grad_norm: must be finite"),
        ({"max_grad_norm": NAN}, "max_grad_norm: must be finite"),
        ({"clipping": "ghost"}, "clipping: must be one of"),
        ({"clipping": "quantile:quantile=2"}, "quantile: must be in"),
        ({"clipping": 1.0}, "clipping: must be the name of a clip rule, got float"),
        ({"delta": 0.0}, "delta: must be in"),
        ({"delta": 1.0}, "delta: must be in"),
        ({"delta": NAN}, "delta: must be finite"),
    ],
)
def test_bad_privacy_settings_are_refused(changes, said):
    with pytest.raises(InvalidArgumentError, match=said):
        Privacy(**{"noise_multiplier": 1.0, "max_grad_norm": 1.0, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "x"}, "task: must be one of"),
        ({"model": "x"}, "model: must be one of"),
        ({"optimizer": "lbfgs"}, "optimizer: must be one of"),
        ({"loss_reduction": "none"}, "loss_reduction: must be one of"),
        ({"batch_size": 0}, "batch_size: must be >= 1"),
        ({"batch_size": 2.5}, "whole number, got float"),
        ({"epochs": 0}, "epochs: must be >= 1"),
        ({"max_physical_batch_size": 0}, "max_physical_batch_size: must be >= 1"),
        ({"hidden_sizes": (0,)}, "each width of hidden_sizes: must be >= 1"),
        ({"learning_rate": 0.0}, "learning_rate: must be > 0"),
        ({"learning_rate": NAN}, "learning_rate: must be finite"),
        ({"momentum": 1.0}, "momentum: must be in"),
        ({"seed": -1}, "seed: must be >= 0"),
        ({"augmentations": -1}, "augmentations: must be >= 0"),
        ({"augmentations": 1.5}, "whole number, got float"),
        ({"task": "csv", "augmentations": 2}, "task 'csv' has no images to augment"),
        ({"average_decay": 1.0}, "average_decay: must be in"),
        ({"threads": 0}, "threads: must be >= 1"),
        ({"device": "abacus"}, "device must be one that is here"),
        ({"device": "cuda:99"}, "device must be one that is here"),
        ({"device": "meta"}, "device must hold data"),
    ],
)
def test_bad_settings_are_refused_before_data_is_read(changes, said):
    with pytest.raises(InvalidArgumentError, match=said):
        replace(suggested_run("digits", privacy=None), **changes)


def test_a_batch_size_that_nobody_chose_is_at_most_a_fourth_of_the_data():
    found = suggested_run("mnist", privacy=None).batch_size
    assert suggested_run("mnist", privacy=None, population=4 * found).batch_size == found
    assert suggested_run("mnist", privacy=None, population=1603).batch_size == 400 < found
    assert suggested_run("mnist", privacy=None, population=1).batch_size == 1
