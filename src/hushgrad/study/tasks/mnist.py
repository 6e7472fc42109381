"""MNIST, or anything in its format (Fashion-MNIST, KMNIST), from a folder of IDX files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor
from torch.utils.data import TensorDataset

from hushgrad.errors import InvalidArgumentError, TaskDataError
from hushgrad.study.tasks.encoders import ArrayEncoder
from hushgrad.study.tasks.files import first_existing, require_existing
from hushgrad.study.tasks.idx import FETCH, read_idx
from hushgrad.study.tasks.task import (
    OF_TABLES,
    OF_TEXT,
    Recipe,
    Task,
    TaskOptions,
    choose_classes,
    fixed_split,
    require_known_classes,
)

RECIPE = Recipe(
    model="scatter-linear",
    batch_size=2000,
    epochs=20,
    learning_rate=0.8,
    max_grad_norm=1.0,
    average_decay=0.9,
    max_physical_batch_size=512,
)
RECIPES = {1.0: replace(RECIPE, learning_rate=0.3), 3.0: RECIPE, 8.0: replace(RECIPE, learning_rate=1.6)}

CNN = Recipe(
    model="cnn",
    batch_size=250,
    epochs=15,
    learning_rate=0.1,
    max_grad_norm=1.0,
    augmentations=4,
    average_decay=0.98,
    max_physical_batch_size=64,
)
CNN_RECIPES = {1.0: replace(CNN, learning_rate=0.05), 3.0: CNN, 8.0: replace(CNN, learning_rate=0.2)}

CLASS_NAMES = tuple(str(digit) for digit in range(10))
LARGEST_PIXEL = 255.0


def load(options: TaskOptions) -> Task:
    """Return the task from the folder `data`; takes `classes` ("0" … "9").

    A folder with `train-*` and `t10k-*` keeps that division. A folder with one pair is split 80 to 20 first, always in
    the same way, and the classes are chosen afterwards: whatever classes are asked for, the same images are held out.
    """
    options.refuse("mnist", *OF_TABLES, *OF_TEXT)
    require_known_classes(options.classes, CLASS_NAMES)
    if options.data is None:
        raise InvalidArgumentError("it needs a folder of IDX files", where="task 'mnist'", cure="Give --data DIR")
    require_existing("mnist", options.data, folder=True)
    found = [_read_pair(options.data, prefix) for prefix in ("train", "t10k")]
    pairs = [pair for pair in found if pair is not None]
    if not pairs:
        raise TaskDataError(
            "it must hold train-images-idx3-ubyte and train-labels-idx1-ubyte, or the t10k pair (.gz is accepted); "
            "neither pair is there",
            where="the data folder",
            cure="Put at least one pair there",
        )
    train, test = pairs if len(pairs) == 2 else _split(pairs[0])
    if train.tensors[0].shape[1:] != test.tensors[0].shape[1:]:
        raise TaskDataError(
            "training and test images must have the same size",
            where="the data folder",
            cure="Put both pairs of one data set there",
        )
    train, test, names = choose_classes(train, test, CLASS_NAMES, options.classes)
    rows, columns = train.tensors[0].shape[2:]
    encoder = ArrayEncoder(rows, columns, LARGEST_PIXEL)
    return Task("mnist", f"images of {rows}×{columns} pixels from IDX files", train, test, names, encoder=encoder)


def _read_pair(folder: Path, prefix: str) -> TensorDataset | None:
    """Return the images [N, 1, rows, columns] in 0 … 1 and labels of one pair of files, or None if both are absent."""
    images_path = first_existing(folder, (f"{prefix}-images-idx3-ubyte", f"{prefix}-images.idx3-ubyte"))
    labels_path = first_existing(folder, (f"{prefix}-labels-idx1-ubyte", f"{prefix}-labels.idx1-ubyte"))
    if images_path is None and labels_path is None:
        return None
    if images_path is None or labels_path is None:
        missing = "images" if images_path is None else "labels"
        raise TaskDataError(
            f"it holds one half of the {prefix} pair: the {missing} file is missing",
            where="the data folder",
            cure="Put the missing file there",
        )
    images, labels = read_idx(images_path, dimensions=3), read_idx(labels_path, dimensions=1)
    if len(images) != len(labels):
        raise TaskDataError(
            f"there must be one label per image, got {len(images)} images and {len(labels)} labels",
            where=f"the {prefix} pair",
            cure=FETCH,
        )
    _check_labels(labels, prefix)
    return TensorDataset((images.float() / LARGEST_PIXEL).unsqueeze(1), labels.long())


def _check_labels(labels: Tensor, prefix: str) -> None:
    if bool((labels >= len(CLASS_NAMES)).any()):
        raise TaskDataError(
            f"labels must be 0 … {len(CLASS_NAMES) - 1}, and one is larger", where=f"the {prefix} pair", cure=FETCH
        )


def _split(pair: TensorDataset) -> tuple[TensorDataset, TensorDataset]:
    images, labels = pair.tensors
    kept, held_out = fixed_split(len(labels))
    if not len(held_out):
        raise TaskDataError(
            f"at least 3 images are needed, so that some can be held out for testing, got {len(labels)}",
            where="the data folder",
            cure="Use more images",
        )
    return TensorDataset(images[kept], labels[kept]), TensorDataset(images[held_out], labels[held_out])
