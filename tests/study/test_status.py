import json
import math
import shutil
from dataclasses import replace
from hashlib import sha256

import pytest
from click.testing import CliRunner

from hushgrad.accounting import Gaussian, PoissonSampled, epsilon
from hushgrad.accounting.guarantee import round_up
from hushgrad.accounting.ledger.contract import OBSERVED, OPERATING_SYSTEM, Contract
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.cli.main import main
from hushgrad.errors import InvalidArgumentError
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.directory import RunDirectory
from hushgrad.study.occupied import require_no_run
from hushgrad.study.provenance import provenance_of, read_provenance
from hushgrad.study.run import Reporter, run
from hushgrad.study.status import beside, status_of

STEP = PoissonSampled(0.1, 1.5)
DELTA = 1e-5


def account(folder, steps, event=STEP, data=None, status="completed"):
    """A folder as a run of so many steps leaves it, on the data in the file `data`."""
    folder.mkdir(parents=True)
    with Ledger(folder / "ledger.jsonl", contract=Contract(OBSERVED, OPERATING_SYSTEM, population=1000)) as ledger:
        for _ in range(steps):
            ledger.charge(event)
    directory = RunDirectory(folder)
    if data is not None:
        directory.write_provenance(provenance_of(data, None))
        directory.write_summary({"status": status, "task": "csv", "steps": steps})
    return folder


@pytest.fixture
def files(tmp_path):
    """Two files of data."""
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text(f"{name}\n1\n")
    return tmp_path / "a.csv", tmp_path / "b.csv"


def test_the_epsilon_of_a_data_set_is_that_of_all_ledgers_on_it(files, tmp_path):
    """Guarantee: the ε of a data set is that of all releases in all ledgers on it, each counted once."""
    runs = tmp_path / "runs"
    account(runs / "one", 10, data=files[0])
    account(runs / "deep" / "two", 20, data=files[0])
    account(runs / "three", 5, data=files[1])
    first, second = sorted(status_of(runs, DELTA), key=lambda data: data.name)
    assert (first.name, second.name) == ("a.csv", "b.csv")
    assert first.private == pytest.approx(epsilon([(STEP, 30)], DELTA), rel=1e-6)
    assert second.private == pytest.approx(epsilon([(STEP, 5)], DELTA), rel=1e-6)
    assert [one.place for one in first.runs] == ["deep/two", "one"]
    assert first.runs[0].epsilon == pytest.approx(epsilon([(STEP, 20)], DELTA), rel=1e-6)


def test_a_ledger_whose_data_are_not_known_counts_with_every_data_set(files, tmp_path):
    runs = tmp_path / "runs"
    account(runs / "one", 10, data=files[0])
    account(runs / "two", 10, data=files[1])
    account(runs / "of nobody", 7)
    for data in status_of(runs, DELTA):
        assert data.private == pytest.approx(epsilon([(STEP, 17)], DELTA), rel=1e-6)


def test_a_copy_counts_once_and_a_copy_that_was_continued_counts_for_itself(files, tmp_path, monkeypatch):
    monkeypatch.setenv("HUSHGRAD_STATE", "off")  # this machine then lets a copy be continued
    runs = tmp_path / "runs"
    original = account(runs / "one", 10, data=files[0])
    shutil.copytree(original, runs / "copy")
    (data,) = status_of(runs, DELTA)
    assert data.private == pytest.approx(epsilon([(STEP, 10)], DELTA), rel=1e-6)
    for folder, event in ((original, STEP), (runs / "copy", Gaussian(5.0))):
        ledger = Ledger(folder / "ledger.jsonl", contract=Contract(OBSERVED, OPERATING_SYSTEM, population=1000))
        with ledger as opened:
            opened.charge(event)
    (data,) = status_of(runs, DELTA)
    assert len(data.runs) == 2
    assert data.private >= epsilon([(STEP, 21), (Gaussian(5.0), 1)], DELTA) * (1 - 1e-6)


def test_a_run_without_a_ledger_and_one_that_cannot_be_read_are_told(files, tmp_path):
    runs = tmp_path / "runs"
    account(runs / "one", 3, data=files[0])
    damaged = account(runs / "damaged", 3, data=files[0])
    (damaged / "ledger.jsonl").write_text("no ledger\n")
    ordinary = RunDirectory(account(runs / "ordinary", 3, data=files[0]))
    ordinary.ledger.unlink()
    ordinary.write_config({})
    (data,) = status_of(runs, DELTA)
    assert {one.place: one.status for one in data.runs}["damaged"] == "unreadable"
    assert data.ordinary == 2
    assert all(math.isinf(one.epsilon) for one in data.runs if one.place != "one")
    told = CliRunner().invoke(main, ["status", str(runs)]).output
    assert "2 of these runs have no ledger that can be read" in told
    assert "ε of 1 ledger: " in told


def test_runs_beside_one_on_the_same_data_are_summed_with_it(files, tmp_path):
    runs = tmp_path / "runs"
    first = account(runs / "one", 10, data=files[0])
    assert beside(first, DELTA) is None
    account(runs / "two", 10, data=files[0])
    account(runs / "three", 10, data=files[1])
    found = beside(first, DELTA)
    assert [one.place for one in found.runs] == ["one", "two"]
    assert found.private == pytest.approx(epsilon([(STEP, 20)], DELTA), rel=1e-6)
    assert beside(account(tmp_path / "elsewhere" / "of nobody", 3), DELTA) is None


def test_the_command_says_it_for_people_and_programs(files, tmp_path):
    runs = tmp_path / "runs"
    account(runs / "one", 10, data=files[0])
    account(runs / "two", 10, data=files[0])
    told = CliRunner().invoke(main, ["status", str(runs)])
    assert told.exit_code == 0
    assert "Data: a.csv" in told.output
    assert "ε of all 2 ledgers together: " in told.output
    assert max(map(len, told.output.splitlines())) <= 120
    (data,) = json.loads(CliRunner().invoke(main, ["status", str(runs), "--json"]).output)["data"]
    assert data["epsilon_together"] == pytest.approx(epsilon([(STEP, 20)], DELTA), rel=1e-6)
    (tmp_path / "empty").mkdir()
    assert "no run and no ledger" in CliRunner().invoke(main, ["status", str(tmp_path / "empty")]).output


def test_a_refusal_of_a_folder_says_what_its_run_has_spent_and_how_to_go_on(tmp_path):
    """Guarantee: no run overwrites another, and a refusal names what the run in the folder has spent."""
    privacy = Privacy(noise_multiplier=3.0, max_grad_norm=1.0)
    config = replace(suggested_run("digits", privacy=privacy), batch_size=400, epochs=2)

    def stop(step):
        if step == 3:
            raise RuntimeError("stopped")

    out = tmp_path / "run of mine"
    with pytest.raises(RuntimeError):
        run(config, out, Reporter(on_step=stop))
    with pytest.raises(InvalidArgumentError) as refused:
        run(config, out)
    spent = epsilon([(PoissonSampled(400 / 1438, 3.0), 3)], DELTA)
    assert f"ε = {round_up(spent)} at δ = 1e-05" in str(refused.value)
    assert f"hushgrad train --resume '{out}'" in str(refused.value)


def test_a_folder_of_other_files_is_refused_as_before(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgumentError, match="must be new or empty"):
        require_no_run(tmp_path)
    require_no_run(tmp_path / "new")


def test_provenance_has_the_name_and_the_digest_of_a_file_and_no_place(files, tmp_path):
    found = provenance_of(files[0], "Ada")
    assert found["data"]["name"] == "a.csv"
    assert found["data"]["sha256"] == sha256(files[0].read_bytes()).hexdigest()
    assert str(tmp_path) not in json.dumps(found)
    assert found["by"] == "Ada"
    assert provenance_of(files[0], None)["by"] is None
    assert found["not_covered"] == ["sha256"]


def test_the_digest_of_a_folder_is_of_its_files_by_name(tmp_path):
    place = tmp_path / "data"
    (place / "sub").mkdir(parents=True)
    (place / "sub" / "one").write_text("1")
    (place / "two").write_text("2")
    before = provenance_of(place, None)["data"]
    assert (before["name"], before["files"], before["bytes"]) == ("data", 2, 2)
    lines = "".join(f"{sha256(text).hexdigest()}  {name}\n" for name, text in (("sub/one", b"1"), ("two", b"2")))
    assert before["sha256"] == sha256(lines.encode()).hexdigest()


def test_damaged_provenance_is_refused_and_missing_one_is_none(tmp_path):
    assert read_provenance(tmp_path / "provenance.json") is None
    (tmp_path / "provenance.json").write_text('{"started": 1}')
    with pytest.raises(InvalidArgumentError, match="damaged"):
        read_provenance(tmp_path / "provenance.json")
