"""A folder of MNIST's training images alone, divided for choosing settings: no test image is in it.

    python -m benchmarks.validation_part --data DIR --out OUT

`--task mnist --data DIR` keeps a part of the images for testing (docs/training.md). Of those that it trains on, a fifth
become the `t10k` pair of OUT, by a public order, and the rest the `train` pair. So a sweep over OUT shows settings how
they do on images that they were not trained on, and the test images stay unseen until the settings are settled.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from torch import Tensor

from hushgrad.study.tasks import TaskOptions, load_task
from hushgrad.study.tasks.mnist import LARGEST_PIXEL

PUBLIC_SEED = 20261130
PARTS = 5


def write_idx(path: Path, values: Tensor) -> None:
    """Write bytes in IDX format."""
    array = values.numpy().astype(np.uint8)
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    path.write_bytes(header + array.tobytes())


def write_parts(data: Path, out: Path) -> tuple[int, int]:
    """Divide the training images of the folder `data`; return how many are in each part."""
    images, labels = load_task("mnist", TaskOptions(data=data)).train.tensors
    order = np.random.Generator(np.random.PCG64(PUBLIC_SEED)).permutation(len(labels))
    held_out = len(labels) // PARTS
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("t10k", order[:held_out]), ("train", order[held_out:])):
        write_idx(out / f"{name}-images-idx3-ubyte", (images[rows, 0] * LARGEST_PIXEL).round())
        write_idx(out / f"{name}-labels-idx1-ubyte", labels[rows])
    return len(labels) - held_out, held_out


def main() -> None:
    """Write the parts and say how large they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    trained, held_out = write_parts(arguments.data, arguments.out)
    print(f"{trained} images to train on, {held_out} to choose by")


if __name__ == "__main__":
    main()
