"""What privacy costs in several processes is timed beside what it costs in one."""

import pytest
from benchmarks.parallel import ORDINARY, PRIVATE, main, measured, workload_of
from click.testing import CliRunner


def test_ordinary_and_private_steps_take_turns():
    timings = measured(workload_of("mlp", True), 1, rounds=6, warm_up=1)
    assert len(timings.seconds[ORDINARY]) == len(timings.seconds[PRIVATE]) == 6
    assert timings.ratio(PRIVATE, ORDINARY).low > 0


@pytest.mark.slow
def test_steps_in_one_process_and_in_two_are_reported():
    result = CliRunner().invoke(main, ["--workload", "mlp", "--pairs", "6", "--warm-up", "1", "--small"])
    assert result.exit_code == 0, result.output
    assert "1 process: ordinary" in result.output
    assert "2 processes: ordinary" in result.output
    assert "added by several processes: " in result.output
