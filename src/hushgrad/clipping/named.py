"""Clip rules by their names: what `clipping=` and `--clipping` take as text, such as "automatic:gamma=0.1"."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hushgrad.arguments import clip_norm, one_of, positive_number
from hushgrad.clipping.automatic import AutomaticClipping
from hushgrad.clipping.flat import FlatClipping
from hushgrad.clipping.groupwise import GroupwiseClipping
from hushgrad.clipping.known import require_clip_rule
from hushgrad.clipping.per_sample_adaptive import PerSampleAdaptiveClipping
from hushgrad.clipping.quantile import QuantileClipping
from hushgrad.clipping.rule import ClipRule
from hushgrad.errors import InvalidArgumentError

LEAST_COUNT_NOISE = 5.0
"""The noise on the count of small batches: enough for noise multipliers up to 10."""


@dataclass(frozen=True, slots=True)
class _Named:
    """How a rule is made from C, B and the constants that a text may name."""

    make: Callable[..., ClipRule]
    constants: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)


def _quantile(max_grad_norm: float, expected_batch_size: float, **constants: float) -> ClipRule:
    """Noise of a twentieth of B on the count, as in the paper, unless the text says another one."""
    constants.setdefault("count_noise_multiplier", max(expected_batch_size / 20, LEAST_COUNT_NOISE))
    return QuantileClipping(max_grad_norm, **constants)


def _by(what: str) -> _Named:
    def make(max_grad_norm: float, expected_batch_size: float, **constants: str) -> ClipRule:
        return GroupwiseClipping(max_grad_norm, what, **constants)  # type: ignore[arg-type]

    return _Named(make, {"noise": str})


_RULES: Mapping[str, _Named] = {
    "flat": _Named(lambda max_grad_norm, _: FlatClipping(max_grad_norm)),
    "automatic": _Named(lambda max_grad_norm, _, **rest: AutomaticClipping(max_grad_norm, **rest), {"gamma": float}),
    "per-sample-adaptive": _Named(
        lambda max_grad_norm, _, **rest: PerSampleAdaptiveClipping(max_grad_norm, **rest), {"r": float}
    ),
    "per-layer": _by("layer"),
    "per-block": _by("block"),
    "per-parameter": _by("parameter"),
    "quantile": _Named(_quantile, {"quantile": float, "learning_rate": float, "count_noise_multiplier": float}),
}

NAMES = tuple(_RULES)
GROUPWISE = ("per-layer", "per-block", "per-parameter")
"""Those that take several norms of each example."""
NORMALISING = ("automatic", "per-sample-adaptive")
"""Those that bring the gradients of all examples to about the same norm: what multiplies a loss is lost."""


def rule_named(text: str, max_grad_norm: Any, expected_batch_size: float) -> ClipRule:
    """Return the rule that a text names: a name, and after a colon its constants (`quantile:quantile=0.7`).

    Args:
        text: one of `NAMES`, with constants or without.
        max_grad_norm: C, in units of the gradient.
        expected_batch_size: B; quantile clipping has by default a twentieth of it as noise on its count.

    Raises:
        InvalidArgumentError: no such rule or constant, or a value out of range.
    """
    name, _, rest = text.partition(":")
    known = _RULES[one_of("clipping", name, NAMES)]
    norm = clip_norm("max_grad_norm", max_grad_norm)
    return known.make(norm, expected_batch_size, **_constants(name, rest, known.constants))


def chosen(clipping: Any, max_grad_norm: Any, expected_batch_size: float) -> ClipRule:
    """Return the rule of a `clipping=` argument: a text (see `rule_named`), or a rule, which says its own norm.

    Raises:
        InvalidArgumentError: neither of them, or a rule beside another max_grad_norm than its own.
    """
    if isinstance(clipping, str):
        return rule_named(clipping, max_grad_norm, expected_batch_size)
    rule = require_clip_rule(clipping)
    if max_grad_norm is not None:
        given = positive_number("max_grad_norm", max_grad_norm)
        if not math.isclose(given, rule.sensitivity, rel_tol=1e-9):
            raise InvalidArgumentError(
                f"max_grad_norm is {given:g}, and the clip rule {rule.describe()} has the sensitivity "
                f"{rule.sensitivity:g}",
                cure="Leave max_grad_norm out: the noise is made from the rule's own sensitivity",
            )
    return rule


def _constants(name: str, text: str, known: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in text.split(",") if text else ():
        key, is_given, value = part.partition("=")
        if key not in known or not is_given or key in found:
            takes = ", ".join(known) or "no constants"
            raise InvalidArgumentError(
                f"{name} takes {takes}, each once, as {name}:constant=value, and got another part",
                where="clipping",
                cure=f"Write {name}, or {name}:{next(iter(known))}=..." if known else f"Write {name}",
            )
        try:
            found[key] = known[key](value)
        except ValueError:
            raise InvalidArgumentError(
                f"must be a number, as {name}:{key}=0.5 has it", where=key, cure="Write a number after the ="
            ) from None
    return found
