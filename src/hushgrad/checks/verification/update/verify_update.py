"""`verify_update`: is a hand-written update what its author believes, and if not, which mistake fits?

The update is treated as a box. It is fed per-example gradients that are chosen to make mistakes visible, its noise is
measured where gradients are 0, and what comes out is compared with all mistakes that this version knows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from hushgrad.arguments import one_of, open_unit_interval, positive_number
from hushgrad.checks.verification.checks import statistics as st
from hushgrad.checks.verification.checks.noise import NoiseReading, read_noise
from hushgrad.checks.verification.mistakes.clipping import Belief
from hushgrad.checks.verification.mistakes.explain import charge_causes, diagnose
from hushgrad.checks.verification.update.batches import verify_batch_update
from hushgrad.checks.verification.update.contributions import read_contributions
from hushgrad.checks.verification.update.paired_update import FunctionUpdate, arrays
from hushgrad.checks.verification.update.stimuli import Form, Stimuli
from hushgrad.checks.verification.verdict import Check, Measured, Verdict
from hushgrad.errors import InvalidArgumentError

DEFAULT_FALSE_ALARM = 1e-6
DEFAULT_RESOLUTION = 0.01
_EXAMPLES = 8
_FEWEST_STEPS, _MOST_STEPS = 8, 2000
_LARGE = 100_000


def verify_update(
    update: Callable[[Any], Any],
    *,
    noise_multiplier: float,
    max_grad_norm: float,
    expected_batch_size: float,
    charged_noise_multiplier: float | None = None,
    parameters: Any = (32, 32),
    batch: Any = None,
    loss_reduction: str = "mean",
    dtype: torch.dtype = torch.float32,
    resolution: float = DEFAULT_RESOLUTION,
    false_alarm: float = DEFAULT_FALSE_ALARM,
) -> Verdict:
    """Measure what an update does, and compare it with what its author believes.

    Args:
        update: from per-example gradients (a tensor `[n, *shape]`, or a list or dict of them, as `parameters` says) to
            the noised update (`[*shape]`, in the same form). With `batch`: from a batch to the noised update.
        noise_multiplier: σ, as believed.
        max_grad_norm: C, as believed.
        expected_batch_size: B, as believed.
        charged_noise_multiplier: what the accountant is given; by default σ.
        parameters: a shape, a list of shapes, or a mapping from names to shapes.
        batch: a batch of at least four examples (a tensor, or a tuple, list or dict of tensors, examples first); the
            update is then given parts of it. Take a C that is about the size of its gradients' norms. Dropout is to be
            off: it draws other masks for other parts.
        loss_reduction: "mean" where the noised sum is divided by B, "sum" where it is not divided.
        dtype: the dtype of the gradients that the update is given.
        resolution: the relative error of the noise's standard deviation that must be found with probability 0.999.
        false_alarm: the most probability with which a correct update may fail.

    Call it with σ, C and B that differ from 1 and from each other: mistakes that confuse them are then visible.

    Guarantee: the verdict's checks state their sample size, false-alarm probability and power, and a correct update
    fails with a probability of at most `false_alarm`.

    Raises:
        InvalidArgumentError: an argument out of range, or an update of another shape than its gradients.
    """
    started = time.perf_counter()
    divisor = expected_batch_size if one_of("loss_reduction", loss_reduction, ("mean", "sum")) == "mean" else 1.0
    belief = Belief(
        positive_number("noise_multiplier", noise_multiplier),
        positive_number("max_grad_norm", max_grad_norm),
        positive_number("expected_batch_size", expected_batch_size),
        float(divisor),
    )
    charged = (
        belief.noise_multiplier
        if charged_noise_multiplier is None
        else positive_number("charged_noise_multiplier", charged_noise_multiplier)
    )
    if not callable(update):
        raise InvalidArgumentError(
            f"update must be a function, got {type(update).__name__}",
            cure="Pass the function from per-example gradients (or from a batch) to the noised update",
        )
    open_unit_interval("resolution", resolution, "Pass a relative error, such as 0.01")
    alpha = open_unit_interval("false_alarm", false_alarm)
    if batch is not None:
        return verify_batch_update(update, belief, charged, batch, resolution, alpha, started)
    form = Form.of(parameters, dtype)
    loop = FunctionUpdate(lambda stimulus: form.read(update(form.hand_over(stimulus))))
    count = _EXAMPLES if round(belief.expected_batch_size) not in (_EXAMPLES, 2 * _EXAMPLES) else _EXAMPLES - 1
    count = count if form.size <= _LARGE else 3
    stimuli = Stimuli(form.shapes, belief.max_grad_norm, count)
    claimed_std = belief.noise_multiplier * belief.max_grad_norm / belief.divisor
    steps = steps_needed(form.size, resolution, alpha)
    noise = read_noise(
        [arrays(draw) for draw in loop.draw(stimuli.zeros(count), steps)], claimed_std, alpha / 2, loop.word_bits
    )
    loop.find_pairing(stimuli.zeros(count))
    contributions = read_contributions(loop, stimuli, belief, noise, alpha / 4)
    effective = contributions.noise_multiplier(noise.std)
    checks = (
        *contributions.checks.values(),
        *noise.checks.values(),
        charge_check(charged, effective, noise, loop.is_paired, alpha / 4),
    )
    causes = diagnose(belief, noise, contributions) if not all(check.passed for check in checks) else []
    if not causes and not checks[-1].passed:
        causes = charge_causes(belief, charged, effective)
    return Verdict(
        "the update",
        tuple(check for check in checks if check.sample_size),
        tuple(causes),
        Measured(belief.max_grad_norm, belief.noise_multiplier * belief.max_grad_norm, charged),
        Measured(
            contributions.sensitivity * belief.divisor,
            noise.std * belief.divisor,
            None if contributions.noise_varies else effective,
        ),
        notes=contributions.notes,
        seconds=time.perf_counter() - started,
    )


def steps_needed(size: int, resolution: float, false_alarm: float) -> int:
    """Return how many draws of `size` values show a relative error `resolution` of the noise."""
    values = st.values_needed_for_std(resolution, false_alarm / 2 / 9)
    return min(_MOST_STEPS, max(_FEWEST_STEPS if size <= _LARGE else 2, math.ceil(values / size)))


def charge_check(charged: float, effective: float, noise: NoiseReading, exact: bool, alpha: float) -> Check:
    """Compare the measured noise over sensitivity with what is charged."""
    reach = float(-st.ndtri(alpha / 2)) / math.sqrt(2 * noise.count)
    room = 2e-3 + reach if exact else 0.03 + reach
    return Check(
        code="ledger-multiplier",
        part="ledger",
        claim="what is charged is the noise over the sensitivity that were measured",
        measured=f"{effective:.5g} measured, {charged:.5g} charged",
        passed=bool(abs(effective / charged - 1) <= room),
        sample_size=noise.count,
        statistic=effective / charged,
        false_alarm=alpha,
        power=f"{room + reach:.2%} difference",
    )
