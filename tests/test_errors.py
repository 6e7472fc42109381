"""Errors are values: where, what and cure, from which the text is formed."""

from __future__ import annotations

import pickle

import pytest

from hushgrad import errors
from hushgrad.errors import HushgradError, PrivacyUnitError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, HushgradError) and kind is not HushgradError
]


def test_the_text_of_an_error_is_formed_from_its_parts() -> None:
    error = PrivacyUnitError("saw 3 rows for 2 records", where="fc.weight", cure="Keep the batch on axis 0")
    assert (error.where, error.what, error.cure) == (
        "fc.weight",
        "saw 3 rows for 2 records",
        "Keep the batch on axis 0",
    )
    assert str(error) == "DP304 fc.weight: saw 3 rows for 2 records. Keep the batch on axis 0"


def test_an_error_without_place_or_cure_says_what_alone() -> None:
    assert str(PrivacyUnitError("saw 3 rows")) == "DP304 saw 3 rows"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_comes_back_from_another_process_as_it_was(kind: type[HushgradError]) -> None:
    error = kind("what", where="where", cure="Do this")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert str(back) == str(error)
    assert (back.where, back.what, back.cure) == (error.where, error.what, error.cure)


def test_every_kind_of_error_has_a_code_of_its_own() -> None:
    assert len({kind.code for kind in KINDS}) == len(KINDS)
