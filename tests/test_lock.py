"""The lock pins every package that development needs, and the Makefile checks what it covers."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "constraints.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(line.split("==") for line in LOCK.splitlines() if not line.startswith("#"))
LOCKED = re.search(r"^LOCKED := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
BUILT_FOR_CUDA = ("nvidia-", "cuda-")  # what torch's builds for CUDA bring, which torch itself pins


def named() -> list[Requirement]:
    """Every requirement that pyproject.toml names, but for the project's own extras."""
    project = PROJECT["project"]
    texts = [*PROJECT["build-system"]["requires"], *project["dependencies"]]
    texts += [text for extra in project["optional-dependencies"].values() for text in extra]
    requirements = [Requirement(text) for text in texts]
    return [requirement for requirement in requirements if requirement.name != "hushgrad"]


@pytest.mark.parametrize("requirement", named(), ids=str)
def test_every_package_that_the_project_names_is_locked_to_a_version_that_it_allows(requirement: Requirement) -> None:
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("text", PROJECT["tool"]["lock"]["held"])
def test_what_is_held_back_is_locked_so(text: str) -> None:
    held = Requirement(text)
    assert held.specifier.contains(PINS[canonicalize_name(held.name)])


def test_the_lock_is_exact_versions_alone_without_a_host_a_path_or_the_label_of_a_build() -> None:
    lines = [line for line in LOCK.splitlines() if not line.startswith("#")]
    assert len(lines) > 100
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert "/" not in LOCK
    assert len(PINS) == len(lines)


def test_the_lock_names_the_pythons_that_the_makefile_checks() -> None:
    assert f"# Python: {', '.join(LOCKED)}" in LOCK.splitlines()


def brought_by(requirement: Requirement, seen: dict[tuple[str, str], str]) -> None:
    """Add what a requirement brings to this environment, by name and extra."""
    for extra in {"", *requirement.extras}:
        key = (canonicalize_name(requirement.name), extra)
        if key in seen or key[0].startswith(BUILT_FOR_CUDA):
            continue
        installed = importlib.metadata.distribution(requirement.name)
        seen[key] = installed.version.split("+")[0]
        for text in installed.requires or []:
            more = Requirement(text)
            if more.marker is None or more.marker.evaluate({"extra": extra}):
                brought_by(more, seen)


def test_every_package_of_an_environment_made_from_the_lock_is_locked() -> None:
    if "{}.{}".format(*sys.version_info) not in LOCKED or sys.platform != "linux":
        pytest.skip(f"the lock covers Python {', '.join(LOCKED)} on Linux")
    seen: dict[tuple[str, str], str] = {}
    brought_by(Requirement("hushgrad[dev]"), seen)
    versions = {name: version for (name, _), version in seen.items() if name != "hushgrad"}
    others = {name: version for name, version in versions.items() if name in PINS and PINS[name] != version}
    if others:
        pytest.skip(f"this environment was not made from the lock: {others}")
    assert len(versions) > 80
    assert versions.keys() - PINS.keys() == set()
