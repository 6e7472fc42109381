"""What each example's gradient is multiplied by, from its squared norms; and the sum of what is so multiplied.

Where float32 loses an example (its squares overflow, or its weight is tiny), that one is measured again and summed in
float64; one that is not finite there contributes 0, by selection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hushgrad.clipping.bound import BoundRule
from hushgrad.errors import SensitivityMismatchError
from hushgrad.gradients.accumulation import AsTheyCome
from hushgrad.gradients.contribution import Contribution
from hushgrad.gradients.rounding import FAINT, LEAST_WEIGHT


class Told(NamedTuple):
    """Who is told of an excess, and of the norms."""

    excess: Callable[[SensitivityMismatchError], None]
    norms: Callable[[Tensor], None]


class Weights(NamedTuple):
    """Norms as they were measured and weights, factor · scale, both `[G, B]`.

    `lost` marks the examples that float32 lost, `[B]`; None where it lost none. Of these the weights here say nothing.
    """

    roots: Tensor
    values: Tensor
    lost: Tensor | None

    @property
    def kept(self) -> Tensor:
        """The weights of the others, and 0 for those that were lost."""
        return self.values if self.lost is None else self.values.masked_fill(self.lost, 0)


class Rescued(NamedTuple):
    """Some of the lost examples, which they are, their norms and weights, `[G, R]`, and those that are not finite."""

    rows: Tensor
    roots: Tensor
    values: Tensor
    broken: Tensor


def weights_of(
    squares_GB: Tensor, clip: BoundRule, scale: float, floor: float, on_excess: Callable[..., None]
) -> Weights:
    """Return the weights for squared norms of the contributions as they are.

    Guarantee: every example's factor times its norm is within the limit of each group, unless it is lost.

    Args:
        squares_GB: in float64, infinite where float32 cannot tell.
        clip: the clip rule.
        scale: undoes the division of a mean loss.
        floor: the squared norm below which digits were left out.
        on_excess: is told of an example that would enter with more than a limit.
    """
    if floor < FAINT:  # a clip norm so small that squares may have underflowed
        squares_GB = squares_GB.masked_fill(squares_GB < FAINT, torch.inf)
    roots_GB = squares_GB.sqrt()
    weights_GB = clip.factors(roots_GB * scale) * scale
    within_GB, lost_B = clip.within(roots_GB, weights_GB, scale), None
    is_light_GB = weights_GB.abs() < LEAST_WEIGHT
    if not (within_GB & ~is_light_GB).all():  # the one look at values of a physical batch: it waits for the device
        overflowed_B = ~torch.isfinite(squares_GB).all(0)
        if not (within_GB | overflowed_B).all():
            on_excess(clip.excess())
        lost_B = overflowed_B | (is_light_GB & (weights_GB != 0)).any(0)
    return Weights(roots_GB, weights_GB, lost_B if lost_B is not None and lost_B.any() else None)


def weights_in_float64(squares_GR: Tensor, rows: Tensor, clip: BoundRule, scale: float, told: Told) -> Rescued:
    """Return the weights of lost examples, for their squared norms in float64."""
    broken_R = ~torch.isfinite(squares_GR).all(0)
    roots_GR = squares_GR.sqrt().masked_fill(broken_R, 0)
    weights_GR = (clip.factors(roots_GR * scale) * scale).masked_fill(broken_R, 0)
    if not clip.within(roots_GR, weights_GR, scale).all():
        told.excess(clip.excess())
    told.norms((roots_GR * scale).masked_fill(broken_R, torch.nan))
    return Rescued(rows, roots_GR, weights_GR, broken_R)


def rescued_sum(
    part: Contribution, group: int, weights: Weights, portions: Sequence[Rescued], accumulation: AsTheyCome
) -> Tensor:
    """Return the sum of a contribution's examples, those that are lost added in float64, portion by portion."""
    assert weights.lost is not None
    total = accumulation.sum(part.zeroed(weights.lost), weights.kept[group])
    for some in portions:
        chosen = part.select(some.rows).zeroed(some.broken)
        total += accumulation.sum(chosen, some.values[group]).to(total.dtype)
    return total
