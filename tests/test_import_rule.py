"""The two halves of the library do not know each other; an auditor reads each of them alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hushgrad

ROOT = Path(hushgrad.__file__).parent
GRADIENT_HALF = {"capture", "gradients", "clipping", "noise", "kernels", "padding"}
ACCOUNTING_HALF = {"accounting", "sampling"}
SHARED = {"errors", "arguments", "randomness", "process", "_version"}
SESSION = {"session", "step_hooks", "protocol", "frozen_setup", "update", "spending"}
JOINING = (
    SESSION
    | {"mechanism", "engine", "losses", "compatibility", "probing", "verification", "auditing", "study", "cli"}
    | {"diagnosis", "readiness", "report"}
)
FACADE = {"__init__", "integrations"}


def imports_of(path: Path) -> set[str]:
    """Return the full names of all modules a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative imports hide which part is imported"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(module: str) -> str | None:
    """Return the part of the library that a module belongs to, None if it is not the library's."""
    names = module.split(".")
    if names[0] != "hushgrad":
        return None
    return names[1] if len(names) > 1 else "__init__"


def files_of(part: str) -> list[Path]:
    folder, file = ROOT / part, ROOT / f"{part}.py"
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [file]


def parts_imported_by(part: str) -> set[str]:
    found = {part_of(module) for path in files_of(part) for module in imports_of(path)}
    return {name for name in found if name is not None and name != part}


@pytest.mark.parametrize("part", sorted(GRADIENT_HALF))
def test_the_gradient_half_never_imports_accounting_or_sampling(part: str) -> None:
    assert parts_imported_by(part) <= GRADIENT_HALF | SHARED


@pytest.mark.parametrize("part", sorted(ACCOUNTING_HALF))
def test_accounting_and_sampling_never_import_the_gradient_half(part: str) -> None:
    assert parts_imported_by(part) <= ACCOUNTING_HALF | SHARED


@pytest.mark.parametrize("part", sorted(ACCOUNTING_HALF))
def test_accounting_and_sampling_never_import_torch_nn(part: str) -> None:
    modules = {module for path in files_of(part) for module in imports_of(path)}
    assert not {module for module in modules if module == "torch.nn" or module.startswith("torch.nn.")}


@pytest.mark.parametrize("part", sorted(SHARED))
def test_what_both_halves_share_imports_neither(part: str) -> None:
    assert parts_imported_by(part) <= SHARED


def test_every_part_of_the_library_has_its_place_in_the_rule() -> None:
    parts = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    unplaced = parts - (GRADIENT_HALF | ACCOUNTING_HALF | SHARED | JOINING | FACADE)
    assert not unplaced, "say here whether it belongs to one half, to both, or joins them"


def test_only_the_joining_parts_import_both_halves() -> None:
    for part in GRADIENT_HALF | ACCOUNTING_HALF | SHARED:
        imported = parts_imported_by(part) | {part}
        assert not (imported & GRADIENT_HALF and imported & ACCOUNTING_HALF), part
