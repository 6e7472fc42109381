"""State dictionaries come back from JSON and named tensors as they were, and nothing else comes back."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.checkpoints.state_tree import read, written
from hushgrad.errors import CheckpointError

PLAIN = st.one_of(st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.text())
KEYS = st.one_of(st.text(), st.integers(), st.booleans())
TREES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200)
@given(TREES)
def test_plain_data_comes_back_with_its_types(value: Any) -> None:
    back = read(json.loads(json.dumps(written(value, "", {}))), {})
    assert back == value
    assert repr(back) == repr(value)  # 1 and True, and a list and a tuple, are different


def test_infinity_and_nan_come_back() -> None:
    """ReduceLROnPlateau begins with an infinite best value."""
    back = read(json.loads(json.dumps(written([math.inf, -math.inf, math.nan], "", {}))), {})
    assert back[:2] == [math.inf, -math.inf]
    assert math.isnan(back[2])


def test_numbers_of_numpy_become_numbers() -> None:
    """A schedule that is written with NumPy makes a learning rate of its own kind."""
    value = [np.float64(0.5), np.float32(0.25), np.int64(3), np.bool_(True)]
    said = written(value, "", {})
    assert [type(part) for part in said] == [float, float, int, bool]
    assert read(json.loads(json.dumps(said)), {}) == value


def test_tensors_are_named_by_their_place_and_come_back() -> None:
    value = {"state": {0: {"exp_avg": torch.arange(3.0), "step": torch.tensor(2)}}, "betas": (0.9, 0.99)}
    tensors: dict[str, torch.Tensor] = {}
    back = read(json.loads(json.dumps(written(value, "optimizer", tensors))), tensors)
    assert set(tensors) == {"optimizer.state.0.exp_avg", "optimizer.state.0.step"}
    assert torch.equal(back["state"][0]["exp_avg"], torch.arange(3.0))
    assert back["betas"] == (0.9, 0.99)


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, torch.float32, len, torch.eye(2).to_sparse(), type("Odd", (list,), {})()]
)
def test_what_only_a_pickle_holds_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        written({"a": [value]}, "extra", {})
    assert caught.value.where == "extra.a.0"


@pytest.mark.parametrize("said", [{}, {"a": 1}, {"tensor": "missing"}, {"dict": 3}, {"dict": [[1]]}, {"tuple": 3}])
def test_json_that_it_did_not_write_is_refused(said: Any) -> None:
    with pytest.raises(CheckpointError):
        read(said, {})
