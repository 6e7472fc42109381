"""From per-example gradients in factored form to the sum of clipped ones (docs/design.md, §1 and §5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence

import torch
from torch import Tensor

from hushgrad.gradients.alike import Alike, alike
from hushgrad.gradients.combine import combine
from hushgrad.gradients.contribution import Contribution, Plan, full_precision


def clipped_sums(
    contributions: MutableMapping[str, list[Contribution]],
    *,
    factors: Callable[[Tensor], Tensor],
    scale: float = 1.0,
    plan: Plan | None = None,
    watch: Callable[[Mapping[str, Contribution], Tensor], None] | None = None,
) -> dict[str, Tensor]:
    """Return Σ_i f(‖s·g_i‖) · s · g_i for each parameter, where the norm runs over all parameters together.

    Args:
        contributions: for each parameter the uses that were recorded for one physical batch of B examples. The mapping
            is emptied, so that what they hold can go as soon as its sum is formed.
        factors: norms `[B]` to clip factors `[B]`, for instance `FlatClipping(1.0).factors`.
        scale: s, a public constant that undoes the division of a mean loss by the physical batch size.
        plan: how norms are computed.
        watch: is shown the contributions of each parameter and the weights `[B]` that they are summed with.

    Guarantee: an example whose gradient is not finite contributes exactly 0, and a finite one never more than its
    factor allows, also where its squared norm overflows float32.
    """
    with full_precision():
        return _clipped_sums(contributions, factors, scale, plan or Plan(), watch)


def _clipped_sums(
    contributions: MutableMapping[str, list[Contribution]],
    factors: Callable[[Tensor], Tensor],
    scale: float,
    plan: Plan,
    watch: Callable[[Mapping[str, Contribution], Tensor], None] | None,
) -> dict[str, Tensor]:
    combined = {name: combine(parts) for name, parts in contributions.items() if parts}
    contributions.clear()
    if not combined:
        return {}
    groups, alone = alike(combined, plan)
    squared_B = _measure(combined, alone, groups, plan)
    weights_B = factors(squared_B.sqrt() * scale) * scale
    if watch is not None:
        watch(combined, weights_B)
    overflowed_B = ~torch.isfinite(squared_B)
    if not overflowed_B.any():
        sums = {name: combined.pop(name).weighted_sum(weights_B) for name in alone}
        for group in groups:
            sums.update(zip(group.names, group.weighted_sums(weights_B).unbind(), strict=True))
        return sums
    sums = {
        name: part.zeroed(overflowed_B).weighted_sum(weights_B.masked_fill(overflowed_B, 0))
        for name, part in combined.items()
    }
    rows = overflowed_B.nonzero().squeeze(1)
    for name, rescued in _sums_in_float64(combined, rows, factors, scale, plan).items():
        sums[name] += rescued.to(sums[name].dtype)
    return sums


def _measure(combined: dict[str, Contribution], alone: Sequence[str], groups: Sequence[Alike], plan: Plan) -> Tensor:
    """Return squared norms `[B]` over all parameters.

    Contributions that stand alone are replaced one by one by what is cheapest to sum: where gradients are formed and
    kept, their operands can go.
    """
    squares: list[Tensor] = [group.measure() for group in groups]
    for name in alone:
        part = combined[name]
        squared_B, combined[name] = part.measure(plan)
        if combined[name] is not part:
            plan = plan.after(combined[name].nbytes - part.nbytes)
        squares.append(squared_B)
    total = squares[0]
    for squared_B in squares[1:]:
        total = total + squared_B.to(total.device)
    return total


def _sums_in_float64(
    combined: Mapping[str, Contribution],
    rows: Tensor,
    factors: Callable[[Tensor], Tensor],
    scale: float,
    plan: Plan,
) -> dict[str, Tensor]:
    """The clipped sum of a few examples with huge gradients; those that are not finite are left out."""
    chosen = {name: part.select(rows) for name, part in combined.items()}
    squared_R = _measure(chosen, list(chosen), [], plan)
    broken_R = ~torch.isfinite(squared_R)
    weights_R = (factors(squared_R.sqrt() * scale) * scale).masked_fill(broken_R, 0)
    return {name: part.zeroed(broken_R).weighted_sum(weights_R) for name, part in chosen.items()}
