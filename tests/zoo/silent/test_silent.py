"""Every leaky program of the silent zoo is refused with its cure, or exact, or told; every clean look-alike trains."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scoreboard import KINDS
from silent_programs import EXACT, REFUSED, SILENT, TRUSTED, UNTYPED, Kind, Measured, Program

from hushgrad.errors import CrossSampleLeakError, HushgradError

OF_THE_HARNESS = {"no ledger path", "fixed key"}
"""Conditions of every program here: ledgers in memory, keys for tests."""

RUNS = [(kind, program, way) for kind in KINDS for program in kind.programs for way in program.ways]


def by_turns(programs: tuple[Program, ...]) -> set[tuple[str, str]]:
    """Of each program its name and one way, which fewest have so far; and one run in each way that none has then."""
    taken: list[tuple[str, str]] = []
    for program in sorted(programs, key=lambda one: len(one.ways)):
        before = [way for _, way in taken]
        taken.append((program.name, min(program.ways, key=before.count)))
    of_way = {way: program.name for program in programs for way in program.ways}
    return {*taken, *((of_way[way], way) for way in of_way.keys() - {way for _, way in taken})}


FIRST_RING = {kind.title: by_turns(kind.leaky) | by_turns(kind.clean) for kind in KINDS}
"""What is run of each kind in the first ring; the other ways of its programs are run in the second."""


def some(is_clean: bool) -> pytest.MarkDecorator:
    """Every run of the leaky programs, or of the clean ones."""
    runs = [
        pytest.param(
            program,
            way,
            marks=[] if (program.name, way) in FIRST_RING[kind.title] else pytest.mark.slow,
            id=f"{kind.title}-{program.name}-{way}",
        )
        for kind, program, way in RUNS
        if program.is_clean == is_clean
    ]
    return pytest.mark.parametrize(("program", "way"), runs)


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
def test_the_first_ring_has_every_program_of_a_kind_and_leaky_and_clean_ones_in_every_way(kind: Kind) -> None:
    for programs in (kind.leaky, kind.clean):
        run = {(one.name, way) for one in programs for way in one.ways} & FIRST_RING[kind.title]
        assert {name for name, _ in run} == {one.name for one in programs}
        assert {way for _, way in run} == {way for one in programs for way in one.ways}


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
