"""From per-example gradients in factored form to the sum of clipped ones (docs/design.md, §1 and §5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from hushgrad.clipping.bound import BoundRule
from hushgrad.clipping.rule import ClipRule
from hushgrad.errors import SensitivityMismatchError
from hushgrad.gradients.accumulation import AsTheyCome
from hushgrad.gradients.apart import AT_ONCE
from hushgrad.gradients.combine import combine
from hushgrad.gradients.contribution import Contribution, Plan, all_digits, full_precision
from hushgrad.gradients.rounding import FAINT, FLOOR, LEAST_WEIGHT
from hushgrad.gradients.stacking import Stacked, group_by_shape

Parts = dict[str, Contribution]


class Weighed(NamedTuple):
    """What is about to be summed: the contributions of each group, the norms that were measured, and the weights.

    `roots` are norms of the contributions as they are, `weights` factor · `scale`, both `[G, B]`.
    """

    members: Sequence[Mapping[str, Contribution]]
    roots: Tensor
    weights: Tensor
    scale: float


def clipped_sums(
    contributions: MutableMapping[str, list[Contribution]],
    *,
    clip: ClipRule | BoundRule,
    scale: float = 1.0,
    plan: Plan | None = None,
    watch: Callable[[Weighed], None] | None = None,
    on_excess: Callable[[SensitivityMismatchError], None] | None = None,
    on_norms: Callable[[Tensor], None] | None = None,
    accumulation: AsTheyCome | None = None,
) -> dict[str, Tensor]:
    """Return Σ_i f_g(‖s·g_i‖) · s · g_i for each parameter, where norms run over the parameters of a group g together.

    Args:
        contributions: for each parameter the uses that were recorded for one physical batch of B examples. The mapping
            is emptied, so that what they hold can go as soon as its sum is formed.
        clip: the clip rule, for instance `FlatClipping(1.0)`. Where only some of the model's parameters may be among
            the contributions, bind it to all of them: `BoundRule(rule, names)`.
        scale: s, a public constant that undoes the division of a mean loss by the physical batch size.
        plan: how norms are computed.
        watch: is shown what is about to be summed.
        on_excess: is told of an example that would enter with more than a limit, in place of raising.
        on_norms: is given the norms that examples are clipped by, `[G, b]`, of each example once, in one or several
            calls; NaN or infinite where one is left out.
        accumulation: how they are added up; by default in the dtype of the operands.

    Guarantee: an example whose gradient is not finite contributes exactly 0, and a finite one never more than its
    limit times 1 + 1e-5, also where its squared norm overflows or underflows float32 or its terms cancel.
    Guarantee: nothing is summed unless every example's factor times its norm is within the limit of each group.

    Raises:
        SensitivityMismatchError: the rule's factors let more through than its limits, or are not finite.
    """
    if not contributions:
        return {}
    bound = clip if isinstance(clip, BoundRule) else BoundRule(clip, contributions)
    with full_precision(), all_digits():
        needed = replace(plan or Plan(), floor=min(FLOOR, bound.floor(scale) ** 2))
        told = _Told(watch or _nothing, on_excess or _raise, on_norms or _nothing)
        return _clipped_sums(contributions, bound, scale, needed, told, accumulation or AsTheyCome())


class _Told(NamedTuple):
    """Who is told of what is about to be summed, of an excess, and of the norms."""

    watch: Callable[[Weighed], None]
    excess: Callable[[SensitivityMismatchError], None]
    norms: Callable[[Tensor], None]


def _nothing(seen: object) -> None:
    pass


def _raise(excess: SensitivityMismatchError) -> None:
    raise excess


def _clipped_sums(
    contributions: MutableMapping[str, list[Contribution]],
    clip: BoundRule,
    scale: float,
    plan: Plan,
    told: _Told,
    accumulation: AsTheyCome,
) -> dict[str, Tensor]:
    combined = {name: combine(parts) for name, parts in contributions.items() if parts}
    contributions.clear()
    if not combined:
        return {}
    members = clip.split(combined)
    del combined  # so that what a member lets go is gone
    stacks = [group_by_shape(parts, plan) for parts in members]
    squares_GB = _measure(members, stacks, plan)
    if plan.floor < FAINT:  # a clip norm so small that squares may have underflowed
        squares_GB = squares_GB.masked_fill(squares_GB < FAINT, torch.inf)
    roots_GB = squares_GB.sqrt()
    weights_GB = clip.factors(roots_GB * scale) * scale
    within_GB, lost_B = clip.within(roots_GB, weights_GB, scale), None
    is_light_GB = weights_GB.abs() < LEAST_WEIGHT
    if not (within_GB & ~is_light_GB).all():  # the one look at values of a physical batch: it waits for the device
        overflowed_B = ~torch.isfinite(squares_GB).all(0)
        if not (within_GB | overflowed_B).all():
            told.excess(clip.excess())
        lost_B = overflowed_B | (is_light_GB & (weights_GB != 0)).any(0)
    told.watch(Weighed(members, roots_GB, weights_GB, scale))
    if lost_B is not None and lost_B.any():
        told.norms(roots_GB[:, ~lost_B] * scale)
        return _rescued(members, weights_GB, lost_B, roots_GB, clip, scale, plan, told, accumulation)
    told.norms(roots_GB * scale)
    accumulation.note(members, roots_GB, weights_GB)
    sums: dict[str, Tensor] = {}
    for parts, (groups, alone), weights_B in zip(members, stacks, weights_GB.unbind(), strict=True):
        for name in alone:
            sums[name] = accumulation.sum(parts.pop(name), weights_B)
        for group in groups:
            sums.update(zip(group.names, accumulation.sums(group, weights_B).unbind(), strict=True))
    return sums


def _measure(members: Sequence[Parts], stacks: Sequence[tuple[Sequence[Stacked], Sequence[str]]], plan: Plan) -> Tensor:
    """Return squared norms `[G, B]`, over the parameters of each group together.

    Contributions that stand alone are replaced one by one by what is cheapest to sum: where gradients are formed and
    kept, their operands can go.
    """
    rows: list[Tensor | None] = []
    for parts, (groups, alone) in zip(members, stacks, strict=True):
        squares: list[Tensor] = [group.measure(plan) for group in groups]
        for name in alone:
            part = parts[name]
            squared_B, parts[name] = part.measure(plan)
            if parts[name] is not part:
                plan = plan.after(parts[name].nbytes - part.nbytes)
            squares.append(squared_B)
        rows.append(_added(squares))
    return _together(rows)


def _added(squares: Sequence[Tensor]) -> Tensor | None:
    """Return the sum over the parameters of a group; None where none of them was used."""
    if not squares:
        return None
    total = squares[0]
    for squared_B in squares[1:]:
        total = total + squared_B.to(total.device)
    return total


def _together(rows: Sequence[Tensor | None]) -> Tensor:
    """Return the rows as one tensor; a group of which nothing was used has norms 0."""
    if len(rows) == 1 and rows[0] is not None:
        return rows[0].unsqueeze(0)
    some = next(row for row in rows if row is not None)
    return torch.stack([torch.zeros_like(some) if row is None else row.to(some.device) for row in rows])


def _rescued(
    members: Sequence[Parts],
    weights_GB: Tensor,
    lost_B: Tensor,
    roots_GB: Tensor,
    clip: BoundRule,
    scale: float,
    plan: Plan,
    told: _Told,
    accumulation: AsTheyCome,
) -> dict[str, Tensor]:
    """The clipped sums where float32 lost some examples: those are measured and summed again in float64."""
    kept_GB = weights_GB.masked_fill(lost_B, 0)
    accumulation.note(members, roots_GB, kept_GB)
    sums = {
        name: accumulation.sum(part.zeroed(lost_B), weights_B)
        for parts, weights_B in zip(members, kept_GB.unbind(), strict=True)
        for name, part in parts.items()
    }
    parts = [part for parts in members for part in parts.values()]
    most = AT_ONCE // max(1, 2 * sum(part.nbytes for part in parts) // parts[0].batch_size)
    for rows in torch.split(lost_B.nonzero().squeeze(1), max(1, most)):
        for name, rescued in _sums_in_float64(members, rows, clip, scale, plan, told, accumulation).items():
            sums[name] += rescued.to(sums[name].dtype)
    return sums


def _sums_in_float64(
    members: Sequence[Mapping[str, Contribution]],
    rows: Tensor,
    clip: BoundRule,
    scale: float,
    plan: Plan,
    told: _Told,
    accumulation: AsTheyCome,
) -> dict[str, Tensor]:
    """The clipped sums of a few examples with huge or tiny gradients; those that are not finite are left out."""
    chosen = [{name: part.select(rows) for name, part in parts.items()} for parts in members]
    squares_GR = _measure(chosen, [([], list(parts)) for parts in chosen], plan)
    broken_R = ~torch.isfinite(squares_GR).all(0)
    roots_GR = squares_GR.sqrt().masked_fill(broken_R, 0)
    weights_GR = (clip.factors(roots_GR * scale) * scale).masked_fill(broken_R, 0)
    if not clip.within(roots_GR, weights_GR, scale).all():
        told.excess(clip.excess())
    told.norms((roots_GR * scale).masked_fill(broken_R, torch.nan))
    accumulation.note(chosen, roots_GR, weights_GR)
    return {
        name: accumulation.sum(part.zeroed(broken_R), weights_R)
        for parts, weights_R in zip(chosen, weights_GR.unbind(), strict=True)
        for name, part in parts.items()
    }
