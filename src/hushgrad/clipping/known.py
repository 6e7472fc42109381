"""Which clip rules are hushgrad's own, and what is required of every rule before it is used."""

from __future__ import annotations

from typing import Any

from hushgrad.arguments import clip_norm
from hushgrad.clipping.automatic import AutomaticClipping
from hushgrad.clipping.flat import FlatClipping
from hushgrad.clipping.groupwise import GroupwiseClipping
from hushgrad.clipping.per_sample_adaptive import PerSampleAdaptiveClipping
from hushgrad.clipping.quantile import QuantileClipping
from hushgrad.clipping.rule import ClipRule
from hushgrad.errors import InvalidArgumentError

OWN: tuple[type[ClipRule], ...] = (
    FlatClipping,
    AutomaticClipping,
    PerSampleAdaptiveClipping,
    GroupwiseClipping,
    QuantileClipping,
)


def is_own(rule: ClipRule) -> bool:
    """Return whether the rule is one of hushgrad's; one of somebody else's is named in every guarantee."""
    return type(rule) in OWN


def require_clip_rule(rule: Any) -> ClipRule:
    """Return `rule` if it can be used as a clip rule.

    Raises:
        InvalidArgumentError: it is none, can be changed after it was looked at, has no positive finite sensitivity, or
            cannot be named in a ledger.
    """
    if not isinstance(rule, ClipRule):
        raise InvalidArgumentError(
            f"clipping must be a clip rule such as FlatClipping(C), got {type(rule).__name__}",
            cure="Pass hushgrad.FlatClipping(C), or a rule derived from hushgrad.ClipRule",
        )
    name = type(rule).__name__
    # Of its own, not of its parent: else the fields that it adds would be neither frozen nor in its text.
    parameters = vars(type(rule)).get("__dataclass_params__")
    if parameters is None or not (parameters.frozen and parameters.eq):
        raise InvalidArgumentError(
            f"the clip rule {name} must be a frozen dataclass itself: what was checked must stay so",
            cure=f"Write @dataclass(frozen=True) above class {name}",
        )
    clip_norm(f"{name}.sensitivity", getattr(rule, "sensitivity", None))
    if rule.adaptation is not None and not is_own(rule):
        raise InvalidArgumentError(
            f"the clip rule {name} has a count of its own that is released with every step, which nobody charges for",
            cure="Take hushgrad.QuantileClipping, whose count is charged, or leave `adaptation` out",
        )
    _require_text(rule, name)
    return rule


def _require_text(rule: ClipRule, name: str) -> None:
    text = rule.describe()
    if not isinstance(text, str) or not text or not text.isprintable():
        raise InvalidArgumentError(
            f"{name}.describe() must be one printable line", cure="Name the rule and all its constants there"
        )
    taken = [kind.__name__ for kind in OWN if kind.__name__ in (name, text.partition("(")[0])]
    if taken and not is_own(rule):
        raise InvalidArgumentError(
            f"a clip rule that calls itself {taken[0]} would continue the ledgers of hushgrad's rule of that name",
            cure="Give the class, and what its describe() returns, a name of its own",
        )
