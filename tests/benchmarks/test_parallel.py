"""What privacy costs in several processes is timed beside what it costs in one."""

import re

import pytest
from benchmarks.parallel import DDP, FSDP2, ONE, ORDINARY, PRIVATE, main, measured, workload_of
from click.testing import CliRunner


def test_ordinary_and_private_steps_take_turns():
    timings = measured(workload_of("mlp", True), 1, rounds=6, warm_up=1)
    ordinary, private = f"{ONE}: {ORDINARY}", f"{ONE}: {PRIVATE}"
    assert set(timings.seconds) == {ordinary, private}
    assert len(timings.seconds[ordinary]) == len(timings.seconds[private]) == 6
    assert timings.ratio(private, ordinary).low > 0


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["mlp", "encoder"])
def test_steps_in_one_process_and_in_two_are_reported(workload: str):
    result = CliRunner().invoke(main, ["--workload", workload, "--pairs", "6", "--warm-up", "1", "--small"])
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if "rows in each" in line]
    assert [form in line for form, line in zip((ONE, DDP, FSDP2), lines, strict=True)] == [True] * 3
    assert [bool(re.search(r"[+-]\d+\.\d\d$", line.rstrip())) for line in lines] == [False, True, True]
