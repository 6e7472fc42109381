"""Images as arrays of pixels: IDX files, and NumPy's, of which no pickle is read."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hushgrad.errors import TaskDataError
from hushgrad.printable import printable
from hushgrad.study.tasks.files import MAX_BYTES
from hushgrad.study.tasks.idx import read_idx


def read_arrays(path: Path) -> Sequence[Any]:
    """Return the images of an IDX file (`.gz` or not), or of a .npy or .npz file that holds one array."""
    if path.suffix not in (".npy", ".npz"):
        return list(read_idx(path, dimensions=3).numpy())
    where = repr(printable(path.name))
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TaskDataError(f"it must have at most {MAX_BYTES} bytes", where=where, cure="Split it")
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return list(loaded)
        with loaded:
            if len(loaded.files) != 1:
                raise TaskDataError(
                    f"it must hold one array, the images, got {len(loaded.files)}", where=where, cure="Save them alone"
                )
            if sum(part.file_size for part in loaded.zip.infolist()) > MAX_BYTES:
                raise TaskDataError(f"it must hold at most {MAX_BYTES} bytes", where=where, cure="Split it")
            return list(loaded[loaded.files[0]])
    except TaskDataError:
        raise
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile):
        raise TaskDataError(
            "it is missing, or is no file of plain numbers by NumPy (objects are never read)",
            where=where,
            cure="Save the images by numpy.save",
        ) from None


def array_of(images: Sequence[Any], rows: int, columns: int, largest: float) -> Tensor:
    """Return images of `rows` × `columns` pixels from 0 to `largest` as [N, 1, rows, columns] in 0 … 1."""
    prepared = []
    for number, image in enumerate(images, start=1):
        try:
            pixels = np.asarray(image, dtype=np.float32)
        except (TypeError, ValueError):
            raise TaskDataError("must be an array of numbers", where=f"image {number}", cure="Pass pixels") from None
        if pixels.shape not in ((rows, columns), (1, rows, columns)):
            raise TaskDataError(
                f"must have {rows}×{columns} pixels, got an array of shape {pixels.shape}",
                where=f"image {number}",
                cure="Bring it to the size of the training images",
            )
        if not (pixels >= 0).all() or not (pixels <= largest).all():
            raise TaskDataError(
                f"pixels must be 0 … {largest:g}, and one is not", where=f"image {number}", cure="Scale them"
            )
        prepared.append(pixels.reshape(1, rows, columns))
    stacked = np.stack(prepared) if prepared else np.zeros((0, 1, rows, columns), np.float32)
    return torch.from_numpy(stacked / np.float32(largest))
