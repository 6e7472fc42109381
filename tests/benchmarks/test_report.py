"""Tables say what was measured, and pages change between their markers only."""

import io
import json

import pytest
from benchmarks.contestants import CONTESTANTS
from benchmarks.machine import Machine
from benchmarks.memory import Peak
from benchmarks.noise import NoiseTimes
from benchmarks.profile import Profile
from benchmarks.report import (
    BEGIN,
    END,
    full_markdown,
    print_results,
    replace_between_markers,
    short_markdown,
    write_between_markers,
)
from benchmarks.results import Results, WorkloadResult, contestant_results
from benchmarks.timing import Interval, Timings
from rich.console import Console


def results():
    seconds = {name: (0.010 * (place + 1),) * 6 for place, name in enumerate(CONTESTANTS)}
    peaks = dict.fromkeys(CONTESTANTS, Peak(first_step=7 << 20, later_steps=3 << 20))
    contestants = contestant_results(Timings(seconds), {**peaks, "opacus-hooks": None})
    row = {"ordinary": 1.0, "hushgrad": 1.5}
    profile = Profile({"backward": row}, {"aten::mm": row}, {"page faults": row})
    machine = Machine("Some CPU", "x86_64", "AVX2", 2, 2, 0.1, {"torch": "9.9"})
    noise = NoiseTimes(100, *[Interval(value, value, value, 0.95) for value in (4.0, 2.0, 2.0)])
    absent = {"compiled": "no compiler"}
    work = WorkloadResult("A network", 256, 1234, contestants, profile, absent, target_time=1.2, target_memory=1.1)
    return Results("python -m benchmarks --pairs 6", machine, 6, 1, "steady", {"net": work}, noise)


def test_ratios_are_to_the_ordinary_step_and_to_hushgrad():
    found = results().workloads["net"].contestants
    assert found["hushgrad"].to_ordinary.median == pytest.approx(3.0)
    assert found["opacus-ghost"].to_ordinary.median == pytest.approx(7.0)
    assert found["opacus-ghost"].to_hushgrad.median == pytest.approx(7 / 3)
    assert found["opacus-ghost"].beyond_ordinary_ms.median == pytest.approx(60.0)


def test_the_short_table_has_a_row_for_each_workload_with_machine_and_command():
    text = short_markdown(results())
    assert "| A network, B=256 | 10.00 ms | 3.00× [3.00, 3.00] | 6.00× [6.00, 6.00] hooks |" in text
    assert "| 1.00× | 1.00× ghost | 4.00×, 1.00× |" in text
    assert "2 cores (Some CPU, AVX2), 2 threads, torch 9.9" in text
    assert "`python -m benchmarks --pairs 6`" in text


def test_the_full_tables_hold_memory_profile_and_noise_and_a_dash_for_what_was_not_measured():
    text = full_markdown(results())
    for part in (
        "3.0 | 1.00 | 7.0 |",
        "ordinary, compiled: no compiler",
        "target: time ≤ 1.20×, memory ≤ 1.10×",
        "| - |",
        "| backward | 1.000 | 1.500 | +0.500 |",
        "aten::mm",
        "page faults",
        "ns/value",
    ):
        assert part in text


def test_the_terminal_shows_every_table():
    output = io.StringIO()
    print_results(results(), Console(file=output, width=150))
    for part in ("A network", "Opacus ghost", "backward", "aten::mm", "page faults", "ns/value"):
        assert part in output.getvalue()


def test_the_json_holds_every_ratio_with_its_interval():
    fields = json.loads(results().to_json())
    ratio = fields["workloads"]["net"]["contestants"]["hushgrad"]["to_ordinary"]
    assert ratio["median"] == pytest.approx(3.0)
    assert set(ratio) == {"median", "low", "high", "coverage"}
    assert fields["machine"]["versions"] == {"torch": "9.9"}
    assert fields["workloads"]["net"]["absent"] == {"compiled": "no compiler"}
    assert fields["schema"] == 2


def test_only_what_is_between_the_markers_changes_and_writing_twice_is_writing_once(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nafter ×\n", encoding="utf-8")
    write_between_markers(page, "new ×")
    once = page.read_text(encoding="utf-8")
    assert once == f"# Before\n\n{BEGIN}\nnew ×\n{END}\n\nafter ×\n"
    write_between_markers(page, "new ×")
    assert page.read_text(encoding="utf-8") == once


@pytest.mark.parametrize("page", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_page_without_one_pair_of_markers_is_refused(page):
    with pytest.raises(ValueError, match="expected one"):
        replace_between_markers(page, "new")
