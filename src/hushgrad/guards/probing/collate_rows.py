"""Are the rows of a batch the same in another one that was padded, or cut, to other records?"""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from hushgrad.guards.probing.rows import rows_agree


def rows_agree_but_for_padding(one: Tensor, two: Tensor, *, whole: bool = False, noisy: bool = False) -> bool:
    """Return whether rows agree where both have values, and hold one constant beyond, on the right or on the left.

    Args:
        one, two: `[rows, ...]`, of as many dimensions.
        whole: whether `two` has all that its rows hold: what `one` lacks of it was cut off, and is no padding unless
            there is the same padding elsewhere. What `one` has beyond it over pairs of positions (a causal mask) may be
            other than constant.
        noisy: whether what lies beyond may be random numbers.
    """
    if one.shape[1:] == two.shape[1:]:
        return rows_agree(one, two)
    return any(_agree_on_a_side(one, two, left, whole, noisy) for left in (False, True))


def _agree_on_a_side(one: Tensor, two: Tensor, left: bool, whole: bool, noisy: bool) -> bool:
    shape = [min(a, b) for a, b in zip(one.shape, two.shape, strict=True)]
    parts, paddings = [], []
    for tensor in (one, two):
        sides = zip(tensor.shape, shape, strict=True)
        common = tuple(slice(size - length if left else 0, size if left else length) for size, length in sides)
        beyond = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
        beyond[common] = False
        parts.append(tensor[common])
        paddings.append(tensor[beyond])
    if whole and paddings[1].numel() and not paddings[0].numel():
        return False
    if whole and not paddings[1].numel() and sum(map(operator.ne, one.shape[1:], two.shape[1:])) > 1:
        return rows_agree(*parts)
    values = torch.cat(paddings)
    is_constant = noisy or bool(((values == values[:1]) | (values.isnan() & values[:1].isnan())).all())
    return is_constant and rows_agree(*parts)
