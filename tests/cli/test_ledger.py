import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hushgrad.accounting import Contract, Ledger, PoissonSampled, epsilon
from hushgrad.cli.main import main


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["ledger", *map(str, arguments)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, contract=Contract("observed", "operating system", 40.0, 1.0, population=400)) as ledger:
        ledger.charge(PoissonSampled(0.1, 1.0), 7)
        ledger.charge(PoissonSampled(0.1, 2.0), 3)
    return path


def test_show_prints_contract_steps_and_guarantee(path: Path) -> None:
    text = _run("show", path, "--delta", "1e-5")
    assert text.exit_code == 0
    assert "poisson_sampled_gaussian" in text.output
    assert "add/remove-one" in text.output
    value = json.loads(_run("show", path, "--delta", "1e-5", "--json").output)
    assert value["epsilon"] == epsilon([(PoissonSampled(0.1, 1.0), 7), (PoissonSampled(0.1, 2.0), 3)], 1e-5)
    assert [event["count"] for event in value["events"]] == [7, 3]
    assert (value["steps"], value["population"]) == (10, 400)


def test_verify_prints_an_anchor_that_later_shows_a_cut(path: Path) -> None:
    value = json.loads(_run("verify", path, "--json").output)
    anchor = ("--anchor-record", value["last_record"], "--anchor-hash", value["last_hash"])
    assert _run("verify", path, *anchor).exit_code == 0
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert _run("verify", path).exit_code == 0
    cut = _run("verify", path, *anchor)
    assert cut.exit_code == 1
    assert "cut short" in cut.stderr


def test_every_changed_byte_of_a_ledger_is_one_clean_line_and_exit_1(path: Path) -> None:
    """Every seventh byte here, in one bit and in all; every byte in tests/accounting/test_ledger.py."""
    good = path.read_bytes()
    for place in range(0, len(good), 7):
        for flip in (1, 255):
            path.write_bytes(good[:place] + bytes([good[place] ^ flip]) + good[place + 1 :])
            result = _run("verify", path)
            assert result.exit_code == 1
            assert result.stderr.startswith("Error: ")
            assert result.stderr.count("\n") == 1


def test_a_missing_file_and_half_an_anchor_are_refused(tmp_path: Path, path: Path) -> None:
    assert _run("verify", tmp_path / "none").exit_code == 1
    assert _run("verify", path, "--anchor-record", "1").exit_code == 2


def test_show_prints_what_the_monitors_found(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, contract=Contract("observed", "operating system")) as ledger:
        ledger.charge(PoissonSampled(0.1, 1.0))
        ledger.note("noise monitor", {"steps_watched": 1, "standard_errors": 0.25, "verdict": "as charged"})
    shown = _run("show", path).stdout
    assert "noise monitor" in shown
    assert "standard errors 0.25, steps watched 1, verdict as charged" in shown
    (note,) = json.loads(_run("show", path, "--json").stdout)["notes"]
    assert note == {
        "about": "noise monitor",
        "steps": 1,
        "values": {"steps_watched": 1, "standard_errors": 0.25, "verdict": "as charged"},
    }
    assert json.loads(_run("verify", path, "--json").stdout)["verified"]


def test_show_names_the_phases_and_where_they_begin(path: Path) -> None:
    second = Contract("observed", "operating system", 60.0, 0.5, population=900)
    with Ledger(path, contract=second, phase="fine-tune") as ledger:
        ledger.charge(PoissonSampled(0.1, 2.0), 2)
    value = json.loads(_run("show", path, "--delta", "1e-5", "--json").output)
    assert value["phases"] == "'fine-tune' from step 11"
    assert value["steps"] == 12
    assert value["population"] is None
    assert "phases fixed beforehand" in [condition["name"] for condition in value["conditions"]]


def test_show_prints_the_epsilon_of_a_group_and_needs_a_delta_for_it(path: Path) -> None:
    one = json.loads(_run("show", path, "--delta", "1e-5", "--json").output)
    two = json.loads(_run("show", path, "--delta", "1e-5", "--group-size", "2", "--json").output)
    assert two["epsilon"] > 2 * one["epsilon"] > 0
    assert two["unit"] == "any 2 records together"
    assert _run("show", path, "--group-size", "2").exit_code == 2
