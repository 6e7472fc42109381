"""Pictures in folders that are named after their classes, brought to 32×32 pixels with three colours."""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset

from hushgrad.errors import InvalidArgumentError
from hushgrad.printable import printable
from hushgrad.study.tasks.encoders import PictureEncoder
from hushgrad.study.tasks.files import require_existing
from hushgrad.study.tasks.folders import read_folders
from hushgrad.study.tasks.pictures import SIDE, SUFFIXES, picture
from hushgrad.study.tasks.task import OF_TABLES, OF_TEXT, Recipe, Task, TaskOptions, choose_classes

RECIPE = Recipe(model="cnn", batch_size=256, epochs=30, learning_rate=0.1, max_grad_norm=1.0)
RECIPES = {3.0: RECIPE}

WRN = Recipe(
    model="wrn",
    batch_size=4096,
    epochs=72,
    learning_rate=2.0,
    max_grad_norm=1.0,
    momentum=0.0,
    activation="relu",
    augmentations=16,
    average_decay=0.9999,
    max_physical_batch_size=16,
    cited="De et al. 2022",
)
WRN_RECIPES = {3.0: WRN}

CLASSES_WERE_READ = (
    "the list of classes was read from the names of the folders (name them with --classes to avoid this)"
)


def load(options: TaskOptions) -> Task:
    """Return the task from the folder `data`; takes `classes`. Needs Pillow, which matplotlib brings.

    Pixels are divided by their public maximum; no mean is taken. Each picture is resized by itself.
    """
    options.refuse("images", *OF_TABLES, *OF_TEXT)
    if options.data is None:
        raise InvalidArgumentError(
            "it needs a folder with one folder of pictures for each class", where="task 'images'", cure="Give --data"
        )
    require_existing("images", options.data, folder=True)
    filed = read_folders(options.data, SUFFIXES)
    train, test = (
        TensorDataset(torch.stack([picture(path) for path, _ in part]), torch.tensor([label for _, label in part]))
        for part in (filed.train, filed.test)
    )
    train, test, names = choose_classes(train, test, filed.classes, options.classes)
    outside = () if options.classes else (CLASSES_WERE_READ,)
    return Task(
        "images",
        f"pictures, {SIDE}×{SIDE} pixels",
        train,
        test,
        tuple(map(printable, names)),
        outside,
        encoder=PictureEncoder(),
    )
