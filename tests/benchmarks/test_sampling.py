"""The times of draws: what is timed is a draw of the library's own sampler and an item of its own loader."""

from benchmarks.sampling import draw_times, item_times, main, table
from click.testing import CliRunner

from benchmarks import sampling


def test_draws_and_items_are_timed():
    found = draw_times(10_000, 1e-2, rounds=20)
    assert 0 < found.draw.low <= found.draw.median <= found.draw.high
    assert found.set_up > 0
    assert "| 1e+04 | 0.01 | 100 |" in table([found])
    for constant_shapes in (False, True):
        assert item_times(10_000, 1e-2, rounds=20, constant_shapes=constant_shapes).median > 0


def test_the_command_prints_a_row_for_each_case(monkeypatch):
    monkeypatch.setattr(sampling, "CASES", ((1000, 0.1), (2000, 0.1)))
    monkeypatch.setattr(sampling, "ITEM_CASES", ((1000, 0.1),))
    monkeypatch.setattr(sampling.torch, "set_num_threads", lambda count: None)
    result = CliRunner().invoke(main, ["--rounds", "20"])
    assert result.exit_code == 0, result.output
    assert result.output.count("\n|") == 3
    assert "constant shapes, truncated" in result.output
