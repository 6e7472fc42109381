"""Which known mistake explains what groups of examples add to an update."""

from __future__ import annotations

import torch

from hushgrad.checks.verification.checks.noise import NoiseReading
from hushgrad.checks.verification.mistakes.clipping import Belief, other_clip_norm
from hushgrad.checks.verification.mistakes.explain import charge_causes
from hushgrad.checks.verification.mistakes.noise import level_causes, structure_causes
from hushgrad.checks.verification.update.groups import GroupReading, PairedProbe
from hushgrad.checks.verification.update.paired_update import Output, norm
from hushgrad.checks.verification.verdict import Cause, failed_codes


def find_causes(reading: GroupReading, belief: Belief, charged: float, noise: NoiseReading) -> list[Cause]:
    """Return the mistakes that fit, the likeliest first."""
    probe, alone, unit = reading.probe, reading.alone, reading.unit
    failed = failed_codes(reading.checks)
    causes: list[Cause] = []
    if "sensitivity-additive" in failed:
        causes.append(_mixing(probe, alone, unit))
    elif "sensitivity-bound" in failed:
        causes.append(_clipping(probe, alone, unit))
    structure = structure_causes(noise)
    causes += structure
    if not structure and not noise.checks["noise-std"].passed:
        level = level_causes(belief, {len(probe.rows): noise.std * belief.divisor})
        if level is not None:
            causes.append(level)
    if not causes and "noise-empty-draw" in failed:
        causes.append(
            Cause(
                "empty-draw-without-noise",
                "an empty draw gets no noise like any other, so the update shows that nobody took part.",
                "take a step of noise alone for an empty draw, and charge it.",
            )
        )
    if not causes and abs(charged / belief.noise_multiplier - 1) > 1e-9:
        causes += charge_causes(belief, charged, noise.std / unit)
    return causes


def _clipping(probe: PairedProbe, alone: dict[int, Output], unit: float) -> Cause:
    """Contributions add up and are too large: are they all cut at one other norm?"""
    norms = sorted(norm(value) for value in alone.values())
    scaled = norm(probe.signal([probe.rows[0]], 1e3))
    if scaled < 1.01 * norms[-1]:
        return other_clip_norm(norms[-1] / unit)
    return Cause(
        "not-clipped",
        "an example's contribution grows with its input without bound: gradients are not clipped per example.",
        "multiply each example's gradient by min(1, C/‖g‖), its norm over all parameters, and sum after that.",
    )


def _mixing(probe: PairedProbe, alone: dict[int, Output], unit: float) -> Cause:
    """Explain groups that do not add up: one factor for all, weights that examples share, or real mixing."""
    first, other = probe.rows[0], probe.rows[1]
    copies = probe.signal([first] * 4)
    ratio = norm(copies) / max(4 * norm(alone[first]), 1e-300)
    weights, rest = _weights(probe, alone, [first, other])
    pairs = [(weights, rest)]
    for second in probe.rows[2:6]:
        pairs.append(_weights(probe, alone, [first, second]))
    fits = max(gap for _, gap in pairs) < 0.02
    seconds = [other, *probe.rows[2:6]]
    largest = max(
        abs(weight) * norm(alone[row])
        for (found, _), second in zip(pairs, seconds, strict=True)
        for weight, row in zip(found, (first, second), strict=True)
    )
    uneven = max(abs(found[0] - found[1]) for found, _ in pairs) > 0.02
    if abs(ratio - 0.25) < 0.01 and not uneven and fits:
        return Cause(
            "actual-batch-size",
            "what is released is divided by the number of examples drawn, which is secret.",
            "divide the noised sum by the expected batch size, a public constant.",
        )
    if (ratio > 1.5 and norm(alone[first]) > 0.01 * unit) or (fits and largest > 1.05 * unit):
        return Cause(
            "loss-broadcast",
            "one example's loss is multiplied by the clip factors of the others (losses of shape [B, 1] against "
            "factors of shape [B], say), so that nothing is clipped by its own norm.",
            "give one loss per example, of shape [B].",
        )
    if ratio < 0.9 or (fits and not uneven):
        return Cause(
            "batch-clipped",
            "examples share one clip factor, or are clipped as a batch: the more examples, the less each adds.",
            "multiply each example's gradient by min(1, C/‖g‖), its norm over all parameters, and sum after that.",
        )
    if fits:
        return Cause(
            "loss-shares-an-average",
            "examples weigh each other: the loss is an average over something that they share, such as all tokens of "
            "the batch, so that a long example makes the others smaller.",
            "average within each example first (the mean over its own tokens), then over examples.",
        )
    return Cause(
        "examples-interact",
        "the gradient of one example depends on the others (batch normalization, attention over the batch, losses of "
        "pairs).",
        "let every example's loss depend on that example alone.",
    )


def _weights(probe: PairedProbe, alone: dict[int, Output], pair: list[int]) -> tuple[list[float], float]:
    """Return the weights with which a pair's parts explain the pair, and the share that they leave unexplained."""
    together = torch.cat([value.reshape(-1) for value in probe.signal(pair).values()])
    parts = torch.stack([torch.cat([value.reshape(-1) for value in alone[row].values()]) for row in pair], 1)
    found = torch.linalg.lstsq(parts, together[:, None]).solution[:, 0]
    rest = float((together - parts @ found).norm() / together.norm().clamp(min=1e-300))
    return [float(weight) for weight in found], rest
