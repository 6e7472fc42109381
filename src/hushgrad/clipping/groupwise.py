"""Group-wise clipping: the gradients of each group of parameters are clipped by themselves, to a norm of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, final

from torch import Tensor

from hushgrad.arguments import clip_norm, one_of
from hushgrad.clipping.one_norm import clip_factors, clipped_plainly
from hushgrad.clipping.rule import ClipRule, derived
from hushgrad.errors import InvalidArgumentError

BY = ("layer", "block", "parameter")
NOISES = ("same", "equal-budget", "least")

Prefixes = tuple[str, ...]
GivenGroups = tuple[tuple[str, ...], ...]


@final
@dataclass(frozen=True)
class GroupwiseClipping(ClipRule):
    """Clip every group l of parameters to a norm C_l of its own (McMahan et al. 2018; He et al. 2023, 2212.01539).

    All groups are one release: what an example adds has norm at most C = √Σ C_l².

    Attributes:
        max_grad_norm: C of all groups together; each of m groups has C / √m. Left out where `norms` says more.
        by: what is a group. "layer": the parameters of one module. "block": those below the first number in their name
            (`encoder.layer.3`), and for others those of one module. "parameter": each by itself. A tuple of prefixes:
            a group each, the longest one that fits counts. A tuple of tuples of names: these groups.
        norms: C_l of each group, in their order.
        noise: what noise the groups get. "same": σ · C everywhere. "equal-budget": each takes the same share of the
            privacy, σ · √m · C_l. "least": least noise in all, proportional to √C_l · d_l^(−1/4) for d_l values. All
            cost the same, by Σ (C_l / s_l)² = 1/σ² for the standard deviations s_l.

    Raises `InvalidArgumentError` for a value out of range. Where the groups are no partition of a model's trainable
    parameters (one in none, an empty one), training is refused at set-up; a tied parameter goes by its first name.

    Guarantee: adding or removing one example changes the sum of each group l by at most C_l, and the whole by C.
    Guarantee: a class that is derived from it is refused, so that what goes by this name is this rule.
    """

    max_grad_norm: float | None = None
    by: str | Prefixes | GivenGroups = "layer"
    norms: tuple[float, ...] | None = None
    noise: str = "same"

    def __init_subclass__(cls, **_: Any) -> None:
        raise derived(cls, "group-wise clipping")

    def __post_init__(self) -> None:
        object.__setattr__(self, "by", _checked_groups(self.by))
        if self.norms is not None:
            object.__setattr__(self, "norms", _checked_norms(self.norms))
        object.__setattr__(self, "max_grad_norm", self._together())
        one_of("noise", self.noise, NOISES)

    def _together(self) -> float:
        if self.norms is None:
            return clip_norm("max_grad_norm", self.max_grad_norm)
        together = math.hypot(*self.norms)
        if self.max_grad_norm is not None:
            given = clip_norm("max_grad_norm", self.max_grad_norm)
            if not math.isclose(given, together, rel_tol=1e-9):
                raise InvalidArgumentError(
                    f"max_grad_norm is {given:g}, and the norms of the groups come to {together:g} together (the root "
                    f"of the sum of their squares)",
                    cure="Leave max_grad_norm out: it follows from the norms",
                )
        return together

    @property
    def sensitivity(self) -> float:
        """C = √Σ C_l², the largest norm with which one example enters the sums of all groups."""
        assert self.max_grad_norm is not None  # set above
        return self.max_grad_norm

    def groups(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the parameters of each group, in their own order; groups by the order of their first parameters."""
        if self.by in BY:
            return _by_key(names, {"layer": _layer, "block": _block, "parameter": str}[str(self.by)])
        assert isinstance(self.by, tuple)
        if all(isinstance(group, str) for group in self.by):
            return _by_prefix(names, self.by)  # type: ignore[arg-type]
        return list(self.by)  # type: ignore[arg-type]

    def limits(self, count: int) -> tuple[float, ...]:
        """Return C_l for each group."""
        if self.norms is not None:
            return self.norms
        return (self.sensitivity / math.sqrt(count),) * count

    def factors(self, norms_GB: Tensor) -> Tensor:
        """Return min(1, C_l/‖g_l‖) for each norm, in float64, and 0 where it is not finite."""
        limits_G1 = norms_GB.double().new_tensor(self.limits(len(norms_GB))).unsqueeze(1)
        return clip_factors(norms_GB, limits_G1)

    @property
    def clips_groups_apart(self) -> bool:
        """True: each group has a limit of its own."""
        return True

    @property
    def noise_differs(self) -> bool:
        """Whether `noise` is "least", or "equal-budget" for norms that differ."""
        return self.noise == "least" or (self.noise == "equal-budget" and len(set(self.norms or ())) > 1)

    def relative_noise(self, sizes: Sequence[int]) -> tuple[float, ...]:
        """Return s_l / (σ · C) for each group."""
        if not self.noise_differs:
            return (1.0,) * len(sizes)
        limits = self.limits(len(sizes))
        wanted = limits
        if self.noise == "least":
            wanted = tuple(
                math.sqrt(limit / math.sqrt(max(size, 1))) for limit, size in zip(limits, sizes, strict=True)
            )
        unit = math.hypot(*(limit / s for limit, s in zip(limits, wanted, strict=True))) / self.sensitivity
        return tuple(unit * s for s in wanted)

    def scaled(self, factor: float) -> Self:
        """Return the same with all norms times `factor`."""
        norms = None if self.norms is None else tuple(norm * factor for norm in self.norms)
        return type(self)(None if norms is not None else self.sensitivity * factor, self.by, norms, self.noise)

    def reference(self, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return Σ_i g_il · min(1, C_l/‖g_il‖) for each group l."""
        groups = self.groups(list(per_example))
        found: dict[str, Tensor] = {}
        for group, limit in zip(groups, self.limits(len(groups)), strict=True):
            found |= clipped_plainly(limit, {name: per_example[name] for name in group})
        return {name: found[name] for name in per_example}


def _checked_groups(by: Any) -> str | Prefixes | GivenGroups:
    if isinstance(by, str):
        return one_of("by", by, BY)
    groups = tuple(by) if isinstance(by, tuple | list) else ()
    if groups and all(isinstance(group, str) and group for group in groups):
        repeated = len(set(groups)) < len(groups)
    else:
        groups = tuple(tuple(group) if isinstance(group, tuple | list) else () for group in groups)
        names = [name for group in groups for name in group]
        if not groups or not all(groups) or not all(isinstance(name, str) and name for name in names):
            raise InvalidArgumentError(
                f"by must be one of {', '.join(map(repr, BY))}, a tuple of prefixes, or a tuple of tuples of parameter "
                f"names, got {type(by).__name__}",
                where="by",
                cure='Pass by="layer", by=("encoder", "head"), or by=(("0.weight", "0.bias"), ("2.weight",))',
            )
        repeated = len(set(names)) < len(names)
    if repeated:
        raise InvalidArgumentError(
            "a prefix or a parameter is named twice, so that it would be in two groups",
            where="by",
            cure="Name each of them once",
        )
    return groups


def _checked_norms(norms: Any) -> tuple[float, ...]:
    if not isinstance(norms, tuple | list) or not norms:
        raise InvalidArgumentError(
            f"norms must be a tuple of one norm for each group, got {type(norms).__name__}",
            where="norms",
            cure="Pass norms=(0.5, 0.1), in the order of the groups",
        )
    return tuple(clip_norm(f"norms[{number}]", norm) for number, norm in enumerate(norms))


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _block(name: str) -> str:
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts[:-1]) if part.isdigit()), None)
    return _layer(name) if number is None else ".".join(parts[: number + 1])


def _by_key(names: Sequence[str], key: Any) -> list[tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(key(name), []).append(name)
    return [tuple(group) for group in found.values()]


def _by_prefix(names: Sequence[str], prefixes: Prefixes) -> list[tuple[str, ...]]:
    """Return a group for each prefix; a name that none fits is left to what looks at every rule's groups."""
    found: dict[str, list[str]] = {prefix: [] for prefix in prefixes}
    for name in names:
        fitting = [prefix for prefix in prefixes if name == prefix or name.startswith(f"{prefix}.")]
        if fitting:
            found[max(fitting, key=len)].append(name)
    return [tuple(group) for group in found.values()]
