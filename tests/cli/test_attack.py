"""`hushgrad attack`: losses of training records against others, of a finished run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hushgrad.cli.main import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attack") / "run"
    given = ["train", "--task", "digits", "--epsilon", "3", "--epochs", "2", "--out", str(folder)]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 0, result.output
    return folder


def test_it_prints_hits_beside_what_epsilon_allows_and_says_that_it_is_not_covered(run: Path) -> None:
    result = CliRunner().invoke(main, ["attack", str(run)])
    assert result.exit_code == 0, result.output
    assert "epsilon allows" in result.output
    assert "Not covered by epsilon" in result.output


def test_the_result_as_json_is_what_the_file_holds(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "attack.json"
    found = json.loads(CliRunner().invoke(main, ["attack", str(run), "--json", "--out", str(out)]).output)
    assert json.loads(out.read_text()) == found
    assert found["members"] > found["others"] > 0
    assert 0.3 < found["area"]["estimate"] < found["allowed_area"] < 1


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["attack", str(tmp_path)])
    assert result.exit_code == 1
    assert "DP101" in result.output
