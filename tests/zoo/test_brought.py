"""Programs that people bring: exact as they are, or refused by a code and exact by what stands beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from brought.report import GROUPS, PROGRAMS, counts, on_the_page, row, sections
from brought.running import Brought, compared, ordinary, outcome

PAGE = on_the_page((Path(__file__).parents[2] / "docs" / "structures.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_people_bring_is_exact_or_its_cure_is_as_the_page_says(name: str) -> None:
    brought = PROGRAMS[name]
    found = outcome(brought)
    assert found.code == brought.code, found.message
    if not brought.code or brought.cured is not None:
        assert found.error is not None
        assert found.error <= (brought.cured or brought.program).tolerance
    assert row(name, brought) in PAGE, "run: python docs/structures.py"


def test_the_page_has_a_line_for_each_of_these_programs_and_no_other() -> None:
    def first(line: str) -> str:
        return line.split(" | ")[0]

    def name_alone(name: str, one: Brought) -> str:
        return f"| {name}"

    assert [first(line) for line in PAGE] == [first(line) for line in sections(name_alone)]
    assert len(PROGRAMS) == sum(map(len, GROUPS.values()))


def test_a_refusal_says_what_to_write_instead_or_why_nothing_is() -> None:
    for name, brought in PROGRAMS.items():
        if brought.code:
            assert bool(brought.instead) == (brought.cured is not None), name
            assert brought.instead or brought.why, name
        else:
            assert brought.cured is None, name


def test_one_program_at_most_is_refused_for_good() -> None:
    assert counts()["left"] <= 1


def test_a_sum_that_is_another_one_is_told() -> None:
    other = ordinary(alone=lambda model, record: 1.1 * model(record[0][None]).square().sum())
    assert compared(other)[0] > 1e-2
