"""Small data files in the formats that the tasks read."""

import gzip
import struct

import pytest
import torch


def idx_bytes(array: torch.Tensor) -> bytes:
    header = struct.pack(f">HBB{array.dim()}I", 0, 8, array.dim(), *array.shape)
    return header + array.to(torch.uint8).numpy().tobytes()


@pytest.fixture
def write_pair(tmp_path):
    """Return a function that writes an IDX pair of `count` images 8×8 whose first pixel is the example's number."""

    def write(prefix="t10k", count=50, labels=None, compressed=False, side=8):
        images = torch.zeros(count, side, side)
        images[:, 0, 0] = torch.arange(count)
        labels = torch.arange(count) % 10 if labels is None else torch.tensor(labels)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_bytes(array)
            path = tmp_path / f"{prefix}-{kind}-ubyte{'.gz' if compressed else ''}"
            path.write_bytes(gzip.compress(content) if compressed else content)
        return tmp_path

    return write
