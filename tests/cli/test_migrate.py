"""`hushgrad migrate` prints, and writes only when it is told to."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from hushgrad.cli.main import main

SCRIPT = "from opacus import PrivacyEngine\nengine = PrivacyEngine(secure_mode=False)\n"
AFTER = "from hushgrad import PrivacyEngine\nengine = PrivacyEngine()\n"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    path.chmod(0o750)
    return path


def test_the_diff_goes_to_standard_output_and_notes_beside_it(script: Path) -> None:
    done = CliRunner().invoke(main, ["migrate", str(script)])
    assert done.exit_code == 0
    assert done.stdout.startswith("--- a/train.py\n+++ b/train.py\n")
    assert "-from opacus import PrivacyEngine\n" in done.stdout
    assert "+from hushgrad import PrivacyEngine\n" in done.stdout
    assert f"{script}:2: note: secure_mode is dropped" in done.stderr
    assert script.read_text() == SCRIPT


def test_only_write_changes_the_file_and_its_mode_stays(script: Path) -> None:
    done = CliRunner().invoke(main, ["migrate", "--write", str(script)])
    assert done.exit_code == 0
    assert script.read_text() == AFTER
    assert script.stat().st_mode & 0o777 == 0o750
    assert [path.name for path in script.parent.iterdir()] == ["train.py"]


def test_a_link_is_followed(script: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.py"
    link.symlink_to(script)
    assert CliRunner().invoke(main, ["migrate", "--write", str(link)]).exit_code == 0
    assert link.is_symlink()
    assert script.read_text() == AFTER


def test_what_is_left_to_do_by_hand_ends_with_1_and_says_what_to_do(script: Path) -> None:
    script.write_text(SCRIPT + "print(p.grad_sample)\n")
    done = CliRunner().invoke(main, ["migrate", str(script)])
    assert done.exit_code == 1
    assert f"{script}:3: by hand: .grad_sample is left. Per-example gradients are kept nowhere" in done.stderr
    assert "+from hushgrad import PrivacyEngine" in done.stdout


def test_a_file_without_opacus_needs_nothing(script: Path) -> None:
    script.write_text("import torch\n")
    done = CliRunner().invoke(main, ["migrate", "--write", str(script)])
    assert (done.exit_code, done.stdout) == (0, "")
    assert "does not import opacus" in done.stderr


def test_what_cannot_be_read_is_one_line_of_error(script: Path) -> None:
    for content, part in ((b"\xff\xfe", "UTF-8"), (b"def (", "no Python")):
        script.write_bytes(content)
        done = CliRunner().invoke(main, ["migrate", str(script)])
        assert done.exit_code == 1
        assert part in done.stderr
        assert "Traceback" not in done.stderr
