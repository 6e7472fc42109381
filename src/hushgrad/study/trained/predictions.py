"""Predictions as CSV: one line for each row, with the likeliest class and the probability of every class."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from torch import Tensor

from hushgrad.study.csv_cells import as_text_cell


def predictions_csv(classes: Sequence[str], probabilities_NL: Tensor) -> str:
    """Return the table: the number of the row (1 for the first), its class, and the probabilities in [0, 1]."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", "class", *(f"probability of {name}" for name in classes)])
    for number, row_L in enumerate(probabilities_NL.tolist(), start=1):
        likeliest = max(range(len(row_L)), key=row_L.__getitem__)
        writer.writerow([number, as_text_cell(classes[likeliest]), *(f"{value:.6g}" for value in row_L)])
    return out.getvalue()
