"""Contribution bounding: at most k records of each user are kept, by random choice, before anything is declared.

What a user may have is declared, a constant chosen without looking at the data. The greatest number that is found in
them is no bound: it is that of one user, who changes it by leaving. So are a median and a quantile.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hushgrad.arguments import whole_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.randomness import Address, KeyStream
from hushgrad.sampling.ownership import user_ids


def bounded_contributions(users: Any, *, at_most: int, key: KeyStream | None = None) -> list[int]:
    """Return which records to keep so that no user has more than `at_most`, ascending.

    Bound contributions first, and then declare the number of records, rates and batch sizes of what is kept::

        kept = hushgrad.bounded_contributions(user_of_record, at_most=16)
        dataset = Subset(dataset, kept)
        users = [user_of_record[i] for i in kept]

    For whole users (`UserSampling`, examples_per_user=16), and for records drawn one by one (ε for
    `group_size=16`). A run that goes on in another process may choose anew: each step holds a user to the bound.

    Args:
        users: one id for each record, in the order of the records.
        at_most: k, a constant that was not read off the data.
        key: a fixed one for tests; by default secret bits of the operating system.

    Guarantee: each user keeps a uniformly random `at_most` of their records, whatever others have, or all of fewer.

    Raises `InvalidArgumentError` for ids that are none, or `at_most` below 1.
    """
    ids, most = user_ids(users), whole_number("at_most", at_most, minimum=1)
    if key is not None and not isinstance(key, KeyStream):
        raise InvalidArgumentError(
            f"must be a KeyStream, got {type(key).__name__}",
            where="key",
            cure="Leave it out, or pass KeyStream.fixed_for_tests(seed) in a test",
        )
    stream = (key or KeyStream.from_operating_system()).fork("contribution bounds")
    words = np.empty(ids.records, np.uint64)
    stream.fill(words, Address(0))
    # Within each user by random words: the first ones are a uniform choice.
    order = np.lexsort((words, ids.codes))
    rank = np.arange(ids.records) - np.repeat(np.cumsum(ids.sizes) - ids.sizes, ids.sizes)
    kept: list[int] = np.sort(order[rank < most]).tolist()
    return kept
