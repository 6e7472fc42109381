import contextlib
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.errors import TaskDataError
from hushgrad.study.tasks.idx import parse_idx, read_idx


def idx_bytes(sizes, content, kind=8):
    return struct.pack(f">HBB{len(sizes)}I", 0, kind, len(sizes), *sizes) + content


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.randoms())
def test_what_was_written_is_read(sizes, random):
    array = torch.tensor([random.randrange(256) for _ in range(torch.Size(sizes).numel())], dtype=torch.uint8)
    read = parse_idx(idx_bytes(sizes, array.numpy().tobytes()), dimensions=len(sizes))
    assert torch.equal(read, array.reshape(sizes))


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(1, 4))
def test_arbitrary_bytes_parse_or_raise_a_task_data_error(content, dimensions):
    with contextlib.suppress(TaskDataError):
        assert parse_idx(content, dimensions=dimensions).numel() == len(content) - 4 - 4 * dimensions


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "header of 16 bytes"),
        (b"\x00\x00\x08\x03", "header of 16 bytes"),
        (idx_bytes((2, 2, 2), bytes(8), kind=0x0D), "0x00000803"),
        (idx_bytes((2, 2), bytes(8)), "0x00000803"),
        (idx_bytes((2, 2, 2), bytes(7)), "must hold 8 bytes"),
        (idx_bytes((2, 2, 2), bytes(9)), "must hold 8 bytes"),
        (idx_bytes((0, 2, 2), b""), "must not be empty"),
        (idx_bytes((2**32 - 1,) * 3, bytes(8)), "must hold"),
    ],
)
def test_a_malformed_file_is_refused_with_what_was_expected(content, said):
    with pytest.raises(TaskDataError, match=said):
        parse_idx(content, dimensions=3, name="images")


def test_reading_stops_at_the_limit(tmp_path):
    path = tmp_path / "big-idx1"
    path.write_bytes(idx_bytes((1000,), bytes(1000)))
    with pytest.raises(TaskDataError, match="at most 500 bytes"):
        read_idx(path, dimensions=1, limit=500)
