"""Programs that people bring: exact as they are, or refused by a code and exact by what stands beside them."""

from __future__ import annotations

import pytest
from brought.report import PROGRAMS, counts
from brought.running import compared, ordinary, outcome


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_people_bring_is_exact_or_its_cure_is(name: str) -> None:
    brought = PROGRAMS[name]
    found = outcome(brought)
    assert found.code == brought.code, found.message
    if not brought.code or brought.cured is not None:
        assert found.error is not None
        assert found.error <= (brought.cured or brought.program).tolerance


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
