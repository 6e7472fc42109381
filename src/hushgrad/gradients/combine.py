"""Several uses of one parameter become one contribution, so that their sum is what is clipped."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hushgrad.gradients.contribution import Contribution
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.outer import OuterProducts
from hushgrad.gradients.places import Places
from hushgrad.gradients.rows import Rows
from hushgrad.gradients.tied import Tied


def combine(contributions: Sequence[Contribution]) -> Contribution:
    """Return one contribution whose gradients are the sums of the given ones, example by example.

    Uses of one form are joined along their positions; lookups and products of one table stay apart (`Tied`); others
    are added as `[B, *shape]` gradients.
    """
    if len(contributions) == 1:
        return contributions[0]
    contributions = [part.wide for part in contributions]
    first = contributions[0]
    outers = [part for part in contributions if isinstance(part, OuterProducts)]
    tables = [part for part in contributions if isinstance(part, Rows)]
    if len(outers) + len(tables) == len(contributions):
        if not tables:
            return _outer_products(outers)
        return Tied(_rows(tables), _outer_products(outers)) if outers else _rows(tables)
    if isinstance(first, Places):
        places = [part for part in contributions if isinstance(part, Places) and part.same_form(first)]
        if len(places) == len(contributions):
            return Places(_rows([part.rows for part in places]), first.shape, first.dims)
    total = first.per_example()
    for part in contributions[1:]:
        total = total + part.per_example()
    return Dense(total)


def _outer_products(parts: Sequence[OuterProducts]) -> OuterProducts:
    if len(parts) == 1:
        return parts[0]
    return OuterProducts(torch.cat([part.left for part in parts], 1), torch.cat([part.right for part in parts], 1))


def _rows(parts: Sequence[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    ids_BT = torch.cat([part.ids for part in parts], 1)
    return Rows(ids_BT, torch.cat([part.gradients for part in parts], 1), parts[0].num_rows)
