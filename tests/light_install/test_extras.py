"""The core needs torch, numpy, scipy, cryptography and click; what needs more says which extra brings it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import without_extras
from packaging.requirements import Requirement

from hushgrad.errors import MissingExtraError
from hushgrad.extras import EXTRAS, needs_extra, require

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Modules whose distribution has another name.
DISTRIBUTIONS = {"dp_accounting": "dp-accounting", "sklearn": "scikit-learn", "markupsafe": "jinja2"}


def brought(extra: str) -> set[str]:
    """The distributions that an extra brings, those of the extras that it contains included."""
    found: set[str] = set()
    for text in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(text)
        found |= {requirement.name} if requirement.name != "hushgrad" else set()
        for inner in requirement.extras:
            found |= brought(inner)
    return found


def test_the_core_needs_five_packages() -> None:
    names = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert names == {"torch", "numpy", "scipy", "cryptography", "click"}


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_every_module_that_is_said_to_come_with_it(extra: str) -> None:
    assert {DISTRIBUTIONS.get(module, module) for module in EXTRAS[extra]} <= brought(extra)


def test_development_installs_every_extra() -> None:
    everything = set().union(*map(brought, set(PROJECT["optional-dependencies"]) - {"docs", "dev"}))
    assert everything <= brought("dev")


def test_a_missing_module_names_its_extra_and_any_other_error_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError) as caught:
        require("optuna", extra="sweep", what="a search")
    assert str(caught.value) == (
        "DP105 a search needs optuna, which is not installed. Run: pip install 'hushgrad[sweep]'"
    )
    with pytest.raises(ModuleNotFoundError) as other, needs_extra("sweep", "a search"):
        import a_module_of_nobody  # noqa: F401
    assert not isinstance(other.value, MissingExtraError)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes of using hushgrad without any extra."""
    folder = tmp_path_factory.mktemp("light")
    ran = subprocess.run(
        [sys.executable, without_extras.__file__, str(folder)], capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def test_training_accounting_verifying_and_examining_need_no_extra(light: dict[str, Any]) -> None:
    library = light["library"]
    assert library["epsilon"] > 0
    assert "1e-05" in library["guarantee"]
    assert library["verdict"].startswith("PASSED")
    assert "Ready to be made private." in library["diagnosis"]
    assert light["loaded"] == []


@pytest.mark.parametrize("line", without_extras.COMMANDS)
def test_a_command_works_without_extras_or_says_which_one_it_needs(light: dict[str, Any], line: str) -> None:
    code, output = light["commands"][line]
    extras = without_extras.COMMANDS[line]
    assert code == (1 if extras else 0), output
    assert ("DP105" in output) == bool(extras or line.startswith("compare")), output
    assert not extras or any(f"Run: pip install 'hushgrad[{extra}]'" in output for extra in extras), output
    assert "Traceback" not in output
