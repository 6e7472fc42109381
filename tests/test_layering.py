"""Who may import whom: units in an order, each of which knows lower ones only; and two halves that do not meet.

An auditor reads clipping, noise, sampling and one join, each of them alone.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hushgrad

ROOT = Path(hushgrad.__file__).parent

SHARED = (
    *("_version", "errors", "arguments", "extras", "printable", "text_table", "notebook", "result_file"),
    *("system", "process", "randomness"),
    "checkpoints",
    "numpy_generator",
    "strategies",
)
ACCOUNTING_HALF = ("accounting", "sampling")
GRADIENT_HALF = (
    "torch_internals",
    "torch_sharding",
    *("low_mode", "thread_frames"),
    "freed_memory",
    "clipping",
    "kernels",
    "noise",
    "gradients",
    "capture",
)
JOINING = (
    "joined_optimizer",
    "parallel",
    "sparse_rows",
    "mechanism",
    "separation",
    "losses",
    "guards/in_use",  # guards are always on, and know no session
    "guards/sparse_tables",
    "guards/compatibility",
    "guards/setup_invariants",
    "guards/left_alone",
    "guards/gradient_marks",
    "guards/monitoring",
    "guards/probing",
    "releases",
    "session",
    "engine",
    "privacy",
    "integrations",
    "migration",
    "checks/auditing",  # checks are run on demand, above the session
    "checks/verification",
    "checks/doctor",
    "study",  # the workbench
    "cli",
)
ORDER = (*SHARED, *ACCOUNTING_HALF, *GRADIENT_HALF, *JOINING)
"""From the bottom to the top."""

RINGS = {"guards", "checks"}
"""Folders whose parts are units of their own."""


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


def unit_of(module: str) -> str | None:
    """Return the unit of the library that a module belongs to; None for another library's, and for the face."""
    names = module.split(".")[1:] if module.split(".")[0] == "hushgrad" else []
    if not names:
        return None
    if names[0] in RINGS:
        return "/".join(names[:2]) if len(names) > 1 else None
    return names[0]


def files_of(unit: str) -> list[Path]:
    folder, file = ROOT / unit, ROOT / f"{unit}.py"
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [file]


def units_imported_by(unit: str) -> set[str]:
    found = {unit_of(module) for path in files_of(unit) for module in imports_of(path)}
    return {name for name in found if name is not None and name != unit}


def test_every_unit_has_its_place_in_the_order() -> None:
    def here(folder: Path) -> set[str]:
        files = {path.stem for path in folder.glob("*.py") if path.stem != "__init__"}
        return files | {path.parent.name for path in folder.glob("*/__init__.py")}

    units = here(ROOT) - RINGS | {f"{ring}/{name}" for ring in RINGS for name in here(ROOT / ring)}
    assert units == set(ORDER), "say here between which others it stands"


@pytest.mark.parametrize("unit", ORDER)
def test_no_import_runs_upward(unit: str) -> None:
    above = {other for other in units_imported_by(unit) if other in ORDER and ORDER.index(other) > ORDER.index(unit)}
    assert not above


@pytest.mark.parametrize("unit", GRADIENT_HALF)
def test_the_gradient_half_never_imports_accounting_or_sampling(unit: str) -> None:
    assert units_imported_by(unit) <= {*GRADIENT_HALF, *SHARED}


@pytest.mark.parametrize("unit", ACCOUNTING_HALF)
def test_accounting_and_sampling_never_import_the_gradient_half(unit: str) -> None:
    assert units_imported_by(unit) <= {*ACCOUNTING_HALF, *SHARED}


@pytest.mark.parametrize("unit", ACCOUNTING_HALF)
def test_accounting_and_sampling_never_import_torch_nn(unit: str) -> None:
    modules = {module for path in files_of(unit) for module in imports_of(path)}
    assert not {module for module in modules if module == "torch.nn" or module.startswith("torch.nn.")}
