"""`hushgrad audit`: where its result goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hushgrad.cli.main import main

QUICK = ("audit", "--noise-multiplier", "4", "--steps", "2", "--canaries", "50", "--delta", "1e-2")


def test_the_result_is_written_into_a_folder_that_did_not_exist(tmp_path: Path) -> None:
    out = tmp_path / "run" / "audit.json"
    result = CliRunner().invoke(main, [*QUICK, "--json", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text()) == json.loads(result.stdout)


def test_an_impossible_place_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hushgrad.cli.audit.run_audit", lambda *_, **__: pytest.fail("it was measured"))
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(main, [*QUICK, "--out", str(tmp_path / "file" / "audit.json")])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: DP101 --out: ")
