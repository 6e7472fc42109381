"""The page of `make bench`: its time is divided, other programs are counted, and what was found stands on it."""

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from benchmarks.allocators import STEADY_ALLOCATOR, environment_of, is_steady
from benchmarks.contestants import CONTESTANTS, HUSHGRAD, ORDINARY
from benchmarks.growth import Axis
from benchmarks.machine import Machine
from benchmarks.page.budget import LIGHT_FIRST, MOST_ROUNDS, in_order, rounds_within
from benchmarks.page.document import fastest, html, summary
from benchmarks.page.others import busy_seconds, share_of_others
from benchmarks.page.results import Found, GrowthFound, WorkloadFound
from benchmarks.page.run import Plan, WorkerError, _worker
from benchmarks.page.worker import Figure, Part, measure, measure_growth, part_of
from benchmarks.timing import FEWEST_ROUNDS, Interval
from benchmarks.workloads import SMALL, WORKLOADS, encoder

ROOT = Path(__file__).resolve().parents[2]
MACHINE = Machine("Some CPU", "x86_64", "AVX2", 2, 2, 0.1, {"torch": "9.9"})

pytestmark = pytest.mark.filterwarnings("ignore::hushgrad.errors.HushgradWarning", "ignore:Full backward hook")


def figure(ratio, width=0.01):
    return Figure(
        Interval(10 * ratio, 9 * ratio, 11 * ratio, 0.97), Interval(ratio, ratio - width, ratio + width, 0.97)
    )


def found(others=0.01, **more):
    figures = {ORDINARY: figure(1.0), HUSHGRAD: figure(1.2), "opacus-hooks": figure(1.9), "torch-func": figure(1.21)}
    parts = {name: Part(7, figures, {"opacus-ew": "RuntimeError: <no rule>"}) for name in ("default", "steady")}
    work = WorkloadFound("net", 8, parts, others)
    growth = GrowthFound({"depth L": "<svg/>"}, [["grows with", "range"], ["depth L", "1 … 4"]], {}, 0.0)
    missing = {"fastdp": "not here", "fastdp-origin": "not here"}
    whole = Found("python -m benchmarks.page", "today", 10.0, 9.5, MACHINE, missing, None, {"net": work}, growth)
    return replace(whole, **more)


def test_every_workload_has_its_place_in_the_order():
    assert sorted(LIGHT_FIRST) == sorted(WORKLOADS)
    assert in_order(["encoder", "a new one", "cnn"]) == ["cnn", "encoder", "a new one"]


def test_rounds_fill_the_time_and_the_slowest_make_room_until_the_fewest_rounds_fit():
    step_seconds = {"ordinary": 1.0, "hushgrad": 1.0, "quick": 1.0, "slow": 7.0, "slower": 50.0}
    assert rounds_within(60 * 10, step_seconds, ()).left_out == {}
    room = rounds_within(60, step_seconds, ("ordinary", "hushgrad"))
    assert room.left_out == {"slower": 50.0}
    assert room.count == FEWEST_ROUNDS
    assert rounds_within(30, step_seconds, ("ordinary", "hushgrad")).count == 10
    assert rounds_within(1e9, step_seconds, ()).count == MOST_ROUNDS
    # Whoever must stay does, and the fastest peer, however long it takes.
    late = rounds_within(-5, step_seconds, ("ordinary", "hushgrad"))
    assert late.count == FEWEST_ROUNDS
    assert set(late.left_out) == {"slow", "slower"}


def test_others_are_what_is_busy_beyond_this_program_and_its_children():
    # Columns: user nice system idle iowait irq softirq steal guest; hundredths of a second.
    stat = "cpu 9 9 9 9\ncpu0 100 10 20 999 50 3 4 13 0\ncpu1 7 0 0 999\ncpu10 500 0 0 0\nintr 5\n"
    assert busy_seconds(stat, frozenset({0}), 100.0) == pytest.approx(1.5)
    assert busy_seconds(stat, frozenset({0, 1}), 100.0) == pytest.approx(1.57)
    assert share_of_others(12.0, 4.0, 10.0, 2) == pytest.approx(0.4)
    assert share_of_others(3.99, 4.0, 10.0, 2) == 0.0
    assert share_of_others(0.0, 4.0, 10.0, 2) is None  # a system that counts nothing, as some sandboxes do


def test_the_default_allocator_is_without_settings_and_the_tuned_one_has_them(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "77")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=77")
    default, steady = environment_of("default"), environment_of("steady")
    assert not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in default)
    assert is_steady(steady)
    assert not is_steady(default)
    assert set(steady) - set(default) == set(STEADY_ALLOCATOR)


def test_a_part_has_everybody_who_can_and_the_second_one_the_same(monkeypatch):
    def broken(workload, noise_multiplier):
        raise NotImplementedError("no rule")

    monkeypatch.setitem(CONTESTANTS, "torch-func", replace(CONTESTANTS["torch-func"], build=broken))
    names = [ORDINARY, HUSHGRAD, "opacus-hooks", "torch-func"]
    first = measure(SMALL["mlp"], names, time.time(), None)
    assert first.rounds == FEWEST_ROUNDS
    assert list(first.figures) == names[:3]  # no time is left, and yet nobody is left out of so light a workload
    assert first.absent == {"torch-func": "NotImplementedError: no rule"}
    assert first.figures[ORDINARY].to_ordinary.median == 1.0
    second = measure(SMALL["mlp"], names, time.time(), first.absent)
    assert list(second.figures) == names[:3]
    assert part_of(json.loads(json.dumps(asdict(second)))) == second


def test_growth_is_drawn_and_tabled_for_each_axis():
    pytest.importorskip("matplotlib")
    axis = Axis("batch size B", (1, 2, 3), lambda size: encoder(size, 4, 8, 1, vocabulary=7, heads=2))
    grown = measure_growth({"batch": axis}, time.time() + 1, MACHINE)
    assert "<svg" in grown["drawings"]["batch size B"]
    assert [row[0] for row in grown["rows"]] == ["step time grows with", "batch size B"]
    assert grown["figures"]["batch"]["pairs"] >= FEWEST_ROUNDS
    json.dumps(grown)


def test_the_page_holds_both_allocators_machine_absentees_and_drawings_in_one_file():
    page = html(found())
    for expected in (">default allocator</th>", ">tuned allocator</th>"):
        assert page.count(expected) == 2  # in short, and for the workload
    for expected in ("Some CPU", "torch 9.9", "1.20×", "1.19–1.21", "Opacus hooks", "data:image/svg+xml;base64,"):
        assert expected in page
    assert "Opacus ew took no part: RuntimeError: &lt;no rule&gt;" in page
    assert "fastDP and fastDP, origin: not here" in page
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page


def test_other_programs_are_said_on_the_page_and_only_then():
    assert "Other programs" not in html(found(others=0.01))
    page = html(found(others=0.4))
    assert page.count("40%") == 2  # on top and beside the figures
    unknown = found(others=None)
    assert "Other programs" not in html(unknown)
    assert "Other programs were running" in html(replace(unknown, machine=replace(MACHINE, load_per_core=1.5)))


def test_small_networks_are_said_to_be_no_measurement():
    assert "sizes of tests" in html(found(small=True))
    assert "sizes of tests" not in html(found())


def test_without_a_second_allocator_the_page_says_why():
    whole = found(one_allocator="this system's allocator is not glibc's")
    work = whole.workloads["net"]
    alone = replace(work, parts={"default": work.parts["default"]})
    page = html(replace(whole, workloads={"net": alone}))
    assert "this system&#39;s allocator is not glibc&#39;s" in page
    assert "tuned allocator" not in page


def test_marked_is_the_fastest_private_contestant_and_who_cannot_be_told_from_it():
    figures = {ORDINARY: figure(1.0), "a": figure(1.2), "b": figure(1.215), "c": figure(1.5)}
    assert fastest(figures) == {"a", "b"}
    assert fastest({ORDINARY: figure(1.0), "a": figure(1.2)}) == set()
    ours, peer = summary(found())[0].cells[:2]
    assert (ours.value, ours.is_fastest) == ("1.20×", True)
    assert (peer.value, peer.interval, peer.is_fastest) == ("1.21×", "whole-model torch.func", True)


def test_a_workload_that_was_not_measured_has_its_reason_on_the_page():
    broken = WorkloadFound("net", 8, {}, None, "its process was ended by signal 9: often too little memory")
    assert "Not measured to the end: its process was ended by signal 9" in html(found(workloads={"net": broken}))


def test_the_figures_are_written_without_the_drawings():
    fields = json.loads(found().to_json())
    assert fields["workloads"]["net"]["parts"]["steady"]["figures"][HUSHGRAD]["to_ordinary"]["median"] == 1.2
    assert fields["growth"] == {"figures": {}, "others": 0.0, "error": None}


def test_a_worker_that_fails_is_an_error_with_its_last_words():
    plan = Plan(time.time(), ["mlp"], [ORDINARY], [], 1, None, True)
    with pytest.raises(WorkerError, match="nobody"):
        _worker(
            plan, {"job": "workload", "workload": "nobody", "contestants": [], "until": 0.0, "absent": {}}, "default"
        )


@pytest.mark.slow
def test_the_command_writes_one_page_and_its_figures(tmp_path):
    arguments = "--small --minutes 0.2 --workload mlp --contestant opacus-hooks --axis depth --threads 1 --out"
    command = [sys.executable, "-m", "benchmarks.page", *arguments.split(), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    fields = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    parts = fields["workloads"]["mlp"]["parts"]
    assert {name: list(part["figures"]) for name, part in parts.items()} == {
        "default": [ORDINARY, HUSHGRAD, "opacus-hooks"],
        "steady": [ORDINARY, HUSHGRAD, "opacus-hooks"],
    }
    assert str(tmp_path) not in fields["command"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("data:image/svg+xml") == 1
