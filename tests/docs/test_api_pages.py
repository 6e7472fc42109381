"""The reference: every public name has a place, `PrivacyEngine` the first."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

import hushgrad

SOURCES = Path(hushgrad.__file__).parent
DOCS = Path(__file__).parents[2] / "docs"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in DOCS.glob("api*.md")}
INNER = {"hushgrad.torch_internals"}
"""Modules whose `__all__` is for hushgrad itself."""


def public_modules() -> list[str]:
    """Return every module that says which of its names are public."""
    found = []
    for path in SOURCES.rglob("*.py"):
        if re.search(r"^__all__", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            parts = path.relative_to(SOURCES.parent).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return sorted(set(found) - INNER)


def documented() -> tuple[set[str], dict[int, Any]]:
    """Return the full names that stand on the pages, and the objects that they name, by identity."""
    names: set[str] = set()
    objects: dict[int, Any] = {}
    for text in PAGES.values():
        names |= set(re.findall(r"^\.\. (?:auto(?:class|function|data)|py:data):: (\S+)$", text, flags=re.MULTILINE))
        for module, members in re.findall(r"^\.\. automodule:: (\S+)\n   :members:(.*)$", text, flags=re.MULTILINE):
            home = importlib.import_module(module)
            own = [name for name, value in vars(home).items() if getattr(value, "__module__", None) == module]
            listed = [name.strip() for name in members.split(",")] if members.strip() else own
            names |= {f"{module}.{name}" for name in listed if not name.startswith("_")}
    for name in names:
        module, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(module), attribute)  # no page names what is not there
        objects[id(value)] = value
    return names, objects


@pytest.mark.parametrize("module", public_modules())
def test_no_public_name_is_missing_from_the_reference(module: str) -> None:
    names, objects = documented()
    home = importlib.import_module(module)
    missing = [
        name
        for name in home.__all__
        if name != "__version__" and f"{module}.{name}" not in names and id(getattr(home, name)) not in objects
    ]
    assert not missing


def test_the_engine_comes_first() -> None:
    first = re.search(r"\{toctree\}\n:hidden:\n\n(\S+)", PAGES["api"])
    assert first is not None
    assert re.findall(r"^\.\. auto\w+:: (\S+)", PAGES[first[1]], flags=re.MULTILINE)[0] == "hushgrad.PrivacyEngine"
