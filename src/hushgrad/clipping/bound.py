"""A clip rule bound to the parameters of one model: its groups and limits, checked once, and its factors, always."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from hushgrad.arguments import clip_norm, positive_number
from hushgrad.clipping.adaptation import LARGEST_COUNT
from hushgrad.clipping.known import is_own
from hushgrad.clipping.rule import ClipRule
from hushgrad.errors import ContractChangedError, InvalidArgumentError, SensitivityMismatchError

Part = TypeVar("Part")

# Above what rounding in float32 does to a factor and a norm, and far below what an ε would show.
TOLERANCE = 1e-5

# Norms are measured in float32 with what underflows left out (`gradients/rounding.py`): below this they may be larger
# than they were measured, and a factor that is huge there would show it.
SMALLEST_NORM = 1e-9


class BoundRule:
    """A rule for one model: `groups` of its parameters, and the `limits` of each, in one order.

    The noise of a group has the standard deviation σ · sensitivity · r, where r is its relative noise. So each sum is
    divided by its r, gets noise like all others, and is multiplied by r again: one release with one sensitivity.

    Attributes:
        relative: r of each parameter, by name; equal ones are all 1.
        count_relative: the same of the count of an adaptive rule; None for a rule without one.

    Guarantee: each parameter is in exactly one group, and the root of the sum of squared limits, each over its group's
    relative noise, is at most the sensitivity that the noise is made from.
    """

    def __init__(
        self,
        rule: ClipRule,
        names: Iterable[str],
        *,
        sensitivity: float | None = None,
        sizes: Mapping[str, int] | None = None,
        noise_multiplier: float = 0.0,
        beside: float = 0.0,
    ) -> None:
        """Bind `rule` to the parameters called `names`.

        Args:
            rule: a clip rule.
            names: of all trainable parameters.
            sensitivity: what the noise is made from; by default what the rule says now.
            sizes: the number of values of each; without them the noise of all groups is taken to be the same.
            noise_multiplier: σ, what is charged; a count takes a part of it.
            beside: the part of 1/σ² that is released beside sums and count, by somebody else (`SparseRows`).

        Raises:
            InvalidArgumentError: its groups are no partition of the parameters, or a limit is missing or not positive.
            SensitivityMismatchError: its limits together are above its sensitivity.
            InvalidArgumentError: relative noises that are no positive numbers, or too little noise on a count.
        """
        self.rule = rule
        self.sensitivity = rule.sensitivity if sensitivity is None else sensitivity
        self._label = f"the clip rule {type(rule).__name__}"
        given = tuple(names)
        self.groups = self._partition(given)
        noises = (1.0,) * len(self.groups)
        if sizes is not None and rule.noise_differs:
            noises = self._relative_noises(sizes)
        self.limits = self._checked_limits(noises)
        share = 0.0 if rule.adaptation is None else rule.adaptation.share(noise_multiplier)
        taken = share**2 + beside
        if not taken < 1:
            raise InvalidArgumentError(
                f"the counts that are released beside the gradients take {taken:.3g} of what a step costs, and leave "
                f"nothing for these",
                where=self._label,
                cure="Raise count_noise_multiplier of the clip rule, or lower count_share of SparseRows",
            )
        room = 1 / math.sqrt(1 - taken)  # what counts take of the sensitivity the gradients must do without
        self.relative = {name: r * room for group, r in zip(self.groups, noises, strict=True) for name in group}
        self.count_relative: float | None = None
        if rule.adaptation is not None:
            self.count_relative = LARGEST_COUNT / (share * self.sensitivity) if share else 1.0
        self._number_of = {name: number for number, group in enumerate(self.groups) for name in group}
        self._smallest_limit = min(self.limits)
        self._ceiling = self.limits[0] * (1 + TOLERANCE) if len(set(self.limits)) == 1 else None
        self._ceilings_G1: Tensor | None = None

    def _partition(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        found = self.rule.groups(names)
        if isinstance(found, str) or not isinstance(found, Sequence):
            raise InvalidArgumentError(
                f"groups() must return a sequence of groups of names, got {type(found).__name__}",
                where=self._label,
                cure="Return a list with a list of names for each group",
            )
        if any(
            isinstance(group, str)
            or not isinstance(group, Sequence)
            or not all(isinstance(name, str) for name in group)
            for group in found
        ):
            raise InvalidArgumentError(
                "groups() must return groups, each a sequence of names",
                where=self._label,
                cure='For one parameter alone return the group ["its.name"]',
            )
        counts, trained = Counter(name for group in found for name in group), set(names)
        wrong = {
            "in no group": [name for name in names if name not in counts],
            "in more than one": [name for name, count in counts.items() if count > 1],
            "not a trainable parameter": [name for name in counts if name not in trained],
            "empty": [f"group {number}" for number, group in enumerate(found) if not group],
        }
        told = [f"{what}: {', '.join(offenders)}" for what, offenders in wrong.items() if offenders]
        if told or not found:
            raise InvalidArgumentError(
                f"groups() must put every trainable parameter into exactly one group: {'; '.join(told) or 'no groups'}",
                where=self._label,
                cure="Let groups() go through the names that it is given, and freeze what is not to be trained",
            )
        return tuple(tuple(group) for group in found)

    def _relative_noises(self, sizes: Mapping[str, int]) -> tuple[float, ...]:
        count = len(self.groups)
        given = self.rule.relative_noise([sum(sizes[name] for name in group) for group in self.groups])
        found = tuple(given) if isinstance(given, Iterable) else ()
        if len(found) != count:
            came = len(found) if isinstance(given, Iterable) else type(given).__name__
            raise InvalidArgumentError(
                f"relative_noise() must return one number for each of {count} groups, got {came}",
                where=self._label,
                cure="Return as many numbers as there are groups, in their order; 1 for each is the same noise",
            )
        return tuple(positive_number(f"the relative noise of group {i}", r) for i, r in enumerate(found))

    def _checked_limits(self, noises: Sequence[float]) -> tuple[float, ...]:
        count = len(self.groups)
        given = self.rule.limits(count)
        found = tuple(given) if isinstance(given, Iterable) else ()
        if len(found) != count:
            came = len(found) if isinstance(given, Iterable) else type(given).__name__
            raise InvalidArgumentError(
                f"limits({count}) must return one limit for each of {count} groups, got {came}",
                where=self._label,
                cure="Return as many limits as there are groups, in their order",
            )
        limits = tuple(clip_norm(f"the limit of group {i} of {self._label}", v) for i, v in enumerate(found))
        self._together = sum((limit / noise) ** 2 for limit, noise in zip(limits, noises, strict=True)) ** 0.5
        if not self._together <= self.sensitivity * (1 + 1e-9):
            each = ", each over its group's relative noise" if any(noise != 1 for noise in noises) else ""
            raise SensitivityMismatchError(
                f"the limits of its {count} groups come to {self._together:.6g} together (the root of the sum of their "
                f"squares{each}), more than the sensitivity {self.sensitivity:.6g} that the noise is made from",
                where=self._label,
                cure="Let `sensitivity` be at least that, or lower the limits",
            )
        return limits

    def split(self, parts: dict[str, Part]) -> list[dict[str, Part]]:
        """Return `parts`, by parameter, as one mapping for each group; some may be empty."""
        if len(self.groups) == 1:
            return [parts]
        found: list[dict[str, Part]] = [{} for _ in self.groups]
        for name, part in parts.items():
            found[self.group_of(name)][name] = part
        return found

    def group_of(self, name: str) -> int:
        """Return the number of a parameter's group.

        Raises:
            ContractChangedError: it is in none.
        """
        if len(self.groups) == 1:
            return 0
        number = self._number_of.get(name)
        if number is None:
            raise ContractChangedError(
                "it is trained now, and is in no group of the clip rule, because it was frozen at set-up",
                where=name,
                cure="Choose what is trained before privatize, or close the session and privatize again",
            )
        return number

    def factors(self, norms_GB: Tensor) -> Tensor:
        """Return the rule's factors for norms `[G, B]`, in the same shape. The rule may keep and change `norms_GB`.

        Raises:
            InvalidArgumentError: it returned something else than a floating-point tensor of that shape.
        """
        if not self._together <= self.rule.sensitivity * (1 + 1e-9):
            raise ContractChangedError(
                "its sensitivity has become smaller than its limits together, since it was bound to the model",
                where=self._label,
                cure="Let a rule's constants stay what they are; clip_schedule changes them from step to step",
            )
        shape, device = norms_GB.shape, norms_GB.device
        found = self.rule.factors(norms_GB)
        if not isinstance(found, Tensor) or found.shape != shape or not found.is_floating_point():
            came = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise InvalidArgumentError(
                f"factors() must return a floating-point tensor of the shape of the norms, {list(shape)}, got {came}",
                where=self._label,
                cure="Return one factor for each group and example",
            )
        return found if found.device == device else found.to(device)

    def within(self, roots_GB: Tensor, weights_GB: Tensor, scale: float) -> Tensor:
        """Return for each group and example whether weight · root is at most the limit, `[G, B]`; never where NaN.

        Args:
            roots_GB: norms before they were multiplied with `scale`, as measured.
            weights_GB: what gradients are about to be multiplied with: factor · scale.
            scale: what undoes the division of a mean loss.
        """
        return weights_GB.abs() * roots_GB.clamp(min=self.floor(scale)) <= self._ceiling_for(roots_GB)

    def floor(self, scale: float) -> float:
        """Return a norm, as measured, up to which none is told from 0: no factor may be larger there than at it."""
        return min(SMALLEST_NORM, self._smallest_limit / scale)

    def _ceiling_for(self, roots_GB: Tensor) -> Tensor | float:
        if self._ceiling is not None:
            return self._ceiling
        kept = self._ceilings_G1
        if kept is None or kept.device != roots_GB.device or kept.dtype != roots_GB.dtype:
            limits = torch.tensor(self.limits, dtype=torch.float64) * (1 + TOLERANCE)
            self._ceilings_G1 = kept = limits.unsqueeze(1).to(roots_GB.device, roots_GB.dtype)
        return kept

    def excess(self) -> SensitivityMismatchError:
        """Return the error for an example that would enter the sum with more than a limit."""
        own = "Report this with the version of hushgrad and the kinds of layers"
        theirs = "Correct the rule's factors: at most limit / norm, and finite, for every norm from 0 on"
        return SensitivityMismatchError(
            "an example would add more than the clip norm to the sum: its factor times its norm is above the limit of "
            "a group, or is not a number. The noise is too small for it, so nothing was released",
            where=self._label,
            cure=f"{own if is_own(self.rule) else theirs}, and do not release the model",
        )
