"""Is a clip rule what it says? Its factors, limits and reference, on gradients that make mistakes visible.

The rule is asked directly, without training: what it says of itself must agree. Whether training does what the rule
says is measured on the updates (`reads_as_reference`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hushgrad.checks.verification.update.paired_update import Output, norm
from hushgrad.checks.verification.update.stimuli import Stimuli
from hushgrad.checks.verification.verdict import Cause, Check
from hushgrad.clipping.bound import BoundRule
from hushgrad.clipping.rule import ClipRule

_EXAMPLES, _VALUES = 7, 3  # a rule sees norms, so that a few values for each parameter are enough
_ROUNDING = 2e-5  # of float32, in which a rule may compute


@dataclass(frozen=True, slots=True)
class RuleReading:
    """What a clip rule was found to do: the checks, and the mistake of each that failed."""

    checks: tuple[Check, ...]
    causes: tuple[Cause, ...]


def read_rule(rule: ClipRule, names: Sequence[str]) -> RuleReading:
    """Ask `rule` for factors and references of gradients of the parameters called `names`.

    Raises what binding the rule to the parameters raises.
    """
    clip = BoundRule(rule, names)
    stimuli = Stimuli(dict.fromkeys(names, (_VALUES,)), rule.sensitivity, _EXAMPLES)
    given = [part.gradients for part in (*stimuli.for_the_formula(), *stimuli.for_sensitivity()[-1:])]
    found = (_limits(clip, given), _own_factors(clip, given), _formula(clip, given), _reference(clip, given))
    return RuleReading(tuple(check for check, _ in found), tuple(cause for check, cause in found if not check.passed))


def reads_as_reference(added: Mapping[int, Output], expected: Mapping[int, Output], unit: float, room: float) -> Check:
    """Compare what each example adds to an update with the reference of its own gradient, both over the divisor.

    `room` is how far an update may be from what it is without its noise, and `unit` the sensitivity over the divisor.
    """
    gaps = [_distance(added[row], expected[row]) / (room + 2e-3 * norm(expected[row])) for row in added]
    worst = max(gaps)
    return Check(
        code="sensitivity-reference",
        part="sensitivity",
        claim="each example adds what the clip rule's reference makes of its gradient",
        measured="as computed one example at a time"
        if worst <= 1
        else f"{worst:.3g} times further off than rounding allows",
        passed=worst <= 1,
        sample_size=len(gaps),
        statistic=worst,
        power=f"differences of {room / unit + 2e-3:.2g} C",
    )


NOT_THE_REFERENCE = Cause(
    "training-differs-from-reference",
    "what training adds for an example is not what the clip rule's reference makes of its gradient.",
    "let factors and reference of the rule say the same; if they do, report it with the kinds of layers.",
)


def _norms(clip: BoundRule, gradients: Mapping[str, Tensor]) -> Tensor:
    squares = {name: values.reshape(len(values), -1).square().sum(1) for name, values in gradients.items()}
    return torch.stack([torch.stack([squares[name] for name in group]).sum(0) for group in clip.groups]).sqrt()


def _limits(clip: BoundRule, given: Sequence[Mapping[str, Tensor]]) -> tuple[Check, Cause]:
    norms_GB = torch.cat([_norms(clip, gradients) for gradients in given], 1).float()
    norms_GB = torch.cat([norms_GB, torch.zeros_like(norms_GB[:, :1])], 1)
    factors_GB = clip.factors(norms_GB.clone())
    passed = bool(clip.within(norms_GB, factors_GB, 1.0).all())
    shares = (factors_GB.abs().double() * norms_GB.double() / torch.tensor(clip.limits).double().unsqueeze(1)).amax()
    return _exact(
        "rule-limits",
        "the clip rule's factor times the norm is within the limit of each group, for norms from 0 to 1e12 C",
        f"up to {float(shares):.5g} of the limit",
        passed,
        norms_GB.numel(),
    ), Cause(
        "factor-above-limit",
        "the clip rule's factors let more through than its limits, which the noise is made from.",
        "let a factor be at most limit / norm, and finite, for every norm from 0 on.",
    )


def _own_factors(clip: BoundRule, given: Sequence[Mapping[str, Tensor]]) -> tuple[Check, Cause]:
    worst, count = 0.0, 0
    for gradients in given:
        norms_GB = _norms(clip, gradients)
        together_GB = clip.factors(norms_GB.clone())
        alone_GB = torch.cat([clip.factors(norms_G1.clone()) for norms_G1 in torch.split(norms_GB, 1, 1)], 1)
        gaps_GB = (together_GB - alone_GB).abs() / alone_GB.abs().clamp(min=1e-300)
        worst, count = max(worst, _finite(gaps_GB.amax())), count + norms_GB.shape[1]
    return _exact(
        "rule-own-factors",
        "the clip rule gives an example the same factors alone and beside others",
        "the same" if worst <= _ROUNDING else f"they differ by {worst:.3g} of the factor",
        worst <= _ROUNDING,
        count,
    ), Cause(
        "factors-depend-on-others",
        "the clip rule gives an example other factors beside other examples, so one changes what all others add.",
        "compute each column of factors from that column of the norms and the rule's constants only.",
    )


def _formula(clip: BoundRule, given: Sequence[Mapping[str, Tensor]]) -> tuple[Check, Cause]:
    worst = 0.0
    for gradients in given:
        factors = clip.factors(_norms(clip, gradients)).double()
        expected = {
            name: torch.tensordot(factors[number], gradients[name], 1)
            for number, group in enumerate(clip.groups)
            for name in group
        }
        count = next(iter(gradients.values())).shape[0]
        worst = max(worst, _distance(_of_reference(clip, gradients), expected) / (count * clip.rule.sensitivity))
    return _exact(
        "rule-formula",
        "the clip rule's factors do what its reference says",
        "the same" if worst <= _ROUNDING else f"they differ by {worst:.3g} C for each example",
        worst <= _ROUNDING,
        len(given),
    ), Cause(
        "factors-differ-from-reference",
        "factors and reference of the clip rule do not say the same.",
        "find out which of them is meant: the reference is the plain form of what factors does to gradients.",
    )


def _reference(clip: BoundRule, given: Sequence[Mapping[str, Tensor]]) -> tuple[Check, Cause]:
    limit, largest, count = clip.rule.sensitivity, 0.0, 0
    for gradients in given:
        whole, rows = _of_reference(clip, gradients), next(iter(gradients.values())).shape[0]
        for out in range(rows) if rows > 1 else ():
            kept = [row for row in range(rows) if row != out]
            part = _of_reference(clip, {name: values[kept] for name, values in gradients.items()})
            largest, count = max(largest, _distance(whole, part) / limit), count + 1
        if rows == 1:
            largest, count = max(largest, _finite(torch.tensor(norm(whole) / limit))), count + 1
    return _exact(
        "rule-reference",
        "one example changes the clip rule's reference by at most its sensitivity",
        f"by up to {largest:.5g} C, in {count} removals",
        largest <= 1 + _ROUNDING,
        count,
    ), Cause(
        "reference-above-sensitivity",
        "one example changes the clip rule's own reference by more than the sensitivity that the noise is made from.",
        "clip every group to its limit, and let `sensitivity` be the root of the sum of squared limits.",
    )


def _of_reference(clip: BoundRule, gradients: Mapping[str, Tensor]) -> Output:
    return dict(clip.rule.reference({name: values.clone() for name, values in gradients.items()}))


def _distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the norm of the difference; infinity where parameters or shapes differ, or a value is not finite."""
    if {name: value.shape for name, value in one.items()} != {name: value.shape for name, value in other.items()}:
        return math.inf
    return norm({name: value.double() - other[name].double() for name, value in one.items()})


def _finite(value: Tensor) -> float:
    number = float(value)
    return number if math.isfinite(number) else math.inf


def _exact(code: str, claim: str, measured: str, passed: bool, count: int) -> Check:
    return Check(
        code=code,
        part="sensitivity",
        claim=claim,
        measured=measured,
        passed=passed,
        sample_size=count,
        power="every difference on these gradients",
    )
