"""One picture of a file as a tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hushgrad.errors import TaskDataError
from hushgrad.printable import printable

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
SIDE = 32
LARGEST_PIXEL = 255.0
MOST_PIXELS = 1 << 26


def picture(path: Path) -> Tensor:
    """Return one picture, [3, SIDE, SIDE] in 0 … 1. Raises TaskDataError for a file that is none, or far too large."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise TaskDataError(
            "Pillow, which reads pictures, is not installed",
            where="task 'images'",
            cure="Run pip install 'hushgrad[study]'",
        ) from error
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise TaskDataError(
                    f"it must have at most {MOST_PIXELS} pixels",
                    where=f"picture {printable(path.name)!r}",
                    cure="Make it smaller",
                )
            small = opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, TaskDataError):
            raise
        raise TaskDataError(
            "it cannot be read", where=f"picture {printable(path.name)!r}", cure="Remove or repair it"
        ) from error
    return torch.from_numpy(np.asarray(small, dtype=np.float32) / LARGEST_PIXEL).permute(2, 0, 1).contiguous()
