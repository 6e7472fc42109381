"""What each of the three rings runs: `make test`, `make test-slow`, `make test-latest`."""

from __future__ import annotations

import ast
import importlib.metadata
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TESTS = Path(__file__).parent
PROJECT = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["project"]
# What every test uses, and torch, which is not taken at its newest version.
EVERYWHERE = {"torch", "numpy", "pytest", "pytest-xdist", "hypothesis", "hushgrad"}


def other_packages() -> set[str]:
    """The names by which Python imports the packages that pyproject.toml names, without those used everywhere.

    Opacus brings folders named as some of ours; an import of `benchmarks` means ours.
    """
    texts = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    named = {canonicalize_name(Requirement(text).name) for text in texts} - EVERYWHERE
    owners = importlib.metadata.packages_distributions()
    ours = {path.name for path in TESTS.parent.iterdir()}
    return {
        name
        for name, found in owners.items()
        if name not in ours and named & {canonicalize_name(owner) for owner in found}
    }


def imported(path: Path) -> set[str]:
    """The packages that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_every_test_that_imports_another_package_is_run_against_its_newest_version(pytestconfig: pytest.Config) -> None:
    conftest = pytestconfig.pluginmanager.get_plugin(str(TESTS / "conftest.py"))
    names = other_packages()
    assert {"scipy", "sklearn", "dp_accounting", "opacus", "click"} <= names
    files = [path for path in TESTS.rglob("*.py") if imported(path) & names]
    assert len(files) > 40
    places = {path.relative_to(TESTS).parts[0] for path in files}
    assert places <= {*conftest.WITH_OTHER_PACKAGES, "test_lock.py"}
