"""A verdict is a value: checks by code, one answer, and JSON without infinities."""

from __future__ import annotations

import json
import math

import pytest

from hushgrad.checks.verification.verdict import Cause, Check, Measured, Verdict, by_code, failed_codes


def check(code: str, *, passed: bool = True, alarm: float = 1e-7) -> Check:
    return Check(
        code=code,
        part=code.split("-")[0],
        claim="a theorem",
        measured="as claimed",
        passed=passed,
        sample_size=3,
        statistic=math.inf,
        false_alarm=alarm,
    )


def verdict(*checks: Check, causes: tuple[Cause, ...] = ()) -> Verdict:
    return Verdict("the update", checks, causes, Measured(1.0, 1.0, 1.0), Measured(1.0, 0.5, 0.5))


def test_checks_are_built_by_keywords_alone() -> None:
    with pytest.raises(TypeError):
        Check("noise", "a theorem", "found", True, 3)  # type: ignore[misc]


def test_a_verdict_passes_if_and_only_if_every_check_does() -> None:
    good, bad = check("noise-std"), check("noise-mean", passed=False)
    assert verdict(good).passed
    assert not verdict(good, bad).passed
    assert verdict(good, bad).failed == (bad,)
    assert (verdict(good).exit_status, verdict(good, bad).exit_status) == (0, 1)
    assert failed_codes([good, bad]) == {"noise-mean"}
    assert by_code([good, bad]) == {"noise-std": good, "noise-mean": bad}


def test_the_false_alarm_probability_is_the_sum_of_those_of_the_checks() -> None:
    assert verdict(check("noise-std"), check("noise-mean", alarm=3e-7)).false_alarm == pytest.approx(4e-7)


def test_the_sentence_says_less_private_than_charged_and_names_cause_and_check() -> None:
    text = str(verdict(check("noise-std", passed=False), causes=(Cause("half-the-noise", "half.", "double it."),)))
    assert "LESS PRIVATE THAN CHARGED" in text
    assert "[half-the-noise]: half. Cure: double it." in text
    assert "Failed (noise): a theorem" in text


def test_json_holds_the_codes_and_no_infinity() -> None:
    found = json.loads(verdict(check("noise-std")).to_text())
    assert found["checks"][0]["code"] == "noise-std"
    assert found["checks"][0]["statistic"] == "inf"
