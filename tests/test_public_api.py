"""The public names: documented, typed, without catch-alls; and every guarantee has a test of the same wording."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hushgrad

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "hushgrad").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def test_all_names_exist_and_are_sorted() -> None:
    assert hushgrad.__all__ == sorted(hushgrad.__all__) == dir(hushgrad)
    assert {"DPSGD", "FlatClipping", "PoissonSampling", "PrivacyEngine", "privatize"} <= set(hushgrad.__all__)
    for name in hushgrad.__all__:
        assert getattr(hushgrad, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="PrivacyEngin'"):
        hushgrad.PrivacyEngin  # noqa: B018


def test_importing_the_package_does_not_import_torch() -> None:
    """The commands that only compute with numbers start without it."""
    check = "import sys, hushgrad; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_importing_the_engine_waits_for_no_compiler_and_setting_up_does() -> None:
    """numba and scipy are imported when a session is set up, which is before anything is charged."""
    check = """
import sys, torch
from hushgrad import DPSGD, FlatClipping, PoissonSampling, PrivacyEngine, privatize
early = {"numba", "scipy"} & set(sys.modules)
model = torch.nn.Linear(2, 2)
sampling = PoissonSampling(rate=0.1)
plan = DPSGD(noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=sampling, expected_batch_size=1)
privatize(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
from hushgrad.noise.gaussian import backend
print(sorted(early), backend.cache_info().currsize)
"""
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout == "[] 1\n"


def _public() -> Iterator[tuple[str, Any]]:
    """Yield the callables that a user of the package meets, classes with their public methods."""
    for name in hushgrad.__all__:
        value = getattr(hushgrad, name)
        if isinstance(value, str):
            continue
        yield name, value
        if isinstance(value, type):
            for attribute, member in vars(value).items():
                function = member.fget if isinstance(member, property) else member
                if (not attribute.startswith("_") or attribute == "__init__") and inspect.isfunction(function):
                    yield f"{name}.{attribute}", function


PUBLIC = dict(_public())


@pytest.mark.parametrize("name", PUBLIC)
def test_no_public_signature_swallows_a_typo(name: str) -> None:
    kinds = {parameter.kind for parameter in inspect.signature(PUBLIC[name]).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds
    assert inspect.Parameter.VAR_POSITIONAL not in kinds


@pytest.mark.parametrize("name", [name for name in PUBLIC if not name.endswith("__init__")])
def test_every_public_name_is_documented(name: str) -> None:
    text = inspect.getdoc(PUBLIC[name])
    assert text is not None
    assert len(text) > 20


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_signature_is_typed(name: str) -> None:
    value = PUBLIC[name]
    if isinstance(value, type) and value.__init__ is object.__init__:
        return  # it takes no arguments
    function = value.__init__ if isinstance(value, type) else value
    if function is object.__init__:
        return  # takes no argument
    signature = inspect.signature(function)
    untyped = [
        parameter.name
        for parameter in list(signature.parameters.values())[1 if isinstance(value, type) or "." in name else 0 :]
        if parameter.annotation is inspect.Parameter.empty
    ]
    assert not untyped


def test_make_private_takes_the_names_that_users_of_opacus_know() -> None:
    names = list(inspect.signature(hushgrad.PrivacyEngine.make_private).parameters)[1:]
    assert names == [
        "module",
        "optimizer",
        "data_loader",
        "noise_multiplier",
        "max_grad_norm",
        "loss_reduction",
        "poisson_sampling",
        "sampling",
        "clipping",
        "noise",
        "sparse_rows",
        "max_physical_batch_size",
        "constant_shapes",
        "max_batch_size",
        "accumulation",
        "max_epsilon",
        "max_delta",
        "fully_adaptive",
        "phase",
        "group_size",
        "target_epsilon",
        "target_delta",
    ]
    calibrated = list(inspect.signature(hushgrad.PrivacyEngine.make_private_with_epsilon).parameters)[1:]
    assert set(calibrated) - set(names) == {"epochs", "spare_steps"}
    assert set(names) - set(calibrated) == {"noise_multiplier", "max_epsilon", "max_delta", "fully_adaptive"}


# Guarantees --------------------------------------------------------------------------------------------------------


def _words(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def _docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text


def guarantees(text: str) -> list[str]:
    """Return what follows each `Guarantee:` of a docstring, to the end of its paragraph or the next guarantee."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        for part in re.split(r"(?:^|\n)\s*Guarantee:", paragraph)[1:]:
            found.append(_words(part).strip())
    return found


def first_sentence(guarantee: str) -> str:
    """Return a guarantee's own words; what follows its first full stop explains it."""
    return re.split(r"\.(?:\s|$)", guarantee)[0]


def plain(text: str) -> str:
    """Return the words of a text, so that a test's name can be compared with a sentence."""
    return " ".join(re.sub(r"[^\w²]+", " ", text.lower()).replace("_", " ").split())


def clauses(sentence: str) -> list[str]:
    """Return the parts of a sentence that say something by themselves: four words or more between ; : and commas."""
    parts = (plain(part) for part in re.split(r"[;:,] (?:and |or |also )?", sentence))
    return [part for part in parts if len(part.split()) >= 4]


@functools.cache
def quotations() -> frozenset[str]:
    """Return the clauses of what tests say they show: their names, and `Guarantee:` in their docstrings."""
    found = set()
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.add(plain(node.name.removeprefix("test_")))
        for text in _docstrings(path):
            for words in guarantees(text):
                found.update(clauses(first_sentence(words)))
    return frozenset(said for said in found if len(said.split()) >= 4)


PROMISED = [
    (str(path.relative_to(ROOT / "src")), first_sentence(promise))
    for path in SOURCES
    for text in _docstrings(path)
    for promise in guarantees(text)
]


def test_a_guarantee_ends_with_its_paragraph_or_the_next_one() -> None:
    text = "Does it.\n\nGuarantee: a holds. For a\nreason.\nGuarantee: b\nholds.\n\nRaises nothing."
    assert guarantees(text) == ["a holds. For a reason.", "b holds."]
    assert [first_sentence(promise) for promise in guarantees(text)] == ["a holds", "b holds"]
    assert plain("`a_b` holds, always") == "a b holds always"


@pytest.mark.parametrize(("source", "promise"), PROMISED, ids=[f"{source}: {text[:40]}" for source, text in PROMISED])
def test_every_guarantee_has_a_test_of_the_same_wording(source: str, promise: str) -> None:
    """A test quotes a clause of each guarantee's first sentence, in its name or after `Guarantee:`."""
    promised = clauses(promise) or [plain(promise)]
    quoted = [part for part in promised for said in quotations() if said in part or part in said]
    assert quoted, f"no test of {source} says: Guarantee: {promise}"
