"""What the examples of a batch add to an update, alone and in groups.

Per-example gradients cannot be chosen here, so the update is given parts of a batch: each example alone, examples with
one of them left out, copies of one example, and examples with inputs scaled up. In a correct loop an example adds the
same vector, of norm at most C, whatever else is in the batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hushgrad.checks.verification.checks import statistics as st
from hushgrad.checks.verification.checks.noise import NoiseReading
from hushgrad.checks.verification.mistakes.clipping import Belief
from hushgrad.checks.verification.update.paired_update import Output, PairedUpdate, norm
from hushgrad.checks.verification.verdict import Check
from hushgrad.errors import InvalidArgumentError
from hushgrad.torch_internals import tree_leaves, tree_map

SEED = 12345
"""What makes noise repeat itself, so that it cancels between two updates."""


def rows_of(batch: Any) -> int:
    """Return the number of examples of a batch: the first dimension that all its tensors share."""
    leaves = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim]
    counts = {leaf.shape[0] for leaf in leaves}
    if len(counts) != 1:
        raise InvalidArgumentError(
            f"batch must hold tensors with one number of examples, got first dimensions {sorted(counts)}",
            cure="Put the examples on the first dimension of every tensor",
        )
    return counts.pop()


@dataclass(frozen=True, slots=True)
class WholeUsers:
    """A batch whose examples are users: the rows of one behind those of another.

    Attributes:
        item: the rows of all of them.
        sizes: how many rows each user has.
    """

    item: Any
    sizes: tuple[int, ...]

    @property
    def owners(self) -> list[int]:
        """The number of each row's user."""
        return [user for user, size in enumerate(self.sizes) for _ in range(size)]

    def rows_of(self, users: Sequence[int]) -> list[int]:
        """Return the rows of these users, one user behind the other."""
        ends = list(itertools.accumulate(self.sizes))
        return [row for user in users for row in range(ends[user] - self.sizes[user], ends[user])]


def take(batch: Any, rows: Sequence[int], scale: float = 1.0) -> Any:
    """Return these examples of a batch, as copies; floating-point inputs of the first one times `scale`."""
    if isinstance(batch, WholeUsers):
        sizes = tuple(batch.sizes[user] for user in rows)
        return WholeUsers(_rows(batch.item, batch.rows_of(rows), scale, sizes[0] if sizes else 0), sizes)
    return _rows(batch, rows, scale, 1)


def _rows(item: Any, rows: Sequence[int], scale: float, scaled: int) -> Any:
    """Return these rows, as copies; floating-point inputs of the first `scaled` ones times `scale`."""

    def of(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            return leaf
        part = leaf[torch.as_tensor(rows, dtype=torch.long, device=leaf.device)]
        if scale != 1.0 and part.is_floating_point() and len(rows):
            part[:scaled] *= scale
        return part

    return tree_map(of, item)


@dataclass(slots=True)
class PairedProbe:
    """Calls the loop on parts of the batch and takes noise away."""

    loop: PairedUpdate
    batch: Any
    rows: list[int]
    base: Output

    def signal(self, rows: Sequence[int], scale: float = 1.0) -> Output:
        """Return the update for these rows without noise."""
        found = self.loop.call(take(self.batch, rows, scale), SEED)
        return {n: found[n].double() - self.base[n] for n in found}


@dataclass(frozen=True, slots=True)
class GroupReading:
    """What parts of a batch add to an update: the probe, each example's part, the largest part, and the checks."""

    probe: PairedProbe
    alone: dict[int, Output]
    sensitivity: float
    unit: float
    checks: tuple[Check, ...]
    notes: tuple[str, ...]


def measure(
    loop: PairedUpdate, batch: Any, rows: list[int], belief: Belief, noise: NoiseReading, false_alarm: float
) -> GroupReading:
    """Measure what the examples of a batch add to an update of a paired loop, alone and in groups."""
    base, empty = _base(loop, batch, belief, false_alarm)
    probe = PairedProbe(loop, batch, rows, base)
    unit = belief.max_grad_norm / belief.divisor
    room = loop.error_of_difference(noise.std) * math.sqrt(sum(v.numel() for v in base.values())) * 3 + 1e-4 * unit
    alone = {row: probe.signal([row]) for row in rows}
    sensitivity, removals = _sensitivity(probe, alone, unit, room)
    additive = _additivity(probe, alone, unit, room)
    return GroupReading(
        probe,
        alone,
        sensitivity,
        unit,
        (removals, additive, *([] if empty is None else [empty])),
        () if empty is not None else ("An empty draw was not tested: the loop raises an error for it",),
    )


def _base(loop: PairedUpdate, batch: Any, belief: Belief, alpha: float) -> tuple[Output, Check | None]:
    """Return the noise of the seed that all signals are measured under, and the check of an empty draw.

    Where the loop cannot run on no examples the noise follows from three runs, if contributions add up.
    """
    try:
        found = loop.call(take(batch, []), SEED)
        loop.call(take(batch, [0]))  # an empty draw must leave the loop usable
        drawn = [loop.call(take(batch, [])) for _ in range(8)]
    except (ArithmeticError, RuntimeError, ValueError, IndexError, TypeError):
        one, other, both = (loop.call(take(batch, rows), SEED) for rows in ([0], [1], [0, 1]))
        return {n: one[n].double() + other[n].double() - both[n].double() for n in one}, None
    joined = torch.cat([value.double().reshape(-1) for draw in drawn for value in draw.values()])
    claimed = belief.first_step * belief.noise_multiplier * belief.max_grad_norm / belief.divisor
    total = float((joined**2).sum()) / claimed**2
    p = st.variance_p(total, joined.numel())
    check = Check(
        code="noise-empty-draw",
        part="noise",
        claim="an empty draw gets noise like any other",
        measured=f"{math.sqrt(total / joined.numel()) if math.isfinite(total) else math.nan:.4g} times the claimed std",
        passed=p >= alpha,
        sample_size=joined.numel(),
        statistic=total,
        p_value=p,
        false_alarm=alpha,
        power=f"{st.smallest_std_error(joined.numel(), alpha):.1%} error with probability 0.999",
    )
    if not check.passed:
        one, other, both = (loop.call(take(batch, rows), SEED) for rows in ([0], [1], [0, 1]))
        return {n: one[n].double() + other[n].double() - both[n].double() for n in one}, check
    return {n: value.double() for n, value in found.items()}, check


def _minus(one: Output, other: Output) -> float:
    return norm({n: one[n] - other[n] for n in one})


def _sensitivity(probe: PairedProbe, alone: dict[int, Output], unit: float, room: float) -> tuple[float, Check]:
    """Leave out each example of groups of 2, 4 and all rows, and one whose inputs are scaled up."""
    changes = [norm(value) for value in alone.values()]
    for count in dict.fromkeys((2, 4, len(probe.rows))):
        group = probe.rows[:count]
        whole = probe.signal(group)
        changes += [_minus(whole, probe.signal([row for row in group if row != out])) for out in group]
    for scale in (1e-3, 30.0, 1e3):
        changes.append(_minus(probe.signal(probe.rows[:4], scale), probe.signal(probe.rows[1:4])))
    largest = max(changes)
    return largest, Check(
        code="sensitivity-bound",
        part="sensitivity",
        claim="adding or removing one example changes the sum by at most C",
        measured=f"by up to {largest / unit:.5g} C, in {len(changes)} removals",
        passed=largest <= unit + room,
        sample_size=len(changes),
        statistic=largest / unit,
        false_alarm=0.0,
        power=f"every excess above {room / unit:.2g} C on these examples",
    )


def _additivity(probe: PairedProbe, alone: dict[int, Output], unit: float, room: float) -> Check:
    """Groups of examples against the sum of what each adds alone."""
    worst, groups = 0.0, [probe.rows[:2], probe.rows[:3], probe.rows, [probe.rows[0]] * 4]
    for group in groups:
        together = probe.signal(group)
        expected = {n: sum(alone[row][n] for row in group) for n in together}
        gap = norm({n: together[n] - expected[n] for n in together})
        worst = max(worst, gap / (room * math.sqrt(len(group)) * 3 + 2e-3 * unit * len(group)))
    return Check(
        code="sensitivity-additive",
        part="sensitivity",
        claim="what an example adds does not depend on the others",
        measured="groups add up"
        if worst <= 1
        else f"groups differ from their sum by {worst:.3g} times what rounding allows",
        passed=worst <= 1,
        sample_size=len(groups),
        statistic=worst,
        false_alarm=0.0,
        power="differences of 0.2% of C per example",
    )
