"""Every leaky program of the silent zoo is refused with its cure, or exact, or told; every clean look-alike trains."""

from __future__ import annotations

import math
from dataclasses import replace

import later_batches
import pytest
from scoreboard import KINDS
from silent_programs import EXACT, REFUSED, SILENT, TRUSTED, UNTYPED, Kind, Measured, Program

from hushgrad.errors import CrossSampleLeakError, HushgradError

OF_THE_HARNESS = {"no ledger path", "fixed key"}
"""Conditions of every program here: ledgers in memory, keys for tests."""

RUNS = [(kind, program, way) for kind in KINDS for program in kind.programs for way in program.ways]


def some(is_clean: bool) -> pytest.MarkDecorator:
    """Every run of the leaky programs, or of the clean ones."""
    runs = [
        pytest.param(program, way, marks=marks_of(kind, program, way), id=f"{kind.title}-{program.name}-{way}")
        for kind, program, way in RUNS
        if program.is_clean == is_clean
    ]
    return pytest.mark.parametrize(("program", "way"), runs)


def marks_of(kind: Kind, program: Program, way: str) -> list[pytest.MarkDecorator]:
    """Forty steps take long: of those programs one way is run in the first ring, another one for each."""
    if kind is not later_batches.KIND:
        return []
    own = program.ways[kind.programs.index(program) % len(program.ways)]
    return [] if way == own else [pytest.mark.slow]


@some(is_clean=False)
def test_a_leaky_program_is_refused_with_its_cure_or_exact_or_told(program: Program, way: str) -> None:
    """Refused: a HushgradError with what and cure. Told: by a condition that the program lists."""
    found = program.run(way)
    assert found.outcome in (REFUSED, EXACT, TRUSTED), f"{found.outcome}: S = {found.moved:.4g} {found.error}"


@some(is_clean=True)
def test_a_clean_look_alike_trains_and_one_record_moves_no_more_than_its_share(program: Program, way: str) -> None:
    found = program.run(way)
    assert found.outcome == EXACT, f"{found.outcome}: S = {found.moved:.4g} {found.error}"
    if way == "per_example":
        assert found.conditions <= OF_THE_HARNESS | set(program.told)


# One run for each program, in its last way: the step by hand differs between ways for scalar losses only.
BY_HAND = [(kind, program, program.ways[-1]) for kind, program, _ in RUNS if program.unguarded is not None]


@pytest.mark.slow  # of the zoo, not of the library
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("program", "way"),
    dict.fromkeys((program, way) for _, program, way in BY_HAND),
    ids=dict.fromkeys(f"{kind.title}-{program.name}" for kind, program, _ in BY_HAND),
)
def test_a_leaky_program_leaks_and_a_clean_one_does_not_where_nobody_looks(program: Program, way: str) -> None:
    """By a step that clips each example's gradient by hand: the zoo's own check, without the library."""
    assert program.unguarded is not None
    assert (program.unguarded(way) <= program.limit + program.slack) == program.is_clean


def test_the_zoo_holds_six_leaky_programs_of_each_kind_and_clean_ones_beside_them() -> None:
    assert all(len(kind.leaky) >= 6 and len(kind.clean) >= 6 for kind in KINDS)
    assert sum(len(kind.programs) for kind in KINDS) >= 120


@pytest.mark.parametrize("kind", KINDS, ids=[kind.title for kind in KINDS])
def test_no_two_programs_of_a_kind_have_one_name(kind: Kind) -> None:
    assert len({program.name for program in kind.programs}) == len(kind.programs)


def test_a_program_is_judged_by_what_it_moved_or_raised() -> None:
    def raising(error: Exception) -> Program:
        def measure(way: str) -> Measured:
            raise error

        return Program("raises", measure)

    def moving(moved: float, *conditions: str) -> Program:
        return Program("moves", lambda way: Measured(moved, frozenset(conditions)))

    assert raising(CrossSampleLeakError("mixes", where="a", cure="do not")).run("session").outcome == REFUSED
    assert raising(CrossSampleLeakError("mixes")).run("session").outcome == UNTYPED
    assert raising(HushgradError("", cure="do not")).run("session").outcome == UNTYPED
    assert raising(RuntimeError("of torch")).run("session").outcome == UNTYPED
    assert moving(1.00009).run("session").outcome == EXACT
    assert moving(1.001).run("session").outcome == SILENT
    assert moving(math.inf, "own scalar loss").run("session").outcome == SILENT
    told = replace(moving(9.0, "own scalar loss"), trust=("own scalar loss",))
    assert told.run("session").outcome == TRUSTED
    assert replace(told, trust=("another",)).run("session").outcome == SILENT
