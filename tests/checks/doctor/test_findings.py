"""A finding is an error as a value: its code, where, what and cure, read and not parsed."""

from __future__ import annotations

from hushgrad.checks.doctor.findings import Finding
from hushgrad.errors import CrossSampleLeakError


def test_a_finding_has_the_parts_of_its_error_whatever_they_say() -> None:
    error = CrossSampleLeakError("mixes. In two sentences", where="a.b", cure="Do this. Then that")
    assert Finding.of(error) == Finding("DP301", "a.b", "mixes. In two sentences", "Do this. Then that")


def test_an_error_without_place_and_cure_is_a_finding_without_them() -> None:
    assert Finding.of(CrossSampleLeakError("mixes")) == Finding("DP301", "", "mixes", "")
