"""The caller's own batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushgrad.errors import DuplicateRecordError, UnsupportedSamplerError
from hushgrad.sampling.disjoint import CheckedBatches


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6))
def test_no_record_takes_part_twice_in_one_pass(batches):
    """No record takes part twice in one pass; the error comes before the second time."""
    flat = [index for batch in batches for index in batch]
    handed_out = []
    try:
        for batch in CheckedBatches(batches, 10).one_pass(1, 0):
            handed_out.extend(batch)
    except DuplicateRecordError:
        assert len(set(flat)) < len(flat)
    else:
        assert handed_out == flat
    assert len(set(handed_out)) == len(handed_out)


def test_every_pass_begins_anew():
    batches = CheckedBatches([[0, 1], [2]], 3)
    assert list(batches.one_pass(1, 0)) == list(batches.one_pass(1, 0)) == [(0, 1), (2,)]


def test_numpy_indices_are_whole_numbers():
    assert list(CheckedBatches([np.array([1, 0])], 2).one_pass(1, 0)) == [(1, 0)]


@pytest.mark.parametrize("batch", [[-1], [3], [0.5], ["0"], 7])
def test_what_is_no_index_is_refused(batch):
    with pytest.raises(UnsupportedSamplerError):
        list(CheckedBatches([batch], 3).one_pass(1, 0))
