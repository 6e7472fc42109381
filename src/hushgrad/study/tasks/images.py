"""Pictures in folders that are named after their classes, brought to 32×32 pixels with three colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from hushgrad.errors import InvalidArgumentError, TaskDataError
from hushgrad.printable import printable
from hushgrad.study.tasks.files import require_existing
from hushgrad.study.tasks.folders import read_folders
from hushgrad.study.tasks.task import Recipe, Task, TaskOptions, choose_classes

RECIPE = Recipe(model="cnn", batch_size=256, epochs=30, learning_rate=0.1, max_grad_norm=1.0)
RECIPES = {3.0: RECIPE}

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
SIDE = 32
LARGEST_PIXEL = 255.0
MOST_PIXELS = 1 << 26
CLASSES_WERE_READ = (
    "the list of classes was read from the names of the folders (name them with --classes to avoid this)"
)


def load(options: TaskOptions) -> Task:
    """Return the task from the folder `data`; takes `classes`. Needs Pillow, which matplotlib brings.

    Pixels are divided by their public maximum; no mean is taken. Each picture is resized by itself.
    """
    options.refuse("images", "target", "categorical", "bounds", "drop", "vocabulary", "subgroup")
    if options.data is None:
        raise InvalidArgumentError(
            "it needs a folder with one folder of pictures for each class", where="task 'images'", cure="Give --data"
        )
    require_existing("images", options.data, folder=True)
    filed = read_folders(options.data, SUFFIXES)
    train, test = (
        TensorDataset(torch.stack([_picture(path) for path, _ in part]), torch.tensor([label for _, label in part]))
        for part in (filed.train, filed.test)
    )
    train, test, names = choose_classes(train, test, filed.classes, options.classes)
    outside = () if options.classes else (CLASSES_WERE_READ,)
    return Task("images", f"pictures, {SIDE}×{SIDE} pixels", train, test, tuple(map(printable, names)), outside)


def _picture(path: Path) -> Tensor:
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
        with Image.open(path) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise TaskDataError(
                    f"it must have at most {MOST_PIXELS} pixels",
                    where=f"picture {printable(path.name)!r}",
                    cure="Make it smaller",
                )
            small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, TaskDataError):
            raise
        raise TaskDataError(
            "it cannot be read", where=f"picture {printable(path.name)!r}", cure="Remove or repair it"
        ) from error
    return torch.from_numpy(np.asarray(small, dtype=np.float32) / LARGEST_PIXEL).permute(2, 0, 1).contiguous()
