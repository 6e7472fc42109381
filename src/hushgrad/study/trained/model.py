"""A trained model in use: rows in, classes and probabilities out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hushgrad.errors import TaskDataError
from hushgrad.study.scoring import EVALUATION_BATCH
from hushgrad.study.tasks.task import Encoder


@dataclass(frozen=True, eq=False, slots=True)
class TrainedModel:
    """What a run has trained (see `hushgrad.load`).

    Attributes:
        model: in evaluation mode, on the CPU; inputs `[B, *input_shape]`, logits [B, classes].
        encoder: makes inputs of rows.
        classes: the names of the classes, in the order of the logits.
        input_shape: of one input.
        guarantee: what holds for the training records, as a sentence, from the header of the model's file.
        folder: the run's.
    """

    model: nn.Module
    encoder: Encoder
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    guarantee: str
    folder: Path

    def read(self, path: str | os.PathLike[str]) -> Sequence[Any]:
        """Return the rows of a file, for `predict`.

        For a table a CSV or TSV file whose first line names the columns; for sentences a file under a header line; for
        images of pixels an IDX, .npy or .npz file; for pictures a folder or one file.

        Raises TaskDataError, without a value of the file.
        """
        return self.encoder.read(Path(path))

    def encode(self, rows: Sequence[Any]) -> Tensor:
        """Return the model's inputs for rows, `[N, *input_shape]`.

        Args:
            rows: a sequence (an array or a tensor is one, too) of mappings of columns to cells, sentences, arrays of
                pixels or paths of pictures, by the run's task.

        Raises TaskDataError, without a value of the rows.
        """
        return self.encoder.encode(_listed(rows))

    def predict_proba(self, rows: Sequence[Any]) -> Tensor:
        """Return the probability of each class for each row, [N, classes], float32, rows that sum to 1."""
        return self._logits(rows).softmax(1)

    def predict(self, rows: Sequence[Any]) -> list[str]:
        """Return the name of the likeliest class of each row."""
        return [self.classes[place] for place in self._logits(rows).argmax(1).tolist()]

    def export(self, path: str | os.PathLike[str], *, format: str) -> Path:
        """Write the model for other programs, with its encoding and a model card beside it; return the model's file.

        The model takes encoded rows, `[B, *input_shape]`, and gives logits, [B, classes], for any B.

        Args:
            path: a folder, made where it is missing; files of an earlier export are replaced.
            format: "safetensors" (the parameters), "torch-export" (a program for `torch.export.load`) or "onnx".

        Raises:
            InvalidArgumentError: an unknown format, or the run's own folder.
            MissingExtraError: what the format or the card needs is not installed.
        """
        from hushgrad.study.trained.exporting import export_to  # a card needs more than predictions do

        return export_to(Path(path), self.folder, self.model, self.input_shape, self.encoder, self.classes, format)

    @torch.no_grad()
    def _logits(self, rows: Sequence[Any]) -> Tensor:
        rows = _listed(rows)
        parts = [
            self.model(self.encode(rows[first : first + EVALUATION_BATCH]))
            for first in range(0, len(rows), EVALUATION_BATCH)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, len(self.classes))


def _listed(rows: Any) -> list[Any]:
    """Return rows as a list; what is one row, or shows its rows once only, or iterates over columns, is refused."""
    is_array = isinstance(rows, np.ndarray | Tensor) and rows.ndim > 0
    if not is_array and (not isinstance(rows, Sequence) or isinstance(rows, str | bytes)):
        raise TaskDataError(
            f"must be a list of rows, got {type(rows).__name__}",
            where="rows",
            cure="Pass a list, also for one row (of a pandas frame: frame.to_dict('records'))",
        )
    return list(rows)
