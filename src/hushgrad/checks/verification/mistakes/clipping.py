"""What people do to per-example gradients before noise is added: the right way, and the known mistakes.

Each candidate is a function from per-example gradients to the sum that ends up in the update. A measured update is
compared with all of them, and the first that predicts every measurement is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hushgrad.checks.verification.verdict import Cause

Gradients = Mapping[str, Tensor]
"""Per-example gradients by parameter, each `[n, *shape]`, in float64."""
Sums = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Belief:
    """What the author of a loop believes: σ, C, B, and whether the sum is divided by B.

    `first_step`: by what the noise of a run's first step is greater than σ·C: not 1 where steps share noise.
    """

    noise_multiplier: float
    max_grad_norm: float
    expected_batch_size: float
    divisor: float
    first_step: float = 1.0


@dataclass(frozen=True, slots=True)
class Signal:
    """A way to make an update without noise from per-example gradients; `cause` is None for the right one."""

    make: Callable[[Gradients, Belief], Sums]
    cause: Cause | None


def _rows(gradients: Gradients) -> int:
    return next(iter(gradients.values())).shape[0]


def norms(gradients: Gradients) -> Tensor:
    """Return the norm of each example's gradient over all parameters, `[n]`."""
    return torch.sqrt(sum((_flat(value) ** 2).sum(1) for value in gradients.values()))  # type: ignore[arg-type]


def _flat(value: Tensor) -> Tensor:
    return value.reshape(value.shape[0], -1)


def _weighted(gradients: Gradients, factors: Tensor, divisor: float) -> Sums:
    return {
        name: (value * factors.reshape(-1, *[1] * (value.ndim - 1))).sum(0) / divisor
        for name, value in gradients.items()
    }


def _clip(norms_B: Tensor, limit: float) -> Tensor:
    return torch.clamp(limit / norms_B.clamp(min=1e-300), max=1.0)


def _correct(gradients: Gradients, belief: Belief) -> Sums:
    return _weighted(gradients, _clip(norms(gradients), belief.max_grad_norm), belief.divisor)


def _scaled(factor: Callable[[Belief, int], float]) -> Callable[[Gradients, Belief], Sums]:
    """Return the right sum times a factor that depends on the belief and the number of examples."""

    def make(gradients: Gradients, belief: Belief) -> Sums:
        scale = factor(belief, _rows(gradients))
        return {name: value * scale for name, value in _correct(gradients, belief).items()}

    return make


def _by_factors(factors: Callable[[Gradients, Belief], Tensor]) -> Callable[[Gradients, Belief], Sums]:
    def make(gradients: Gradients, belief: Belief) -> Sums:
        return _weighted(gradients, factors(gradients, belief), belief.divisor)

    return make


def _batch(mean: bool, divisor: Callable[[Belief, int], float]) -> Callable[[Gradients, Belief], Sums]:
    """Return what clips the batch's sum or mean once."""

    def make(gradients: Gradients, belief: Belief) -> Sums:
        count = _rows(gradients)
        total = {name: value.sum(0, keepdim=True) / (count if mean else 1) for name, value in gradients.items()}
        return _weighted(total, _clip(norms(total), belief.max_grad_norm), divisor(belief, count))

    return make


def _per_layer(limit: Callable[[Belief, int], float]) -> Callable[[Gradients, Belief], Sums]:
    def make(gradients: Gradients, belief: Belief) -> Sums:
        bound = limit(belief, len(gradients))
        return {
            name: _weighted({name: value}, _clip(norms({name: value}), bound), belief.divisor)[name]
            for name, value in gradients.items()
        }

    return make


def _per_value(gradients: Gradients, belief: Belief) -> Sums:
    limit = belief.max_grad_norm
    return {name: value.clamp(-limit, limit).sum(0) / belief.divisor for name, value in gradients.items()}


def _pairs(gradients: Gradients, belief: Belief) -> Sums:
    """Clip the mean gradient of pairs of examples, as if a pair were one example."""
    paired = {}
    for name, value in gradients.items():
        even = value[: value.shape[0] // 2 * 2]
        rest = value[value.shape[0] // 2 * 2 :]
        paired[name] = torch.cat([even.reshape(-1, 2, *value.shape[1:]).sum(1), rest])
    return _weighted(paired, _clip(norms(paired), belief.max_grad_norm), belief.divisor)


def _largest(gradients: Gradients, belief: Belief) -> Tensor:
    norms_B = norms(gradients)
    return torch.full_like(norms_B, float(_clip(norms_B.max().reshape(1), belief.max_grad_norm)[0]))


def _mean_norm(gradients: Gradients, belief: Belief) -> Tensor:
    norms_B = norms(gradients)
    return torch.full_like(norms_B, float(_clip(norms_B.mean().reshape(1), belief.max_grad_norm)[0]))


def _median(gradients: Gradients, belief: Belief) -> Tensor:
    norms_B = norms(gradients)
    return _clip(norms_B, float(norms_B.median()))


def _first_only(last: bool) -> Callable[[Gradients, Belief], Tensor]:
    def factors(gradients: Gradients, belief: Belief) -> Tensor:
        name = list(gradients)[-1 if last else 0]
        return _clip(norms({name: gradients[name]}), belief.max_grad_norm)

    return factors


def _other_norm(order: float) -> Callable[[Gradients, Belief], Tensor]:
    def factors(gradients: Gradients, belief: Belief) -> Tensor:
        joined = torch.cat([_flat(value) for value in gradients.values()], 1)
        return _clip(torch.linalg.vector_norm(joined, ord=order, dim=1), belief.max_grad_norm)

    return factors


def _root_mean_square(gradients: Gradients, belief: Belief) -> Tensor:
    size = sum(value[0].numel() for value in gradients.values())
    return _clip(norms(gradients) / size**0.5, belief.max_grad_norm)


def _unclipped_parameter(which: int) -> Callable[[Gradients, Belief], Sums]:
    """Return what leaves one parameter (the last, a bias say) out of the clipping."""

    def make(gradients: Gradients, belief: Belief) -> Sums:
        if len(gradients) < max(2, which + 1):
            return _correct(gradients, belief)
        name = list(gradients)[which]
        others = {other: value for other, value in gradients.items() if other != name}
        plain = _weighted({name: gradients[name]}, torch.ones(_rows(gradients)), belief.divisor)
        return {**_correct(others, belief), **plain}

    return make


def _cause(code: str, mistake: str, cure: str) -> Cause:
    return Cause(code, mistake, cure)


_CLIP = "multiply each example's gradient by min(1, C/‖g‖), its norm over all parameters, and sum after that."
_B = "divide the noised sum by the expected batch size, a public constant."

SIGNALS: tuple[Signal, ...] = (
    Signal(_correct, None),
    Signal(
        _scaled(lambda belief, count: belief.divisor / count if count else 1.0),
        _cause("actual-batch-size", "the sum is divided by the number of examples drawn, which is secret.", _B),
    ),
    Signal(
        _scaled(lambda belief, count: belief.divisor),
        _cause("not-divided", "the sum of clipped gradients is not divided by B.", _B),
    ),
    Signal(
        _scaled(lambda belief, count: 1 / belief.expected_batch_size),
        _cause("divided-twice", "the sum is divided by B twice.", _B),
    ),
    Signal(
        _scaled(lambda belief, count: 1 / count if count else 1.0),
        _cause(
            "mean-then-divided",
            "gradients are averaged over the examples drawn, and divided by B again.",
            "sum the clipped gradients; " + _B,
        ),
    ),
    Signal(
        _scaled(lambda belief, count: 2.0),
        _cause(
            "counted-twice",
            "every example enters the sum twice (gradients that were not cleared, or two copies of it).",
            "let each example contribute once to a logical batch.",
        ),
    ),
    Signal(
        _by_factors(lambda gradients, belief: torch.ones(_rows(gradients))),
        _cause("not-clipped", "gradients are not clipped.", _CLIP),
    ),
    Signal(
        lambda gradients, belief: _weighted(gradients, torch.ones(_rows(gradients)), max(1, _rows(gradients))),
        _cause("not-clipped", "gradients are averaged without clipping.", _CLIP),
    ),
    *(
        Signal(
            _batch(False, divisor),
            _cause("batch-clipped", "the sum of the batch is clipped once, in place of each example.", _CLIP),
        )
        for divisor in (lambda belief, count: belief.divisor, lambda belief, count: 1.0, lambda b, count: max(1, count))
    ),
    *(
        Signal(
            _batch(True, divisor),
            _cause("mean-clipped", "the mean gradient of the batch is clipped, in place of each example.", _CLIP),
        )
        for divisor in (lambda belief, count: 1.0, lambda belief, count: belief.divisor)
    ),
    Signal(
        _per_layer(lambda belief, layers: belief.max_grad_norm),
        _cause(
            "per-layer-as-flat",
            "each parameter is clipped to C by itself and charged as if all together were: the sensitivity is C·√L.",
            "clip each of L parameters to C/√L, or all together to C.",
        ),
    ),
    Signal(
        _per_value,
        _cause("value-clipped", "single values are clipped to C, in place of the norm (clip_grad_value).", _CLIP),
    ),
    Signal(
        _by_factors(_other_norm(torch.inf)),
        _cause("other-norm", "the largest value of a gradient is taken for its norm.", _CLIP),
    ),
    Signal(_by_factors(_other_norm(1.0)), _cause("other-norm", "gradients are clipped in the 1-norm.", _CLIP)),
    Signal(
        _by_factors(_root_mean_square),
        _cause("other-norm", "the root mean square of the values is taken for the norm.", _CLIP),
    ),
    Signal(
        _by_factors(lambda gradients, belief: _clip(norms(gradients) ** 2, belief.max_grad_norm)),
        _cause("squared-norm", "the squared norm is compared with C, without its root.", _CLIP),
    ),
    Signal(
        _by_factors(
            lambda gradients, belief: torch.clamp(belief.max_grad_norm / norms(gradients).clamp(min=1e-300), min=1.0)
        ),
        _cause("max-for-min", "the factor is max(1, C/‖g‖): small gradients grow, large ones stay.", _CLIP),
    ),
    Signal(
        _by_factors(lambda gradients, belief: belief.max_grad_norm / norms(gradients).clamp(min=1e-300)),
        _cause(
            "normalised",
            "every gradient is scaled to norm C, small ones too: private, but not what is believed.",
            _CLIP,
        ),
    ),
    *(
        Signal(
            _by_factors(_first_only(last)),
            _cause("part-of-the-norm", "the norm is taken over one parameter only, and all are scaled by it.", _CLIP),
        )
        for last in (False, True)
    ),
    *(
        Signal(
            _unclipped_parameter(which),
            _cause("parameter-not-clipped", "a parameter is left out of the clipping.", _CLIP),
        )
        for which in (-1, 0, 1, 2, 3, 4, 5)
    ),
    Signal(
        _pairs,
        _cause("groups-clipped", "groups of examples (micro-batches) are clipped together, not each example.", _CLIP),
    ),
    Signal(
        _by_factors(_largest),
        _cause("common-factor", "one factor for all, from the largest norm in the batch.", _CLIP),
    ),
    Signal(
        _by_factors(_mean_norm),
        _cause("common-factor", "one factor for all, from the mean norm in the batch.", _CLIP),
    ),
    Signal(
        _by_factors(_median),
        _cause(
            "private-clip-norm",
            "the clip norm is computed from the batch (its median), so it depends on every example.",
            "take a constant C, or charge for an adaptive one.",
        ),
    ),
    Signal(
        lambda gradients, belief: {
            name: torch.zeros(value.shape[1:], dtype=value.dtype) for name, value in gradients.items()
        },
        _cause("no-signal", "the gradients do not enter the update.", "add the noise to the sum of clipped gradients."),
    ),
)


def clipped_to(multiple: float) -> Callable[[Gradients, Belief], Sums]:
    """Return what clips to `multiple` · C."""

    def make(gradients: Gradients, belief: Belief) -> Sums:
        return _weighted(gradients, _clip(norms(gradients), multiple * belief.max_grad_norm), belief.divisor)

    return make


def other_clip_norm(multiple: float) -> Cause:
    """Return the cause for a clip norm that is `multiple` times the believed one."""
    return _cause(
        "clip-norm-differs",
        f"gradients are clipped to {multiple:.4g} times the C that the noise is made for (two owners of C: a clip norm "
        f"that was scheduled or changed in one place only).",
        "let one value of C make both the clip factor and the noise.",
    )
