"""1,797 handwritten digits of 8×8 pixels that come with scikit-learn: nothing to download."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils.data import TensorDataset

from hushgrad.extras import needs_extra
from hushgrad.study.tasks.encoders import ArrayEncoder
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
    model="mlp", batch_size=256, epochs=40, learning_rate=0.1, max_grad_norm=1.0, activation="relu", threads=1
)
RECIPES = {
    1.0: replace(RECIPE, learning_rate=0.05, average_decay=0.97),
    3.0: RECIPE,
    8.0: replace(RECIPE, learning_rate=0.2),
}

FEATURES = Recipe(
    model="scatter-linear",
    batch_size=359,  # a fourth of the images: five steps a pass
    epochs=16,
    learning_rate=0.12,
    max_grad_norm=1.0,
    average_decay=0.9,
    threads=1,
)
FEATURES_RECIPES = {
    1.0: replace(FEATURES, learning_rate=0.06),
    3.0: FEATURES,
    8.0: replace(FEATURES, learning_rate=0.3),
}

CLASS_NAMES = tuple(str(digit) for digit in range(10))
LARGEST_PIXEL = 16.0  # public: the data set's documentation says 0 … 16


def load(options: TaskOptions) -> Task:
    """Return the task; takes `classes` ("0" … "9"). Needs scikit-learn."""
    options.refuse("digits", "data", *OF_TABLES, *OF_TEXT)
    require_known_classes(options.classes, CLASS_NAMES)
    with needs_extra("study", "task 'digits'"):
        from sklearn.datasets import load_digits
    raw = load_digits()
    inputs = (torch.from_numpy(raw.images).float() / LARGEST_PIXEL).unsqueeze(1)
    labels = torch.from_numpy(raw.target).long()
    kept, held_out = fixed_split(len(labels))
    train, test, names = choose_classes(
        TensorDataset(inputs[kept], labels[kept]),
        TensorDataset(inputs[held_out], labels[held_out]),
        CLASS_NAMES,
        options.classes,
    )
    described = "handwritten digits, 8×8 pixels (scikit-learn)"
    return Task("digits", described, train, test, names, encoder=ArrayEncoder(8, 8, LARGEST_PIXEL))
