"""`verify_update` on a batch: a loop with a model, a loss and an optimizer, of this library or of another one.

Per-example gradients cannot be chosen here, so the loop is given parts of a batch: each example alone, examples with
one of them left out, copies of one example, and examples with inputs scaled up. In a correct loop an example adds the
same vector, of norm at most C, whatever else is in the batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hushgrad.checks.verification.checks import statistics as st
from hushgrad.checks.verification.checks.noise import NoiseReading, read_noise
from hushgrad.checks.verification.mistakes.clipping import Belief, other_clip_norm
from hushgrad.checks.verification.mistakes.explain import charge_causes
from hushgrad.checks.verification.mistakes.noise import level_causes, structure_causes
from hushgrad.checks.verification.update.paired_update import FunctionUpdate, Output, PairedUpdate, arrays, norm
from hushgrad.checks.verification.verdict import Cause, Check, Measured, Verdict, failed_codes
from hushgrad.errors import InvalidArgumentError

_MOST_ROWS = 8
_MOST_STEPS = 200


def rows_of(batch: Any) -> int:
    """Return the number of examples of a batch: the first dimension that all its tensors share."""
    leaves = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim]
    counts = {leaf.shape[0] for leaf in leaves}
    if len(counts) != 1:
        raise InvalidArgumentError(
            f"batch must hold tensors with one number of examples, got first dimensions {sorted(counts)}",
            cure="Put the examples on the first dimension of every tensor",
        )
    return counts.pop()


def take(batch: Any, rows: Sequence[int], scale: float = 1.0) -> Any:
    """Return these examples of a batch, as copies; floating-point inputs of the first one times `scale`."""

    def of(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            return leaf
        part = leaf[torch.as_tensor(rows, dtype=torch.long, device=leaf.device)]
        if scale != 1.0 and part.is_floating_point() and len(rows):
            part[0] *= scale
        return part

    return pytree.tree_map(of, batch)


@dataclass(slots=True)
class _Lab:
    """Calls the loop on parts of the batch and takes noise away."""

    loop: PairedUpdate
    batch: Any
    rows: list[int]
    base: Output

    def signal(self, rows: Sequence[int], scale: float = 1.0) -> Output:
        """Return the update for these rows without noise."""
        found = self.loop.call(take(self.batch, rows, scale), 12345)
        return {n: found[n].double() - self.base[n] for n in found}


def verify_batch_update(
    update: Callable[[Any], Any],
    belief: Belief,
    charged: float,
    batch: Any,
    resolution: float,
    false_alarm: float,
    started: float,
) -> Verdict:
    """Measure an update that takes batches; see `verify_update`."""
    available = rows_of(batch)
    if available < 4:
        raise InvalidArgumentError(f"batch must have at least 4 examples, got {available}", cure="Pass a larger batch")
    rows = list(range(min(available, _MOST_ROWS)))
    loop = FunctionUpdate(update)
    loop.find_pairing(take(batch, rows))
    if not loop.is_paired:
        raise InvalidArgumentError(
            "the update does not repeat itself under the same seed of torch's generator, so one example's part cannot "
            "be told from noise",
            cure="Draw its noise from torch's global generator while it is verified, and keep nothing from call to "
            "call; verify a hushgrad loop with hushgrad.verify",
        )
    noise = _noise(loop, batch, rows, belief, resolution, false_alarm / 2)
    reading = measure(loop, batch, rows, belief, noise, false_alarm / 4)
    effective = noise.std / reading.sensitivity if reading.sensitivity > 0 else math.inf
    reach = float(-st.ndtri(false_alarm / 8)) / math.sqrt(2 * noise.count)
    checks = (
        *reading.checks,
        *noise.checks.values(),
        _charge(charged, effective, noise, reach, false_alarm / 4, reading),
    )
    passed = all(check.passed for check in checks)
    return Verdict(
        "the loop",
        tuple(check for check in checks if check.sample_size),
        () if passed else tuple(find_causes(reading, belief, charged, noise)),
        Measured(belief.max_grad_norm, belief.noise_multiplier * belief.max_grad_norm, charged),
        Measured(reading.sensitivity * belief.divisor, noise.std * belief.divisor, effective),
        notes=reading.notes,
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True, slots=True)
class GroupReading:
    """What parts of a batch add to an update: the lab, each example's part, the largest part, and the checks."""

    lab: _Lab
    alone: dict[int, Output]
    sensitivity: float
    unit: float
    checks: tuple[Check, ...]
    notes: tuple[str, ...]


def measure(
    loop: PairedUpdate, batch: Any, rows: list[int], belief: Belief, noise: NoiseReading, false_alarm: float
) -> GroupReading:
    """Measure what the examples of a batch add to an update of a paired loop, alone and in groups."""
    base, empty = _base(loop, batch, belief, false_alarm)
    lab = _Lab(loop, batch, rows, base)
    unit = belief.max_grad_norm / belief.divisor
    room = loop.error_of_difference(noise.std) * math.sqrt(sum(v.numel() for v in base.values())) * 3 + 1e-4 * unit
    alone = {row: lab.signal([row]) for row in rows}
    sensitivity, removals = _sensitivity(lab, alone, unit, room)
    additive = _additivity(lab, alone, unit, room)
    return GroupReading(
        lab,
        alone,
        sensitivity,
        unit,
        (removals, additive, *([] if empty is None else [empty])),
        () if empty is not None else ("An empty draw was not tested: the loop raises an error for it",),
    )


def _noise(
    loop: FunctionUpdate, batch: Any, rows: list[int], belief: Belief, resolution: float, false_alarm: float
) -> NoiseReading:
    """Read the noise from differences of pairs of updates for the same rows."""
    part = take(batch, rows)
    size = sum(value.numel() for value in loop.call(part).values())
    needed = st.values_needed_for_std(resolution, false_alarm / 9)
    steps = min(_MOST_STEPS, max(6, math.ceil(needed / size)))
    draws = []
    for _ in range(steps):
        one, other = loop.call(part), loop.call(part)
        draws.append({n: (one[n] - other[n]) / math.sqrt(2) for n in one})
    claimed = belief.noise_multiplier * belief.max_grad_norm / belief.divisor
    return read_noise([arrays(draw) for draw in draws], claimed, false_alarm, loop.word_bits)


def _base(loop: PairedUpdate, batch: Any, belief: Belief, alpha: float) -> tuple[Output, Check | None]:
    """Return the noise of the seed that all signals are measured under, and the check of an empty draw.

    Where the loop cannot run on no examples the noise follows from three runs, if contributions add up.
    """
    try:
        found = loop.call(take(batch, []), 12345)
        loop.call(take(batch, [0]))  # an empty draw must leave the loop usable
        drawn = [loop.call(take(batch, [])) for _ in range(8)]
    except (ArithmeticError, RuntimeError, ValueError, IndexError, TypeError):
        one, other, both = (loop.call(take(batch, rows), 12345) for rows in ([0], [1], [0, 1]))
        return {n: one[n].double() + other[n].double() - both[n].double() for n in one}, None
    joined = torch.cat([value.double().reshape(-1) for draw in drawn for value in draw.values()])
    claimed = belief.noise_multiplier * belief.max_grad_norm / belief.divisor
    total = float((joined**2).sum()) / claimed**2
    p = st.variance_p(total, joined.numel())
    check = Check(
        code="noise-empty-draw",
        part="noise",
        claim="an empty draw gets noise like any other",
        measured=f"{math.sqrt(total / joined.numel()) if math.isfinite(total) else math.nan:.4g} times the claimed std",
        passed=p >= alpha,
        sample_size=joined.numel(),
        statistic=total,
        p_value=p,
        false_alarm=alpha,
        power=f"{st.smallest_std_error(joined.numel(), alpha):.1%} error with probability 0.999",
    )
    if not check.passed:
        one, other, both = (loop.call(take(batch, rows), 12345) for rows in ([0], [1], [0, 1]))
        return {n: one[n].double() + other[n].double() - both[n].double() for n in one}, check
    return {n: value.double() for n, value in found.items()}, check


def _minus(one: Output, other: Output) -> float:
    return norm({n: one[n] - other[n] for n in one})


def _sensitivity(lab: _Lab, alone: dict[int, Output], unit: float, room: float) -> tuple[float, Check]:
    """Leave out each example of groups of 2, 4 and all rows, and one whose inputs are scaled up."""
    changes = [norm(value) for value in alone.values()]
    for count in dict.fromkeys((2, 4, len(lab.rows))):
        group = lab.rows[:count]
        whole = lab.signal(group)
        changes += [_minus(whole, lab.signal([row for row in group if row != out])) for out in group]
    for scale in (1e-3, 30.0, 1e3):
        changes.append(_minus(lab.signal(lab.rows[:4], scale), lab.signal(lab.rows[1:4])))
    largest = max(changes)
    return largest, Check(
        code="sensitivity-bound",
        part="sensitivity",
        claim="adding or removing one example changes the sum by at most C",
        measured=f"by up to {largest / unit:.5g} C, in {len(changes)} removals",
        passed=largest <= unit + room,
        sample_size=len(changes),
        statistic=largest / unit,
        false_alarm=0.0,
        power=f"every excess above {room / unit:.2g} C on these examples",
    )


def _additivity(lab: _Lab, alone: dict[int, Output], unit: float, room: float) -> Check:
    """Groups of examples against the sum of what each adds alone."""
    worst, groups = 0.0, [lab.rows[:2], lab.rows[:3], lab.rows, [lab.rows[0]] * 4]
    for group in groups:
        together = lab.signal(group)
        expected = {n: sum(alone[row][n] for row in group) for n in together}
        gap = norm({n: together[n] - expected[n] for n in together})
        worst = max(worst, gap / (room * math.sqrt(len(group)) * 3 + 2e-3 * unit * len(group)))
    return Check(
        code="sensitivity-additive",
        part="sensitivity",
        claim="what an example adds does not depend on the others",
        measured="groups add up"
        if worst <= 1
        else f"groups differ from their sum by {worst:.3g} times what rounding allows",
        passed=worst <= 1,
        sample_size=len(groups),
        statistic=worst,
        false_alarm=0.0,
        power="differences of 0.2% of C per example",
    )


def _charge(
    charged: float, effective: float, noise: NoiseReading, reach: float, alpha: float, reading: GroupReading
) -> Check:
    """Noise over the largest contribution seen. Where all are far below C only C itself can be compared."""
    seen = max(reading.sensitivity, reading.unit)
    found = noise.std / seen
    return Check(
        code="ledger-multiplier",
        part="ledger",
        claim="what is charged is the noise over the sensitivity that were measured",
        measured=f"{found:.5g} measured, {charged:.5g} charged; the largest contribution seen is "
        f"{reading.sensitivity / reading.unit:.4g} C",
        passed=abs(found / charged - 1) <= 2e-3 + reach,
        sample_size=noise.count,
        statistic=effective / charged,
        false_alarm=alpha,
        power=f"{2e-3 + 2 * reach:.2%} difference",
    )


def find_causes(reading: GroupReading, belief: Belief, charged: float, noise: NoiseReading) -> list[Cause]:
    """Return the mistakes that fit, the likeliest first."""
    lab, alone, unit = reading.lab, reading.alone, reading.unit
    failed = failed_codes(reading.checks)
    causes: list[Cause] = []
    if "sensitivity-additive" in failed:
        causes.append(_mixing(lab, alone, unit))
    elif "sensitivity-bound" in failed:
        causes.append(_clipping(lab, alone, unit))
    structure = structure_causes(noise)
    causes += structure
    if not structure and not noise.checks["noise-std"].passed:
        level = level_causes(belief, {len(lab.rows): noise.std * belief.divisor})
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


def _clipping(lab: _Lab, alone: dict[int, Output], unit: float) -> Cause:
    """Contributions add up and are too large: are they all cut at one other norm?"""
    norms = sorted(norm(value) for value in alone.values())
    scaled = norm(lab.signal([lab.rows[0]], 1e3))
    if scaled < 1.01 * norms[-1]:
        return other_clip_norm(norms[-1] / unit)
    return Cause(
        "not-clipped",
        "an example's contribution grows with its input without bound: gradients are not clipped per example.",
        "multiply each example's gradient by min(1, C/‖g‖), its norm over all parameters, and sum after that.",
    )


def _mixing(lab: _Lab, alone: dict[int, Output], unit: float) -> Cause:
    """Explain groups that do not add up: one factor for all, weights that examples share, or real mixing."""
    first, other = lab.rows[0], lab.rows[1]
    copies = lab.signal([first] * 4)
    ratio = norm(copies) / max(4 * norm(alone[first]), 1e-300)
    weights, rest = _weights(lab, alone, [first, other])
    pairs = [(weights, rest)]
    for second in lab.rows[2:6]:
        pairs.append(_weights(lab, alone, [first, second]))
    fits = max(gap for _, gap in pairs) < 0.02
    seconds = [other, *lab.rows[2:6]]
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


def _weights(lab: _Lab, alone: dict[int, Output], pair: list[int]) -> tuple[list[float], float]:
    """Return the weights with which a pair's parts explain the pair, and the share that they leave unexplained."""
    together = torch.cat([value.reshape(-1) for value in lab.signal(pair).values()])
    parts = torch.stack([torch.cat([value.reshape(-1) for value in alone[row].values()]) for row in pair], 1)
    found = torch.linalg.lstsq(parts, together[:, None]).solution[:, 0]
    rest = float((together - parts @ found).norm() / together.norm().clamp(min=1e-300))
    return [float(weight) for weight in found], rest
