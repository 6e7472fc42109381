"""Every error says what to do now: read from the sources, so that no error can be added without its cure."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hushgrad
import hushgrad.errors

ROOT = Path(hushgrad.__file__).parent

KINDS = {
    name
    for name, kind in vars(hushgrad.errors).items()
    if isinstance(kind, type) and issubclass(kind, hushgrad.errors.HushgradError)
}


def errors_in(path: Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS
    ]


def files() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if errors_in(path))


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_error_has_a_cure_that_is_a_sentence_without_a_full_stop(path: Path) -> None:
    for error in errors_in(path):
        cure = {keyword.arg: keyword.value for keyword in error.keywords}.get("cure")
        assert cure is not None, f"line {error.lineno}: no cure"
        words = ast.unparse(cure).strip("'\"")
        if isinstance(cure, ast.Constant):
            assert words[0].isupper(), f"line {error.lineno}: {words}"
            assert not words.endswith("."), f"line {error.lineno}: {words}"


def test_a_file_without_cures_would_be_found() -> None:
    assert len(files()) > 100
    assert sum(len(errors_in(path)) for path in files()) > 400
