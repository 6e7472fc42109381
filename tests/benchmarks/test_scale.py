"""How what stands beside training grows: each part runs at small sizes, and an exponent is that of a power law."""

from dataclasses import replace

import pytest
from benchmarks.scale import PARTS, Part, grown, table
from click.testing import CliRunner

from benchmarks import scale


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.title)
def test_each_part_runs_and_checks_its_own_result(part):
    sizes = (10_000, 20_000) if "draws" in part.title else (4, 8)
    found = grown(part, sizes)
    assert found.sizes == sizes
    assert all(second > 0 for second in found.seconds)


def test_the_exponent_is_that_of_the_upper_sizes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(scale.time, "perf_counter", lambda: now[0])

    def begun(size, folder):
        return lambda: now.__setitem__(0, now[0] + 1e-3 + 1e-9 * size**2)

    found = grown(Part("squares", (10, 10**5, 10**6, 10**7), begun))
    assert found.exponent == pytest.approx(2, abs=0.01)
    assert "| squares | 10, 100,000, 1,000,000, 10,000,000 |" in table([found])
    assert "| 2.00 |" in table([found])


def test_the_command_prints_a_table_and_writes_the_figures(monkeypatch, tmp_path):
    monkeypatch.setattr(scale, "PARTS", (replace(PARTS[0], sizes=(2, 4)),))
    monkeypatch.setattr(scale.torch, "set_num_threads", lambda count: None)
    result = CliRunner().invoke(scale.main, ["--json", str(tmp_path / "scale.json")])
    assert result.exit_code == 0, result.output
    assert PARTS[0].title in result.output
    assert '"exponent"' in (tmp_path / "scale.json").read_text(encoding="utf-8")
