import os
import subprocess
import sys
from dataclasses import replace

import pytest

from hushgrad.errors import InvalidArgumentError
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.sweep.search import Space, search

optuna = pytest.importorskip("optuna")

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.sweep.search import Space, search
config = suggested_run("digits", privacy=Privacy(target_epsilon=8.0, max_grad_norm=1.0))
space = Space(learning_rate=(0.1, 1.0), max_grad_norm=(0.5, 2.0), batch_sizes=(200, 400))
search(replace(config, epochs=1), Path(sys.argv[1]), trials=3, storage=sys.argv[2], space=space)
"""


@pytest.mark.usefixtures("forked_programs")
def test_two_processes_on_one_storage_share_a_search(tmp_path):
    url = f"sqlite:///{tmp_path / 'search.db'}"
    optuna.create_study(study_name="hushgrad", storage=url, direction="maximize")
    command, one_thread = [sys.executable, "-c", SCRIPT, str(tmp_path / "out"), url], {"OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, env={**os.environ, **one_thread}) for _ in range(2)]
    assert [process.wait(timeout=600) for process in both] == [0, 0]
    study = optuna.load_study(study_name="hushgrad", storage=url)
    completed = [trial for trial in study.trials if trial.value is not None]
    assert 3 <= len(completed) <= 4
    assert len({trial.number for trial in completed}) == len(completed)
    assert all((tmp_path / "out" / f"trial-{trial.number:04d}" / "ledger.jsonl").exists() for trial in completed)
    assert all(7 < trial.user_attrs["epsilon"] <= 8 for trial in completed)


def test_a_search_goes_on_after_a_trial_that_fails_and_says_what_it_cost(tmp_path):
    config = suggested_run("digits", privacy=Privacy(target_epsilon=8.0, max_grad_norm=1.0))
    space = Space(learning_rate=(0.1, 0.1), max_grad_norm=(1.0, 1.0), batch_sizes=(400,))
    (tmp_path / "trial-0000").mkdir()
    (tmp_path / "trial-0000" / "in-the-way").touch()
    found = search(replace(config, epochs=1), tmp_path, trials=2, space=space)
    assert (found.trials, found.failed) == (2, 1)
    assert found.settings == {"learning_rate": 0.1, "max_grad_norm": 1.0, "batch_size": 400}
    assert found.epsilon <= 8 < found.together
    assert found.drawn_number > found.epsilon


def test_a_search_without_a_target_epsilon_or_with_a_bad_space_is_refused(tmp_path):
    noisy = suggested_run("digits", privacy=Privacy(noise_multiplier=1.0, max_grad_norm=1.0))
    with pytest.raises(InvalidArgumentError, match="target_epsilon: a search compares settings at the same privacy"):
        search(noisy, tmp_path, trials=1)
    with pytest.raises(InvalidArgumentError, match="LOW <= HIGH"):
        Space(learning_rate=(2.0, 1.0), max_grad_norm=(1.0, 1.0), batch_sizes=(1,))
