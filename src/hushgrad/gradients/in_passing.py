"""Clipped sums of a physical batch whose contributions come one parameter at a time, and are let go one by one.

A sum needs the weights, and these need the norms over all parameters of a group. So contributions come twice
(`TwoPasses`, by a backward that is run twice), or each group is summed as soon as it is whole (`GroupByGroup`, where
the factors of a group follow from its own norms alone).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from hushgrad.clipping.bound import BoundRule
from hushgrad.errors import SensitivityMismatchError
from hushgrad.gradients.accumulation import AsTheyCome
from hushgrad.gradients.across import Across
from hushgrad.gradients.apart import measured_in_float64
from hushgrad.gradients.clipped_sum import Weighed, added, pending_sums, together
from hushgrad.gradients.combine import combine
from hushgrad.gradients.contribution import Contribution, Plan, all_digits, full_precision
from hushgrad.gradients.rounding import FLOOR
from hushgrad.gradients.weights import Rescued, Told, Weights, rescued_sum, weights_in_float64, weights_of

SAME = 1e-3
"""How far the norm of an example may be from the one that was measured before: kernels may add in another order."""

Give = Callable[[str, Tensor | None], None]


class Look(Protocol):
    """Looks at one example."""

    def add(self, group: int, part: Contribution) -> None:
        """It adds this to the sum of a parameter of a group."""


@contextmanager
def _exactly() -> Any:
    with torch.no_grad(), full_precision(), all_digits():
        yield


class _Squares:
    """Squared norms of each group, added up parameter by parameter."""

    def __init__(self, clip: BoundRule) -> None:
        self._rows: list[Tensor | None] = [None] * len(clip.groups)

    def add(self, group: int, squared_B: Tensor) -> None:
        self._rows[group] = added((self._rows[group], squared_B))

    def total(self, count: int, across: Across, device: torch.device) -> Tensor:
        return across.added(together(self._rows, torch.zeros(count, dtype=torch.float64, device=device)))


class TwoPasses:
    """Measures in the first pass, sums in the second, and measures again what it sums.

    Guarantee: an example whose norm in the second pass is not the one it was weighed by is refused, and one that would
    add more than a limit; the sums are otherwise those of `clipped_sums`.

    Args:
        clip: the clip rule, bound to all parameters.
        scale: undoes the division of a mean loss.
        plan: how norms are computed.
        count: how many examples there are.
        told: who is told of an excess, and of the norms that examples are clipped by.
        watch: is shown the weights; returns what is to be shown each contribution as it is summed, or None.
        close: is given that back once all were.
        accumulation: how sums are added up.
        across: the processes that have other parts of the same examples' gradients.
    """

    def __init__(
        self,
        clip: BoundRule,
        scale: float,
        plan: Plan,
        count: int,
        *,
        told: Told,
        watch: Callable[[Weighed], Any],
        close: Callable[[Any], None],
        accumulation: AsTheyCome,
        across: Across,
    ) -> None:
        self._clip, self._scale, self._told, self._watch = clip, scale, told, watch
        self._plan = replace(plan, floor=min(FLOOR, clip.floor(scale) ** 2))
        self._count, self._accumulation, self._across = count, accumulation, across
        self._device = torch.device("cpu")
        self._weights: Weights | None = None
        self._rescued: list[Rescued] = []
        self._look: Look | None = None
        self._close = close
        self._squares = _Squares(clip)
        self._of_lost = _Squares(clip)
        self._terms: list[list[Tensor | None]] = [[None, None] for _ in clip.groups]

    # The first pass, and where float32 lost examples one more ---------------------------------------------------------

    def measure(self, name: str, parts: list[Contribution]) -> None:
        """Measure all uses of a parameter."""
        with _exactly():
            part = combine(parts)
            self._device = part.operands[0].device
            if self._across.has(name):
                self._squares.add(self._clip.group_of(name), part.measure(self._plan)[0])

    def weigh(self) -> bool:
        """All were measured: return whether some examples have to be measured again, in float64."""
        with _exactly():
            squares_GB = self._squares.total(self._count, self._across, self._device)
            self._squares = _Squares(self._clip)
            weights = weights_of(squares_GB, self._clip, self._scale, self._plan.floor, self._told.excess)
            self._weights = weights
            self._look = self._watch(Weighed((), weights.roots, weights.values, self._scale, self._across))
            kept = weights.roots if weights.lost is None else weights.roots[:, ~weights.lost]
            self._told.norms(kept * self._scale)
            return weights.lost is not None

    def measure_lost(self, name: str, parts: list[Contribution]) -> None:
        """Measure in float64 what examples use of a parameter that were lost."""
        rows = self._lost_rows
        if rows is not None and self._across.has(name):
            with _exactly():
                self._of_lost.add(self._clip.group_of(name), measured_in_float64(combine(parts), rows, self._plan))

    def weigh_lost(self) -> None:
        """All lost ones were measured."""
        rows = self._lost_rows
        if rows is None:
            return
        with _exactly():
            squares_GR = self._of_lost.total(len(rows), self._across, self._device)
            self._of_lost = _Squares(self._clip)
            self._rescued = [weights_in_float64(squares_GR, rows, self._clip, self._scale, self._told)]

    @property
    def _lost_rows(self) -> Tensor | None:
        lost = None if self._weights is None else self._weights.lost
        return None if lost is None else lost.nonzero().squeeze(1)

    # The second pass --------------------------------------------------------------------------------------------------

    def sum(self, name: str, parts: list[Contribution]) -> Tensor | None:
        """Return the clipped sum of all uses of a parameter; None where another process has it."""
        if not self._across.has(name):
            return None
        weights, group = self._weights, self._clip.group_of(name)
        assert weights is not None
        with _exactly():
            squares_B, part = combine(parts).measure(self._plan)
            self._squares.add(group, squares_B)
            if self._look is not None:
                self._look.add(group, part)
            self._note_terms(group, 0, part)
            if weights.lost is None:
                return self._accumulation.sum(part, weights.values[group])
            for some in self._rescued:
                self._of_lost.add(group, measured_in_float64(part, some.rows, self._plan))
                self._note_terms(group, 1, part.select(some.rows))
            return rescued_sum(part, group, weights, self._rescued, self._accumulation)

    def end(self) -> None:
        """All were summed: refuse them unless what was summed is what was measured.

        Raises:
            SensitivityMismatchError: an example has another norm than the one that it was weighed by.
        """
        weights = self._weights
        assert weights is not None
        with _exactly():
            squares_GB = self._squares.total(self._count, self._across, self._device)
            self._require_same(squares_GB, weights.roots, weights.kept, weights.lost)
            if self._look is not None:
                self._close(self._look)
            self._accumulation.note([terms for terms, _ in self._terms], weights.roots, weights.kept)
            for some in self._rescued:
                squares_GR = self._of_lost.total(len(some.rows), self._across, self._device)
                self._require_same(squares_GR, some.roots, some.values, some.broken)
                self._accumulation.note([terms for _, terms in self._terms], some.roots, some.values)

    def _require_same(self, squares: Tensor, roots: Tensor, values: Tensor, left_out: Tensor | None) -> None:
        again = squares.sqrt()
        least = self._clip.floor(self._scale)
        is_same = (again - roots).abs() <= SAME * roots.clamp(min=least)
        is_same &= self._clip.within(again, values, self._scale)
        if left_out is not None:
            is_same |= left_out
        if not is_same.all():
            self._told.excess(
                SensitivityMismatchError(
                    "the backward was run twice, to measure and to sum, and an example's gradient had another norm the "
                    "second time, so that the sum is not clipped to what was measured; nothing was released",
                    where="norms inside the backward (operand_bytes)",
                    cure="Let checkpointing keep random numbers (preserve_rng_state=True), use only kernels that give "
                    "the same values twice (torch.use_deterministic_algorithms(True)), hang no hooks that change "
                    "gradients otherwise each time, and add all losses of an item into the one that session.backward, "
                    "session.loss or engine.per_example is given; or allow more memory for operands "
                    "(Plan(operand_bytes=...), `hushgrad machine`)",
                )
            )

    def _note_terms(self, group: int, kind: int, part: Contribution) -> None:
        self._terms[group][kind] = added((self._terms[group][kind], self._accumulation.term_squares(part)))


class GroupByGroup:
    """Sums each group of parameters as soon as all of its parameters came, with the factors of its own norms.

    Guarantee: the sums are those of `clipped_sums`, but of an example whose gradient is not finite in some groups: it
    adds nothing to these, and to others what it adds if their norms were all.

    Args:
        clip: a rule of which each group's factors follow from its own norms.
        expected: the parameters that will come.
        count: how many examples there are.
        give: is given each sum; None where another process has it, or there is no example.
        given: the other arguments of `pending_sums`.
    """

    def __init__(
        self, clip: BoundRule, expected: Collection[str], count: int, give: Give, given: Mapping[str, Any]
    ) -> None:
        self._clip, self._count, self._give, self._given = clip, count, give, given
        self._missing = [set(group) & set(expected) for group in clip.groups]
        self._held: list[dict[str, list[Contribution]]] = [{} for _ in clip.groups]

    def take(self, name: str, parts: list[Contribution]) -> None:
        """All uses of a parameter came."""
        group = self._clip.group_of(name)
        self._held[group][name] = parts
        self._missing[group].discard(name)
        if not self._missing[group]:
            self._sum(group)

    def end(self) -> None:
        """No more will come."""
        for group in range(len(self._held)):
            self._sum(group)

    def _sum(self, group: int) -> None:
        held, self._held[group] = self._held[group], {}
        if not held:
            return
        names = list(held)
        with torch.no_grad():
            pending = pending_sums(held if self._count else {}, clip=self._clip, **self._given)
            for name in names:
                self._give(name, pending.take(name))
