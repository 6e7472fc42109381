"""From measurements to the mistake that explains them."""

from __future__ import annotations

from dataclasses import replace

from hushgrad.checks.verification.checks.noise import NoiseReading
from hushgrad.checks.verification.mistakes.clipping import Belief, clipped_to, other_clip_norm
from hushgrad.checks.verification.mistakes.noise import level_causes, structure_causes
from hushgrad.checks.verification.update.contributions import Contributions, distance
from hushgrad.checks.verification.update.paired_update import norm
from hushgrad.checks.verification.verdict import Cause, failed_codes

_DIVISORS = {"not-divided", "actual-batch-size", "divided-twice", "mean-then-divided"}


def diagnose(belief: Belief, noise: NoiseReading, contributions: Contributions) -> list[Cause]:
    """Return the mistakes that fit, the likeliest first; the best known explanation of each part that failed."""
    failed = failed_codes(contributions.checks.values())
    causes: list[Cause] = []
    if "sensitivity-state" in failed:
        causes.append(
            Cause(
                "state-kept",
                "gradients of an earlier batch enter the next update: they were not cleared.",
                "begin every logical batch with sums of 0.",
            )
        )
    signal = _signal_cause(belief, contributions) if not causes and "sensitivity-formula" in failed else None
    if signal is not None:
        causes.append(signal)
    structure = structure_causes(noise)
    clipped = _clipped_noise(noise, belief, contributions)
    if clipped is not None:
        causes.append(clipped)
    else:
        causes += structure
        if not structure or not noise.checks["noise-std"].passed:
            level = _level(belief, noise, contributions, signal, explained=bool(structure))
            if level is not None:
                causes.append(level)
    if "sensitivity-bound" in failed and not causes:
        causes.append(
            Cause(
                "sensitivity-exceeded",
                "one example changes the sum by more than C.",
                "multiply each example's gradient by min(1, C/‖g‖), computed in float32, and sum after that.",
            )
        )
    if "sensitivity-formula" in failed and not causes:
        causes.append(_INTERACTION)
    if "sensitivity-non-finite" in failed and not causes:
        causes.append(
            Cause(
                "non-finite-poisons",
                "one example with NaN or infinity decides whether the update is finite.",
                "let examples whose norm is not finite contribute 0, by selection (0 × infinity is NaN).",
            )
        )
    if "noise-empty-draw" in failed and not causes:
        causes.append(
            Cause(
                "empty-draw-without-noise",
                "an empty draw gets no noise, so the update shows that nobody took part.",
                "take a step of noise alone for an empty draw, and charge it.",
            )
        )
    return causes


def charge_causes(belief: Belief, charged: float, effective: float) -> list[Cause]:
    """Return what was given to the accountant in place of σ, where the update itself is right."""
    sigma, clip, size = belief.noise_multiplier, belief.max_grad_norm, belief.expected_batch_size
    guesses = {
        "charged-sigma-over-batch": (sigma / size, "σ/B is given to the accountant"),
        "charged-sigma-times-clip-norm": (sigma * clip, "σ·C, the standard deviation of the noise, is charged"),
        "charged-sigma-over-clip-norm": (sigma / clip, "σ/C is charged"),
        "charged-sigma-times-batch": (sigma * size, "σ·B is charged"),
        "charged-std-of-update": (sigma * clip / size, "σ·C/B, the noise of the divided update, is charged"),
        "charged-variance": (sigma**2, "σ² is charged"),
        "charged-root": (sigma**0.5, "√σ is charged"),
        "charged-root-of-batch": (sigma / size**0.5, "σ/√B is charged"),
        "charged-sigma-times-root-of-batch": (sigma * size**0.5, "σ·√B is charged"),
    }
    cure = "give the accountant σ: the division by B changes noise and sensitivity alike."
    for code, (value, words) in guesses.items():
        if abs(charged / value - 1) < 0.005:
            return [Cause(code, f"{words}, in place of σ.", cure)]
    return [Cause("charged-other", f"{charged / effective:.4g} times the measured noise multiplier is charged.", cure)]


def _signal_cause(belief: Belief, contributions: Contributions) -> Cause | None:
    fitting = [signal.cause for signal in contributions.fits if signal.cause is not None]
    if fitting:
        return fitting[0]
    multiple = _clip_multiple(belief, contributions)
    if multiple is not None:
        return other_clip_norm(multiple)
    scale = _common_scale(belief, contributions)
    if scale is not None:
        return Cause(
            "scaled",
            f"the sum of clipped gradients is multiplied by {scale:.4g}.",
            "sum the clipped gradients, add the noise, and divide by B once.",
        )
    return None


def _clip_multiple(belief: Belief, contributions: Contributions) -> float | None:
    """Return k if everything fits clipping to k·C."""
    found = [(s, f) for s, f in contributions.measured if s.what == "one huge example"]
    multiple = norm(found[0][1]) * belief.divisor / belief.max_grad_norm
    if not 0 < multiple < 9.9:
        return None
    make = clipped_to(multiple)
    for stimulus, output in contributions.measured:
        expected = make(stimulus.gradients, belief)
        if distance(output, expected) > contributions.tolerance + 0.01 * norm(expected):
            return None
    return multiple


def _common_scale(belief: Belief, contributions: Contributions) -> float | None:
    make = clipped_to(1.0)
    scales = []
    for stimulus, output in contributions.measured:
        expected = make(stimulus.gradients, belief)
        scale = sum(float((output[n] * expected[n]).sum()) for n in output) / max(norm(expected) ** 2, 1e-300)
        rest = norm({n: output[n] - scale * expected[n] for n in output})
        if rest > contributions.tolerance + 0.02 * norm(output):
            return None
        scales.append(scale)
    return scales[0] if max(scales) - min(scales) < 0.01 * abs(scales[0]) else None


_INTERACTION = Cause(
    "examples-interact",
    "what an example contributes is not its own clipped gradient: it depends on the other examples, or on something "
    "besides the gradient.",
    "clip each example's gradient by a factor of its own norm alone, and sum after that.",
)


def _clipped_noise(noise: NoiseReading, belief: Belief, contributions: Contributions) -> Cause | None:
    """Noise that is clipped with the gradients has the same norm in every step."""
    ratios = noise.step_ratios
    middle = sum(ratios) / len(ratios)
    size = noise.count / len(ratios)
    spread = (sum((ratio - middle) ** 2 for ratio in ratios) / len(ratios)) ** 0.5
    if (
        middle > 0
        and spread < 0.02 * middle / (2 * size) ** 0.5
        and not noise.checks["noise-std"].passed
        and len(ratios) > 4
    ):
        if not noise.checks["noise-across-steps"].passed:
            return None
        return Cause(
            "noise-clipped",
            "noise is added before clipping, so it is clipped together with the gradients.",
            "clip every example's gradient first, sum, and add noise to the sum.",
        )
    return None


def _level(
    belief: Belief, noise: NoiseReading, contributions: Contributions, signal: Cause | None, *, explained: bool
) -> Cause | None:
    """Explain the level of the noise on the sum, given what the sum was found to be divided by."""
    size = belief.expected_batch_size
    code = signal.code if signal is not None else ""
    by_count = {count: std for count, std in contributions.noise_by_count.items() if count > 0}

    def on_sum(count: int, std: float) -> float:
        divisor = {
            "not-divided": 1.0,
            "actual-batch-size": float(count),
            "divided-twice": belief.divisor * size,
            "mean-then-divided": count * size,
        }.get(code, belief.divisor)
        return std * divisor

    live = [ratio for ratio in noise.ratios.values() if ratio >= 0.02]
    if explained and live and all(abs(ratio - live[0]) < 0.05 * live[0] for ratio in live):
        # Parameters without noise lower the average; what the others have is the level.
        share = live[0] / noise.ratio if noise.ratio else 1.0
        by_count = {count: std * share for count, std in by_count.items()}
    measured = {count: on_sum(count, std) for count, std in by_count.items()}
    exact = noise.ratio if not noise.checks["noise-std"].passed and not explained and code not in _DIVISORS else None
    cause = level_causes(belief, measured, exact)
    if cause is None and -1 in contributions.noise_by_count:
        return Cause(
            "noise-depends-on-data",
            "the level of the noise depends on the gradients.",
            "add noise of standard deviation σ·C to the sum, whatever the gradients are.",
        )
    if cause is not None and cause.code == "noise-level" and explained:
        return None
    if cause is not None and code not in _DIVISORS and belief.divisor == 1 and cause.code == "noise-after-division":
        return replace(cause, mistake="the noise is B times too strong.")
    return cause
