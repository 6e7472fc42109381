"""Poisson sampling that is cut to a largest batch, as a composition of plain Poisson-sampled steps.

A step draws each record with probability q, and keeps a uniformly random B of them where more were drawn. Let S be what
is drawn of the records that both neighbours have, and let S, and the order in which it would be cut, be known to the
attacker, which can only help him. Where |S| < B, the differing record shifts the sum by at most C with probability q:
an ordinary Poisson-sampled step. Where |S| >= B, it is kept with a probability of at most q, and then takes another
record's place: a shift of at most 2C, so a Poisson-sampled step with half the noise multiplier. Which of the two it is
does not depend on the differing record, so that the step is dominated by a mixture of both in which the coin is seen;
its second part has the probability τ = P(Binomial(N, q) >= B).

Of T steps a number K ~ Binomial(T, τ) is of the second kind. δ grows with K, so for every k

    δ(ε) <= δ(ε; T − k steps of the first kind, k of the second) + P(K > k).
"""

from __future__ import annotations

from dataclasses import replace

from hushgrad.accounting.composition import NormalForm, Sampled

_SLACK = 1e-3
"""What part of δ the chance of more truncated steps may take."""


def without_truncation(form: NormalForm, delta: float) -> tuple[NormalForm, float]:
    """Return a form of plain Poisson-sampled steps, and a δ: ε of that at this δ is true for `form` at `delta`.

    Guarantee: an upper bound: truncated steps are counted so that more of them are less likely than a thousandth of
    `delta`, which is taken from it.
    """
    if not form.truncated:
        return form, delta
    from scipy.stats import binom

    slack = _SLACK * delta / len(form.truncated)
    steps: dict[tuple[float, float], int] = {(rate, noise): count for rate, noise, count in form.sampled}

    def add(rate: float, noise: float, count: int) -> None:
        steps[rate, noise] = steps.get((rate, noise), 0) + count

    for rate, noise, probability, count in form.truncated:
        cut = 0
        while cut < count and float(binom.sf(cut, count, probability)) * (1 + 1e-9) > slack:
            cut = min(count, max(cut + 1, round(cut * 1.02)))
        if count > cut:
            add(rate, noise, count - cut)
        if cut:
            add(rate, noise / 2, cut)
    sampled: tuple[Sampled, ...] = tuple(sorted((*key, count) for key, count in steps.items()))
    return replace(form, sampled=sampled, truncated=()), delta * (1 - _SLACK)


def as_if_never_cut(form: NormalForm) -> NormalForm:
    """Return `form` with truncated steps as plain ones: for lower bounds, as a truncated step costs no less."""
    steps: dict[tuple[float, float], int] = {(rate, noise): count for rate, noise, count in form.sampled}
    for rate, noise, _, count in form.truncated:
        steps[rate, noise] = steps.get((rate, noise), 0) + count
    return replace(form, sampled=tuple(sorted((*key, count) for key, count in steps.items())), truncated=())
