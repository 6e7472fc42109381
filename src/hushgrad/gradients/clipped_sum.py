"""From per-example gradients in factored form to the sum of clipped ones (docs/design.md, §1 and §5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from hushgrad.clipping.bound import BoundRule
from hushgrad.clipping.rule import ClipRule
from hushgrad.errors import SensitivityMismatchError
from hushgrad.gradients.accumulation import AsTheyCome
from hushgrad.gradients.across import NOWHERE, Across
from hushgrad.gradients.apart import AT_ONCE
from hushgrad.gradients.combine import combine
from hushgrad.gradients.contribution import Contribution, Plan, all_digits, full_precision
from hushgrad.gradients.rounding import FLOOR
from hushgrad.gradients.stacking import Stacked, group_by_shape
from hushgrad.gradients.weights import Rescued, Told, Weights, rescued_sum, weights_in_float64, weights_of

Parts = dict[str, Contribution]


class Weighed(NamedTuple):
    """What is about to be summed: the contributions of each group, the norms that were measured, and the weights.

    `roots` are norms of the contributions as they are, `weights` factor · `scale`, both `[G, B]`. `across` are the
    processes that have other parts of them.
    """

    members: Sequence[Mapping[str, Contribution]]
    roots: Tensor
    weights: Tensor
    scale: float
    across: Across


class Pending:
    """Clipped sums whose weights are known: each is formed as it is taken, once, and lets go what it was made of."""

    def __init__(self, names: Iterable[str], form: Callable[[str], Mapping[str, Tensor]]) -> None:
        """Make the sums of these names; `form` gives one of them, with others where those come with it."""
        self._names = dict.fromkeys(names)
        self._form = form
        self._formed: dict[str, Tensor] = {}

    def take(self, name: str) -> Tensor | None:
        """Return one sum, in the parameter's shape; None where nothing contributes to it, or it was taken."""
        if name not in self._names:
            return None
        if name not in self._formed:
            self._formed.update(self._form(name))
        del self._names[name]
        return self._formed.pop(name)

    def add_to(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add all that were not taken to what `sums` holds, one by one, and return these."""
        for name in list(self._names):
            total = self.take(name)
            if total is not None and name in sums:
                sums[name] += total
            elif total is not None:
                sums[name] = total
        return sums


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
    across: Across = NOWHERE,
    into: dict[str, Tensor] | None = None,
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
        across: the processes that have other parts of the same examples' gradients; all of them call it. What this one
            does not have is left out of the sums that are returned.
        into: sums of batches before, which these are added to, each as it is formed, so that not all exist twice.

    Guarantee: an example whose gradient is not finite contributes exactly 0, and a finite one never more than its
    limit times 1 + 1e-5, also where its squared norm overflows or underflows float32 or its terms cancel.
    Guarantee: nothing is summed unless every example's factor times its norm is within the limit of each group.

    Raises:
        SensitivityMismatchError: the rule's factors let more through than its limits, or are not finite.
    """
    pending = pending_sums(
        contributions,
        clip=clip,
        scale=scale,
        plan=plan,
        watch=watch,
        on_excess=on_excess,
        on_norms=on_norms,
        accumulation=accumulation,
        across=across,
    )
    return pending.add_to({} if into is None else into)


def pending_sums(
    contributions: MutableMapping[str, list[Contribution]],
    *,
    clip: ClipRule | BoundRule,
    scale: float = 1.0,
    plan: Plan | None = None,
    watch: Callable[[Weighed], None] | None = None,
    on_excess: Callable[[SensitivityMismatchError], None] | None = None,
    on_norms: Callable[[Tensor], None] | None = None,
    accumulation: AsTheyCome | None = None,
    across: Across = NOWHERE,
) -> Pending:
    """Return what `clipped_sums` returns, to be taken sum by sum: so that not all of them exist at once."""
    if not contributions:
        return Pending((), _no_sum)
    bound = clip if isinstance(clip, BoundRule) else BoundRule(clip, contributions)
    with full_precision(), all_digits():
        needed = replace(plan or Plan(), floor=min(FLOOR, bound.floor(scale) ** 2))
        told = Told(on_excess or _raise, on_norms or _nothing)
        names, form = _weighed(
            contributions, bound, scale, needed, watch or _nothing, told, accumulation or AsTheyCome(), across
        )

    def formed(name: str) -> Mapping[str, Tensor]:
        with full_precision(), all_digits():
            return form(name)

    return Pending(names, formed)


def _nothing(seen: object) -> None:
    pass


def _raise(excess: SensitivityMismatchError) -> None:
    raise excess


def _no_sum(_: str) -> dict[str, Tensor]:
    return {}


Form = Callable[[str], Mapping[str, Tensor]]


def _weighed(
    contributions: MutableMapping[str, list[Contribution]],
    clip: BoundRule,
    scale: float,
    plan: Plan,
    watch: Callable[[Weighed], None],
    told: Told,
    accumulation: AsTheyCome,
    across: Across,
) -> tuple[Sequence[str], Form]:
    """Return the names of all sums, and what forms each of them."""
    some = next((parts[0] for parts in contributions.values() if parts), None)
    if some is None:
        return (), _no_sum
    nothing_B = torch.zeros(some.batch_size, dtype=torch.float64, device=some.operands[0].device)
    combined = {name: combine(parts) for name, parts in contributions.items() if parts and across.has(name)}
    contributions.clear()
    del some
    members = clip.split(combined)
    del combined  # so that what a member lets go is gone
    stacks = [group_by_shape(parts, plan) for parts in members]
    squares_GB = across.added(_measure(members, stacks, plan, nothing_B))
    weights = weights_of(squares_GB, clip, scale, plan.floor, told.excess)
    watch(Weighed(members, weights.roots, weights.values, scale, across))
    if weights.lost is not None:
        told.norms(weights.roots[:, ~weights.lost] * scale)
        return _rescued(members, weights, clip, scale, plan, told, accumulation, across)
    told.norms(weights.roots * scale)
    accumulation.note(terms_of(members, accumulation), weights.roots, weights.values)
    weights_GB = weights.values
    stacked = {name: (g, group) for g, (groups, _) in enumerate(stacks) for group in groups for name in group.names}
    alone = {name: g for g, (_, names) in enumerate(stacks) for name in names}

    def form(name: str) -> Mapping[str, Tensor]:
        if name in alone:
            return {name: accumulation.sum(members[alone[name]].pop(name), weights_GB[alone[name]])}
        g, group = stacked[name]
        return dict(zip(group.names, accumulation.sums(group, weights_GB[g]).unbind(), strict=True))

    return [*alone, *stacked], form


def _measure(
    members: Sequence[Parts],
    stacks: Sequence[tuple[Sequence[Stacked], Sequence[str]]],
    plan: Plan,
    nothing_B: Tensor,
) -> Tensor:
    """Return squared norms `[G, B]`, over the parameters of each group together; `nothing_B` are those of none.

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
        rows.append(added(squares))
    return together(rows, nothing_B)


def added(squares: Iterable[Tensor | None]) -> Tensor | None:
    """Return the sum over the parameters of a group; None where there is nothing to add."""
    total: Tensor | None = None
    for squared_B in squares:
        if squared_B is not None:
            total = squared_B if total is None else total + squared_B.to(total.device)
    return total


def together(rows: Sequence[Tensor | None], nothing_B: Tensor) -> Tensor:
    """Return the rows as one tensor; a group of which nothing was used has norms 0."""
    if len(rows) == 1 and rows[0] is not None:
        return rows[0].unsqueeze(0)
    some = next((row for row in rows if row is not None), nothing_B)
    return torch.stack([torch.zeros_like(some) if row is None else row.to(some.device) for row in rows])


def _rescued(
    members: Sequence[Parts],
    weights: Weights,
    clip: BoundRule,
    scale: float,
    plan: Plan,
    told: Told,
    accumulation: AsTheyCome,
    across: Across,
) -> tuple[Sequence[str], Form]:
    """The clipped sums where float32 lost some examples: those are measured and summed again in float64."""
    assert weights.lost is not None
    accumulation.note(terms_of(members, accumulation), weights.roots, weights.kept)
    owners = {name: g for g, parts in enumerate(members) for name in parts}
    parts = [part for parts in members for part in parts.values()]
    most = across.least(AT_ONCE // max(1, sum(part.nbytes_in_float64 for part in parts) // len(weights.lost)))
    del parts
    portions = [
        _in_float64(members, rows, clip, scale, plan, told, accumulation, across)
        for rows in torch.split(weights.lost.nonzero().squeeze(1), max(1, most))
    ]

    def form(name: str) -> Mapping[str, Tensor]:
        g = owners[name]
        return {name: rescued_sum(members[g].pop(name), g, weights, portions, accumulation)}

    return list(owners), form


def _in_float64(
    members: Sequence[Mapping[str, Contribution]],
    rows: Tensor,
    clip: BoundRule,
    scale: float,
    plan: Plan,
    told: Told,
    accumulation: AsTheyCome,
    across: Across,
) -> Rescued:
    """The weights of a few examples with huge or tiny gradients."""
    chosen = [{name: part.select(rows) for name, part in parts.items()} for parts in members]
    nothing_R = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    squares_GR = across.added(_measure(chosen, [([], list(parts)) for parts in chosen], plan, nothing_R))
    found = weights_in_float64(squares_GR, rows, clip, scale, told)
    accumulation.note(terms_of(chosen, accumulation), found.roots, found.values)
    return found


def terms_of(members: Sequence[Mapping[str, Contribution]], accumulation: AsTheyCome) -> list[Tensor | None]:
    """Return for each group what `accumulation` wants to know of its contributions."""
    return [added(accumulation.term_squares(part) for part in parts.values()) for parts in members]
