"""The tables of operators: every name is one of torch's, and none stands in two places."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hushgrad.capture.axes import table as axes
from hushgrad.capture.operators import broadcast
from hushgrad.capture.torch_names import OPTIONAL, joined, lookup, named
from hushgrad.errors import InvalidArgumentError

LISTS = [
    (axes.SPACES, names)
    for names in [
        *(axes.ARITHMETIC, axes.ACTIVATIONS, axes.SAME_VALUES, axes.FILLS, axes.VIEWS, axes.RESHAPES, axes.CREATED),
        axes.REDUCTIONS,
        *(names for names, _ in (*axes.ALONG, *axes.OTHERS)),
    ]
] + [(axes.SPACES, names) for names in (broadcast.NAMES, broadcast.IN_PLACE_NAMES)]


@pytest.mark.parametrize(("spaces", "names"), LISTS)
def test_every_name_is_one_of_torch_or_optional_with_a_reason(spaces, names) -> None:
    lacking = {name for name in names.split() if not lookup(name, spaces)}
    assert lacking <= set(OPTIONAL)
    assert all(len(OPTIONAL[name].split()) > 3 for name in OPTIONAL)


def test_every_optional_name_is_used() -> None:
    assert set(OPTIONAL) <= {name for _, names in LISTS for name in names.split()}


def test_a_name_that_torch_lacks_or_that_stands_twice_raises_at_import() -> None:
    with pytest.raises(InvalidArgumentError, match=r"no operator called softmaxx, reluu\b"):
        named("relu softmaxx reluu", axes.SPACES)
    with pytest.raises(InvalidArgumentError, match="named twice in one table: relu"):
        named("relu gelu relu", axes.SPACES)


def test_an_optional_name_that_torch_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIONAL, "softmaxx", "a reason of some words")
    assert named("softmaxx relu", (F,)) == [F.relu]


def test_an_operator_that_stands_in_two_tables_raises_at_import() -> None:
    with pytest.raises(InvalidArgumentError, match="has a rule already"):
        joined({torch.add: 1, torch.sub: 2}, {Tensor.add: 1, torch.sub: 2})
    assert joined({torch.add: 1}, {Tensor.add: 2}) == {torch.add: 1, Tensor.add: 2}
