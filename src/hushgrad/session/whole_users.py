"""The records of a user are one example: their gradients are joined before norms are taken, and clipped once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hushgrad.errors import PrivacyUnitError
from hushgrad.gradients.contribution import Contribution
from hushgrad.gradients.groups import Groups

Uses = dict[str, list[Contribution]]


@torch.no_grad()  # what was recorded may still hang on the graph of the forward
def of_users(uses: Uses, owners: Sequence[int], *, averages: bool) -> tuple[Uses, int]:
    """Return the uses of one item by its users, and how many of these there are.

    Args:
        uses: by the records that were drawn, in their order.
        owners: the user of each of them; those of one stand together.
        averages: whether a user's gradient is the mean of that of their records, or else the sum.

    Guarantee: what a user's records contribute is clipped once, as a whole.

    Raises:
        PrivacyUnitError: a use has another number of examples than there are records.
    """
    groups = Groups.of(owners, averages=averages, device=torch.device("cpu"))
    found: Uses = {}
    for name, parts in uses.items():
        try:
            found[name] = [part.of_groups(groups) for part in parts]
        except PrivacyUnitError as error:
            raise PrivacyUnitError(error.what, where=name, cure=error.cure) from None
    return found, groups.count
