"""What comes of the architectures of transformers and the methods of peft: exact, or refused with a cure that works."""

from __future__ import annotations

import os

import pytest

from walk.catalogue import PROGRAMS, VERSIONS
from walk.judging import judged
from walk.report import LIMIT, RUN, counts, sections, share_refused, stored
from walk.walk import walked

SOME = {
    "paligemma": "exact",  # masked_scatter of image features
    "longformer": "exact",  # as_strided windows, written into a buffer
    "minicpm3": "exact",  # keys written through views of a buffer
    "layoutlmv3": "exact",  # views of parameters under no_grad
    "funnel": "exact",  # padding that names the batch with 0
    "cvt": "exact",  # a group norm of one place
    "timesformer": "alone",  # a token of the first example, by value the same for all
    "mixtral": "cured",  # a mixture of experts
    "peft WAVEFT, BERT": "exact",  # parameters written into a tensor of zeros
    "peft SHIRA, Llama": "exact",  # a sparse tensor of a parameter
    "peft LOHA, BERT": "cured",  # a custom autograd function of parameters alone
}
"""One for each kind that was refused once."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SOME)
def test_an_architecture_of_each_kind_is_exact_or_becomes_so_by_what_its_refusal_says(name: str) -> None:
    outcome = judged(name, PROGRAMS[name])
    assert outcome.verdict in ("exact", SOME[name]), outcome.detail


def test_what_is_stored_shows_what_it_must() -> None:
    """At least 130 architectures, every method, nothing wrong, no other error, and few that are refused for nothing."""
    programs, versions = stored()["programs"], stored()["versions"]
    for verdicts in counts(programs).values():
        assert verdicts["wrong"] == verdicts["untyped"] == 0
        assert share_refused(verdicts) <= LIMIT
    assert sum(counts(programs)["architectures"][word] for word in ("exact", "cured")) >= 130
    if versions == VERSIONS:
        assert set(programs) == set(PROGRAMS)
    assert all(one["detail"].startswith("DP") for one in programs.values() if one["verdict"] in RUN[1:5])


@pytest.mark.slow
def test_a_walk_through_all_of_them_finds_nothing_wrong_and_few_refused_for_nothing() -> None:
    """With the packages as they are installed: `make test-latest` takes the newest."""
    programs = walked(list(PROGRAMS), os.cpu_count() or 1)
    bad = {name: one["detail"] for name, one in programs.items() if one["verdict"] in ("wrong", "untyped")}
    assert not bad
    for verdicts in counts(programs).values():
        assert share_refused(verdicts) <= LIMIT
    assert sum(counts(programs)["architectures"][word] for word in ("exact", "cured")) >= 130
    assert sections({"versions": stored()["versions"], "programs": programs})
