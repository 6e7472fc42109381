"""The caller's collate function, with what it was given beside what it returned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data.dataloader import default_collate

from hushgrad.errors import BatchStructureError, where_raised
from hushgrad.sampling.extent import extent_of


class CountingCollate:
    """The caller's `collate_fn`, or torch's, with how many records it was given beside what it returned.

    Of the caller's, which may cut and pad, also how much each of them held.
    """

    def __init__(self, collate_fn: Callable[[list[Any]], Any] | None) -> None:
        self._collate_fn = collate_fn

    def __call__(self, records: list[Any]) -> tuple[int, tuple[int, ...], Any]:
        """Return how many records there were, how much each held, and the item. Raises `BatchStructureError`."""
        try:
            if self._collate_fn in (None, default_collate):
                return len(records), (), default_collate(records)
            extents = tuple(map(extent_of, records))  # before: it may change the records
            return len(records), extents, self._collate_fn(records)
        except Exception as error:
            # The text of the caller's exception may hold data; its type and its place do not.
            raise BatchStructureError(
                f"collate_fn raised {where_raised(error)}",
                cure="Let it accept any number of records from 1 on, all of one structure",
            ) from None
