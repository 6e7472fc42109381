"""Several uses of one parameter become one contribution, so that their sum is what is clipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from hushgrad.gradients.contribution import Contribution
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.outer import OuterProducts
from hushgrad.gradients.rows import Rows


def combine(contributions: Sequence[Contribution]) -> Contribution:
    """Return one contribution whose gradients are the sums of the given ones, example by example.

    Uses of one form are joined along their positions; different forms are added as `[B, *shape]` gradients.
    """
    first = contributions[0]
    if len(contributions) == 1:
        return first
    if all(isinstance(part, OuterProducts) for part in contributions):
        outers = cast("Sequence[OuterProducts]", contributions)
        return OuterProducts(
            torch.cat([part.left for part in outers], 1), torch.cat([part.right for part in outers], 1)
        )
    if all(isinstance(part, Rows) for part in contributions):
        tables = cast("Sequence[Rows]", contributions)
        ids_BT = torch.cat([part.ids for part in tables], 1)
        return Rows(ids_BT, torch.cat([part.gradients for part in tables], 1), tables[0].num_rows)
    total = first.per_example()
    for part in contributions[1:]:
        total = total + part.per_example()
    return Dense(total)
