"""Whatever cannot be trained privately is refused with a typed error, at set-up before data is read."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import hushgrad.errors
from hushgrad.errors import HushgradError

DOCS = Path(__file__).parents[1] / "docs"


def _load() -> ModuleType:
    specification = importlib.util.spec_from_file_location("bad_inputs", DOCS / "bad_inputs.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["bad_inputs"] = module  # dataclasses and pickles look their module up by name
    specification.loader.exec_module(module)
    return module


bad_inputs = _load()


@pytest.mark.parametrize("name", bad_inputs.SETUP)
def test_set_up_refuses(name: str) -> None:
    """The dataset of every row raises AssertionError, no HushgradError, when a record is read."""
    error = bad_inputs.error_of(bad_inputs.SETUP[name])
    assert str(error).startswith(error.code)
    assert len(str(error)) > len(error.code) + 20


@pytest.mark.parametrize("name", bad_inputs.LOOP)
def test_the_loop_refuses(name: str) -> None:
    error = bad_inputs.error_of(bad_inputs.LOOP[name])
    assert str(error).startswith(error.code)
    assert str(bad_inputs.SECRET)[:4] not in str(error)


def test_a_call_that_raises_nothing_would_be_noticed() -> None:
    with pytest.raises(AssertionError, match="nothing was raised"):
        bad_inputs.error_of(lambda: None)


def test_the_page_of_bad_inputs_is_what_the_calls_raise_now() -> None:
    current = bad_inputs.page()
    assert bad_inputs.PAGE.read_text(encoding="utf-8") == current, "run: python docs/bad_inputs.py"
    assert str(bad_inputs.SECRET)[:4] not in current
    assert len(bad_inputs.SETUP) + len(bad_inputs.LOOP) > 80


ERRORS = [kind for kind in vars(hushgrad.errors).values() if isinstance(kind, type) and issubclass(kind, HushgradError)]


def test_every_code_belongs_to_one_class() -> None:
    assert len({kind.code for kind in ERRORS}) == len(ERRORS) > 20
    assert all("code" in vars(kind) and kind.code[:2] == "DP" and len(kind.code) == 5 for kind in ERRORS)


def test_the_page_of_errors_has_a_heading_for_each_code_with_its_class_and_a_cure() -> None:
    """So that errors.html#dp301, and errors.md#dp301 elsewhere, is the place of what a message begins with."""
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    rows = {}
    for section in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        found = re.match(r"(DP\d{3})\n\n\*\*(\w+)\.\*\* (.{10,})\n\n\*Cure:\* (.{10,})\n", section)
        assert found is not None, section[:80]
        rows[found[1]] = found[2]
    assert rows == {kind.code: kind.__name__ for kind in ERRORS}


def test_errors_are_also_the_builtin_that_users_would_catch() -> None:
    assert all(
        issubclass(kind, (ValueError, RuntimeError, ImportError)) for kind in ERRORS if kind is not HushgradError
    )
