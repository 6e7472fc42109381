"""Padding rows: they run through the model and count for nothing.

An item of constant shape ends with rows that no record was drawn for. What is recorded of them is cut off before norms
are taken, so that it is never read: nothing is multiplied by 0, which would let Inf and NaN through.
"""

from __future__ import annotations

import torch

from hushgrad.errors import PrivacyUnitError
from hushgrad.gradients.contribution import Contribution


@torch.no_grad()  # what was recorded may still hang on the graph of the forward
def without_padding(uses: dict[str, list[Contribution]], drawn: int, rows: int) -> dict[str, list[Contribution]]:
    """Return the uses of the first `drawn` of `rows` examples, as views.

    Guarantee: padding rows contribute exactly 0, whatever they hold.

    Raises:
        PrivacyUnitError: a use has another number of examples than the item has rows.
    """
    if drawn == rows:
        return uses
    return {name: [_first(part, drawn, rows, name) for part in parts] for name, parts in uses.items()}


def _first(part: Contribution, drawn: int, rows: int, name: str) -> Contribution:
    if part.batch_size != rows:
        raise PrivacyUnitError(
            f"saw {part.batch_size} examples in an item of {rows} rows, so padding cannot be told from examples",
            where=name,
            cure="Give the model one row for each row of the item",
        )
    return part.map_examples(lambda operand: operand[:drawn])
