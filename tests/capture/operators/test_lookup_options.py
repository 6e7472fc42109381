"""The options of lookup tables that cannot be kept: one list, each with its error and a cure that works."""

from __future__ import annotations

import pytest
from torch import nn

from hushgrad.capture.operators.lookup_options import (
    ALLOWED,
    OF_GRADIENTS,
    TABLES,
    option_error,
    reason,
    refused_options,
)
from hushgrad.errors import CrossSampleLeakError, SparseGradientError, UnsupportedModelError

REFUSED = {"sparse": True, "max_norm": 1.0, "scale_grad_by_freq": True}
ERRORS = {"sparse": SparseGradientError, "max_norm": UnsupportedModelError, "scale_grad_by_freq": CrossSampleLeakError}


@pytest.mark.parametrize("table", TABLES)
def test_the_options_of_a_table_as_torch_makes_it_are_kept(table: type[nn.Module]) -> None:
    assert list(refused_options(vars(table(5, 3)))) == []


@pytest.mark.parametrize("option", ALLOWED)
@pytest.mark.parametrize("table", TABLES)
def test_each_option_is_refused_by_itself_and_its_cure_is_kept(table: type[nn.Module], option: str) -> None:
    made = table(5, 3, **{option: REFUSED[option]})
    assert list(refused_options(vars(made))) == [option]
    setattr(made, option, ALLOWED[option])
    assert list(refused_options(vars(made))) == []


def test_all_options_that_cannot_be_kept_are_told() -> None:
    assert list(refused_options(REFUSED)) == list(ALLOWED)


def test_a_value_that_equals_the_allowed_one_is_kept() -> None:
    assert list(refused_options({"sparse": 0, "max_norm": None, "scale_grad_by_freq": 0})) == []


@pytest.mark.parametrize("option", ALLOWED)
def test_an_error_is_of_its_kind_and_names_place_reason_cure_and_helper(option: str) -> None:
    error = option_error(option, "tokens", helped_by="make_private_ready")
    assert type(error) is ERRORS[option]
    assert (error.where, error.what) == ("tokens", reason(option))
    assert error.cure == f"Set {option}={ALLOWED[option]}, as make_private_ready does"
    assert option_error(option, "tokens").cure == f"Set {option}={ALLOWED[option]}"


def test_only_a_renormalised_table_changes_without_being_trained() -> None:
    assert set(ALLOWED) - OF_GRADIENTS == {"max_norm"}
