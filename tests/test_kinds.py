"""A concept is a folder and a kind is a file: nobody outside of the folder asks which kind something is.

Whoever does would have to be changed for the next kind. Ask the thing instead.
"""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path

import pytest

import hushgrad
from hushgrad.accounting.events import registry
from hushgrad.clipping import known as clip_rules
from hushgrad.clipping.rule import ClipRule
from hushgrad.mechanism import known as noise_kinds
from hushgrad.mechanism.noise import NoiseMechanism
from hushgrad.sampling import known as sampling_kinds
from hushgrad.sampling.scheme import SamplingScheme

ROOT = Path(hushgrad.__file__).parent


def kinds_asked_for(source: str, names: frozenset[str]) -> set[str]:
    """Return the kinds that a source compares an object with: isinstance, issubclass, `type(x) is`, match."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        asked: list[ast.AST] = []
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            asked = list(node.args[1:])
        elif isinstance(node, ast.MatchClass):
            asked = [node.cls]
        elif isinstance(node, ast.Compare):
            asked = [node.left, *node.comparators]
        for part in asked:
            for leaf in ast.walk(part):
                if isinstance(leaf, ast.Name | ast.Attribute):
                    found.add(leaf.id if isinstance(leaf, ast.Name) else leaf.attr)
    return found & names


@pytest.mark.parametrize(
    "source",
    ["isinstance(x, A | B)", "isinstance(x, (B, A))", "type(x) is m.A", "match x:\n  case A(y):\n    pass"],
)
def test_a_source_that_asks_for_a_kind_is_found(source: str) -> None:
    assert "A" in kinds_asked_for(source, frozenset("AB"))
    assert not kinds_asked_for("isinstance(x, C); y = A(1); f(A)", frozenset("AB"))


def _kinds_of(base: type) -> frozenset[str]:
    """Those of hushgrad's, however they are derived; what several have in common is abstract, and no kind."""
    found: set[str] = set()
    for kind in base.__subclasses__():
        if kind.__module__.startswith("hushgrad."):
            found |= _kinds_of(kind) | (set() if inspect.isabstract(kind) else {kind.__name__})
    return frozenset(found)


CONCEPTS = {
    "accounting/events": (frozenset(kind.__name__ for kind in registry._KINDS.values()), "PoissonSampled"),
    "clipping": (_kinds_of(ClipRule), "FlatClipping"),
    "mechanism": (_kinds_of(NoiseMechanism), "GaussianNoise"),
    "sampling": (_kinds_of(SamplingScheme), "PoissonSampling"),
}
"""For each folder the names of its kinds, and one that must be among them."""


@pytest.mark.parametrize("folder", CONCEPTS)
def test_nobody_outside_of_a_concept_asks_which_kind_it_is(folder: str) -> None:
    names, example = CONCEPTS[folder]
    assert example in names
    asked = {
        str(path.relative_to(ROOT)): found
        for path in sorted(ROOT.rglob("*.py"))
        if not path.is_relative_to(ROOT / folder)
        and (found := kinds_asked_for(path.read_text(encoding="utf-8"), names))
    }
    assert not asked, "give the concept a property instead"


@pytest.mark.parametrize(
    ("base", "own"),
    [(ClipRule, clip_rules.OWN), (NoiseMechanism, noise_kinds.OWN), (SamplingScheme, sampling_kinds.OWN)],
)
def test_the_kinds_that_no_guarantee_names_are_all_of_hushgrads(base: type, own: tuple[type, ...]) -> None:
    assert {kind.__name__ for kind in own} == _kinds_of(base)
    assert all(vars(sys.modules[kind.__module__])[kind.__name__] is kind for kind in own)
