"""Each file of the units that decide about privacy has its test at the mirrored place."""

from __future__ import annotations

from pathlib import Path

import pytest

import hushgrad

ROOT, TESTS = Path(hushgrad.__file__).parent, Path(__file__).parent

UNITS = ("capture", "checks", "guards", "session")

WITHOUT = {
    "capture/axes/recipes.py": "what pieces were made of; test_pieces tests which of them are put together",
    "guards/probing/collate_rows.py": "rows of two items of a collate function; test_companions compares them",
    "guards/probing/collate_runs.py": "runs of a collate function; test_collate_state and test_companions look at them",
    "guards/probing/examination.py": "how one call is examined; test_model_probe and test_gradient_probe ask it to",
    "guards/probing/other_widths.py": "a program at another width; test_given_padding and test_loss_padding run it",
    "guards/probing/probed.py": "a value that holds what is known of a model; test_model_probe examines it",
    "session/loop.py": "a protocol; test_declared and test_observed test the two loops that follow it",
    "session/parts.py": "a value that holds the parts; each is tested beside its own file",
    "session/privatize.py": "one call of Session, by which test_session and most other tests begin",
}
"""Files that have no test of their own, and why they need none."""


def files_of(unit: str) -> list[str]:
    """Return the files of a unit that hold code, relative to the sources."""
    return sorted(
        path.relative_to(ROOT).as_posix() for path in (ROOT / unit).rglob("*.py") if path.name != "__init__.py"
    )


def mirror_of(file: str) -> Path:
    """Return where the test of a file stands: that of a/b.py is a/test_b.py."""
    path = TESTS / file
    return path.with_name(f"test_{path.name}")


@pytest.mark.parametrize("unit", UNITS)
def test_every_file_has_its_test_at_the_mirrored_place(unit: str) -> None:
    files = files_of(unit)
    assert files
    without = {file for file in files if not mirror_of(file).is_file()}
    assert without == {file for file in WITHOUT if file.startswith(f"{unit}/")}, (
        "write a test, or say why it needs none"
    )


@pytest.mark.parametrize("unit", UNITS)
def test_every_mirrored_test_names_a_theorem(unit: str) -> None:
    empty = [
        file
        for file in files_of(unit)
        if mirror_of(file).is_file() and "\ndef test_" not in mirror_of(file).read_text(encoding="utf-8")
    ]
    assert not empty


def test_every_file_without_a_test_exists_and_has_a_reason() -> None:
    assert all((ROOT / file).is_file() and reason for file, reason in WITHOUT.items())


def test_no_test_module_of_one_name_hides_another_on_the_path() -> None:
    """Helper modules are found by their bare names, from every folder at once."""
    own = [path for path in TESTS.rglob("*.py") if not path.name.startswith(("test_", "conftest"))]
    helpers = [path for path in own if not (path.parent / "__init__.py").is_file()]  # a package has names of its own
    names = [path.name for path in helpers]
    assert not {path.as_posix() for path in helpers if names.count(path.name) > 1}
