"""What results show in a notebook: all that their text says, every name escaped, and no figure that needs a choice."""

from __future__ import annotations

import html
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import torch
from torch import nn

import hushgrad
from hushgrad.accounting import PoissonSampled
from hushgrad.accounting.guarantee import Guarantee, guarantee
from hushgrad.checks.verification.verdict import Check, Measured, Verdict
from hushgrad.notebook import BAD, GOOD, facts, table


def plain(shown: str) -> str:
    """Return the text of HTML. Fails where an element is not closed."""
    open_elements: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            open_elements.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_elements.pop() == tag

    Reader().feed(shown)
    assert not open_elements
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", shown)).split())


def claim() -> Guarantee:
    return guarantee([(PoissonSampled(1.0, 0.01), 100)], 1e-5)


def test_a_guarantee_shows_every_sentence_of_its_text() -> None:
    shown = claim()._repr_html_()
    assert plain(shown) == str(claim())
    assert GOOD in shown


def test_a_guarantee_of_nothing_is_red() -> None:
    for nothing in (
        replace(claim(), epsilon=math.inf),
        replace(claim(), noise_is_secret=False),
        replace(claim(), noise_is_observed=False),
    ):
        shown = nothing._repr_html_()
        assert plain(shown) == str(nothing)
        assert BAD in shown
        assert GOOD not in shown


def test_names_and_values_are_escaped() -> None:
    assert plain(table(("a<b>",), [("<script>",)])) == "a<b> <script>"
    assert "<script>" not in table(("a",), [("<script>",)])
    assert plain(facts("<i>", {"x": None, "y": "<b>"})) == "<i> y <b>"


def test_a_verdict_shows_its_checks_and_its_sentences() -> None:
    checks = tuple(
        Check(code=name, part="noise", claim=f"{name} holds", measured="1 < 2", passed=name == "a", sample_size=7)
        for name in "ab"
    )
    verdict = Verdict("private training", checks, (), Measured(), Measured())
    text = plain(verdict._repr_html_())
    assert text.startswith("FAILED: private training does not do what it claims: 1 of 2 checks failed.")
    assert "✓ noise a holds 1 < 2 7 exact 0" in text
    assert "✗ noise b holds" in text
    assert BAD in verdict._repr_html_()
    assert all(sentence in text for sentence in str(verdict).splitlines())


def test_a_diagnosis_shows_uses_problems_and_cures() -> None:
    good = hushgrad.doctor(nn.Sequential(nn.Linear(3, 2)), torch.randn(4, 3))
    text = plain(good._repr_html_())
    assert text.startswith("Ready to be made private.")
    assert "0.weight, .bias" in text
    bad = plain(hushgrad.doctor(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))._repr_html_())
    assert bad.startswith("Not ready: 1 problem")
    assert "DP301 1 BatchNorm1d mixes the examples of a batch" in bad
    assert "nn.GroupNorm" in bad
