"""Hand-written updates with one planted bug each, and the causes that may be named for it.

Every function takes per-example gradients (a dict of tensors [n, *shape]) and returns the update. σ, C and B are those
of the correct update at the top, from which every other one is a copy with one thing wrong.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Gradients = dict[str, Tensor]
Update = Callable[[Gradients], Gradients]

SIGMA, C, B = 1.3, 0.6, 50
SHAPES = {"weight": (24, 20), "bias": (24,), "head": (24, 20)}


@dataclass(frozen=True)
class Planted:
    """A loop with a bug: `make` gives a fresh one, `causes` are the codes that name the bug rightly."""

    make: Callable[[], Update]
    causes: tuple[str, ...]
    charged: float | None = None


def norms(gradients: Gradients) -> Tensor:
    return torch.cat([value.flatten(1) for value in gradients.values()], 1).norm(dim=1)


def scale(gradients: Gradients, factors: Tensor) -> Gradients:
    """Multiply each example by its factor; a factor of 0 selects zeros."""
    return {
        name: torch.where(
            factors.reshape(-1, *[1] * (value.ndim - 1)) > 0,
            value * factors.reshape(-1, *[1] * (value.ndim - 1)),
            torch.zeros(()),
        )
        for name, value in gradients.items()
    }


def factors(gradients: Gradients, limit: float = C) -> Tensor:
    norms_B = norms(gradients)
    return torch.where(norms_B.isfinite(), (limit / norms_B.clamp(min=1e-30)).clamp(max=1.0), torch.zeros(()))


def clipped_sum(gradients: Gradients) -> Gradients:
    return {name: value.sum(0) for name, value in scale(gradients, factors(gradients)).items()}


def noise_like(value: Tensor, std: float = SIGMA * C) -> Tensor:
    return torch.normal(0.0, std, value.shape) if std > 0 else torch.zeros_like(value)


def correct(gradients: Gradients) -> Gradients:
    return {name: (total + noise_like(total)) / B for name, total in clipped_sum(gradients).items()}


PLANTED: dict[str, Planted] = {}


def planted(*causes: str, charged: float | None = None) -> Callable[[Callable[[], Update]], Callable[[], Update]]:
    def register(make: Callable[[], Update]) -> Callable[[], Update]:
        PLANTED[make.__name__] = Planted(make, causes, charged)
        return make

    return register


def from_function(name: str, update: Update, *causes: str, charged: float | None = None) -> None:
    PLANTED[name] = Planted(lambda: update, causes, charged)


def with_noise(name: str, std: Callable[[int], float], *causes: str) -> None:
    """Plant a noise level; `std` is that on the sum, by number of examples."""

    def update(gradients: Gradients) -> Gradients:
        count = next(iter(gradients.values())).shape[0]
        return {n: (s + noise_like(s, std(count))) / B for n, s in clipped_sum(gradients).items()}

    from_function(name, update, *causes)


def with_sum(name: str, make_sum: Callable[[Gradients], Gradients], *causes: str, divisor: float = B) -> None:
    """Plant a way to sum; noise and division are right."""

    def update(gradients: Gradients) -> Gradients:
        return {n: (s + noise_like(s)) / divisor for n, s in make_sum(gradients).items()}

    from_function(name, update, *causes)


# The level of the noise -------------------------------------------------------------------------------------


def noise_after_division(gradients: Gradients) -> Gradients:
    return {name: total / B + noise_like(total) for name, total in clipped_sum(gradients).items()}


from_function("noise_after_division", noise_after_division, "noise-after-division")
with_noise("noise_over_batch_on_the_sum", lambda n: SIGMA * C / B, "noise-divided-twice")
with_noise("noise_without_clip_norm", lambda n: SIGMA, "noise-without-clip-norm")
with_noise("noise_over_batch_without_clip_norm", lambda n: SIGMA / B, "noise-without-clip-norm")
with_noise("noise_with_clip_norm_squared", lambda n: SIGMA * C * C, "noise-clip-norm-squared")
with_noise("variance_as_std", lambda n: (SIGMA * C) ** 2, "variance-for-std")
with_noise("std_as_variance", lambda n: math.sqrt(SIGMA * C), "std-for-variance")
with_noise("no_noise", lambda n: 0.0, "no-noise")
with_noise("noise_over_root_of_batch", lambda n: SIGMA * C / math.sqrt(B), "noise-by-root-of-batch")
with_noise("noise_over_actual_size", lambda n: SIGMA * C / max(1, n), "noise-by-actual-size")
with_noise("noise_per_example", lambda n: SIGMA * C * math.sqrt(max(1, n)), "noise-per-example")
with_noise("half_of_the_variance", lambda n: SIGMA * C / math.sqrt(2), "half-the-variance")
with_noise("half_of_the_noise", lambda n: SIGMA * C / 2, "half-the-noise")
with_noise("noise_two_percent_low", lambda n: 0.98 * SIGMA * C, "noise-level")
with_noise("noise_one_percent_low", lambda n: 0.99 * SIGMA * C, "noise-level")
with_noise("no_noise_on_empty_draws", lambda n: SIGMA * C if n else 0.0, "empty-draw-without-noise")
with_noise("noise_by_share_of_batch", lambda n: SIGMA * C * n / B, "noise-depends-on-data", "noise-by-actual-size")


def noise_by_largest_norm(gradients: Gradients) -> Gradients:
    level = SIGMA * max(C, min(float(norms(gradients).nan_to_num(0, 0).max()) if len(norms(gradients)) else C, 10.0))
    return {n: (s + noise_like(s, level)) / B for n, s in clipped_sum(gradients).items()}


from_function("noise_by_largest_norm", noise_by_largest_norm, "noise-depends-on-data")


# The structure of the noise ---------------------------------------------------------------------------------


def noise_on_matrices_only(gradients: Gradients) -> Gradients:
    return {n: (s + (noise_like(s) if s.ndim > 1 else 0.0)) / B for n, s in clipped_sum(gradients).items()}


from_function("noise_on_matrices_only", noise_on_matrices_only, "noise-missing-for-parameters")


def noise_where_not_zero(gradients: Gradients) -> Gradients:
    return {n: (s + noise_like(s) * (s != 0)) / B for n, s in clipped_sum(gradients).items()}


from_function("noise_where_not_zero", noise_where_not_zero, "no-noise", "noise-depends-on-data")


def seed_in_every_step(gradients: Gradients) -> Gradients:
    torch.manual_seed(0)
    return correct(gradients)


from_function("seed_in_every_step", seed_in_every_step, "noise-repeated")


def own_generator_in_every_step(gradients: Gradients) -> Gradients:
    source = torch.Generator().manual_seed(7)
    return {n: (s + SIGMA * C * torch.randn(s.shape, generator=source)) / B for n, s in clipped_sum(gradients).items()}


from_function("own_generator_in_every_step", own_generator_in_every_step, "noise-repeated")


@planted("noise-repeated")
def noise_drawn_once() -> Update:
    kept: Gradients = {}

    def update(gradients: Gradients) -> Gradients:
        sums = clipped_sum(gradients)
        if not kept:
            kept.update({name: noise_like(total) for name, total in sums.items()})
        return {name: (total + kept[name]) / B for name, total in sums.items()}

    return update


@planted("noise-repeated")
def noise_and_its_mirror_image() -> Update:
    kept: list[Gradients] = []

    def update(gradients: Gradients) -> Gradients:
        sums = clipped_sum(gradients)
        if kept:
            noise = {name: -value for name, value in kept.pop().items()}
        else:
            noise = {name: noise_like(total) for name, total in sums.items()}
            kept.append(noise)
        return {name: (total + noise[name]) / B for name, total in sums.items()}

    return update


@planted("noise-repeated")
def differences_of_neighbouring_noise() -> Update:
    last: Gradients = {}

    def update(gradients: Gradients) -> Gradients:
        sums = clipped_sum(gradients)
        fresh = {name: noise_like(total) for name, total in sums.items()}
        noise = {name: (fresh[name] - last.get(name, 0.0)) / math.sqrt(2) for name in sums}
        last.update(fresh)
        return {name: (total + noise[name]) / B for name, total in sums.items()}

    return update


@planted("noise-missing-in-steps")
def noise_in_every_other_step() -> Update:
    step = itertools.count()

    def update(gradients: Gradients) -> Gradients:
        std = SIGMA * C if next(step) % 2 == 0 else 0.0
        return {name: (total + noise_like(total, std)) / B for name, total in clipped_sum(gradients).items()}

    return update


@planted("noise-level", "noise-uneven", "noise-not-gaussian", "noise-depends-on-data", "half-the-variance")
def noise_that_decays() -> Update:
    step = itertools.count()

    def update(gradients: Gradients) -> Gradients:
        std = SIGMA * C * 0.999 ** next(step)
        return {name: (total + noise_like(total, std)) / B for name, total in clipped_sum(gradients).items()}

    return update


def one_value_for_a_row(gradients: Gradients) -> Gradients:
    return {
        n: (s + (noise_like(s[..., :1]).expand(s.shape) if s.ndim > 1 else noise_like(s))) / B
        for n, s in clipped_sum(gradients).items()
    }


from_function("one_value_for_a_row", one_value_for_a_row, "noise-shared-by-coordinates")


def one_row_for_all_rows(gradients: Gradients) -> Gradients:
    return {
        n: (s + (noise_like(s[:1]).expand(s.shape) if s.ndim > 1 else noise_like(s))) / B
        for n, s in clipped_sum(gradients).items()
    }


from_function("one_row_for_all_rows", one_row_for_all_rows, "noise-shared-by-coordinates", "noise-shared-by-parameters")


def parameters_share_noise(gradients: Gradients) -> Gradients:
    sums = clipped_sum(gradients)
    shared = noise_like(torch.empty(max(total.numel() for total in sums.values())))
    return {n: (s + shared[: s.numel()].view(s.shape)) / B for n, s in sums.items()}


from_function("parameters_share_noise", parameters_share_noise, "noise-shared-by-parameters")


def uniform_noise(gradients: Gradients) -> Gradients:
    return {
        n: (s + SIGMA * C * math.sqrt(12) * (torch.rand(s.shape) - 0.5)) / B for n, s in clipped_sum(gradients).items()
    }


from_function("uniform_noise", uniform_noise, "noise-not-gaussian")


def laplace_noise(gradients: Gradients) -> Gradients:
    source = torch.distributions.Laplace(0.0, SIGMA * C / math.sqrt(2))
    return {n: (s + source.sample(s.shape)) / B for n, s in clipped_sum(gradients).items()}


from_function("laplace_noise", laplace_noise, "noise-not-gaussian")


def noise_cut_off(gradients: Gradients) -> Gradients:
    return {n: (s + noise_like(s).clamp(-3 * SIGMA * C, 3 * SIGMA * C)) / B for n, s in clipped_sum(gradients).items()}


from_function("noise_cut_off", noise_cut_off, "noise-not-gaussian")


def absolute_noise(gradients: Gradients) -> Gradients:
    return {n: (s + noise_like(s).abs()) / B for n, s in clipped_sum(gradients).items()}


from_function("absolute_noise", absolute_noise, "noise-not-centred", "noise-not-gaussian")


def noise_with_a_mean(gradients: Gradients) -> Gradients:
    return {n: (s + noise_like(s) + 0.05 * SIGMA * C) / B for n, s in clipped_sum(gradients).items()}


from_function("noise_with_a_mean", noise_with_a_mean, "noise-not-centred")


def noise_in_half_precision(gradients: Gradients) -> Gradients:
    return {n: ((s + noise_like(s)) / B).bfloat16().float() for n, s in clipped_sum(gradients).items()}


from_function("noise_in_half_precision", noise_in_half_precision, "noise-in-low-precision")


def noise_before_clipping(gradients: Gradients) -> Gradients:
    noised = {
        n: v.sum(0, keepdim=True) + noise_like(v[:1] if len(v) else v.sum(0, keepdim=True))
        for n, v in gradients.items()
    }
    return {n: total / B for n, total in clipped_sum(noised).items()}


from_function("noise_before_clipping", noise_before_clipping, "noise-clipped")


# The sum ----------------------------------------------------------------------------------------------------


def sum_of(gradients: Gradients) -> Gradients:
    return {name: value.sum(0) for name, value in gradients.items()}


def mean_of(gradients: Gradients) -> Gradients:
    return {name: value.sum(0) / max(1, len(value)) for name, value in gradients.items()}


def clip_once(total: Gradients) -> Gradients:
    return clipped_sum({name: value[None] for name, value in total.items()})


with_sum("not_clipped", sum_of, "not-clipped")
with_sum("batch_clipped_once", lambda g: clip_once(sum_of(g)), "batch-clipped")
with_sum("mean_clipped", lambda g: clip_once(mean_of(g)), "mean-clipped", divisor=1.0)
with_sum(
    "per_layer_as_flat",
    lambda g: {name: clipped_sum({name: value})[name] for name, value in g.items()},
    "per-layer-as-flat",
)
with_sum("values_clipped", lambda g: {n: v.nan_to_num(0).clamp(-C, C).sum(0) for n, v in g.items()}, "value-clipped")
with_sum(
    "norm_of_the_first_parameter",
    lambda g: {n: v.sum(0) for n, v in scale(g, factors({"weight": g["weight"]})).items()},
    "part-of-the-norm",
)
with_sum(
    "bias_not_clipped",
    lambda g: {**clipped_sum({"weight": g["weight"], "head": g["head"]}), "bias": g["bias"].sum(0)},
    "parameter-not-clipped",
)
with_sum(
    "head_not_clipped",
    lambda g: {**clipped_sum({"weight": g["weight"], "bias": g["bias"]}), "head": g["head"].sum(0)},
    "parameter-not-clipped",
)
with_sum(
    "squared_norm",
    lambda g: {n: v.sum(0) for n, v in scale(g, (C / norms(g).square().clamp(min=1e-30)).clamp(max=1)).items()},
    "squared-norm",
)
with_sum(
    "max_for_min",
    lambda g: {n: v.sum(0) for n, v in scale(g, (C / norms(g).clamp(min=1e-30)).clamp(min=1)).items()},
    "max-for-min",
)
with_sum(
    "clipped_to_twice_the_norm",
    lambda g: {n: v.sum(0) for n, v in scale(g, factors(g, 2 * C)).items()},
    "clip-norm-differs",
)
with_sum(
    "clipped_to_norm_one", lambda g: {n: v.sum(0) for n, v in scale(g, factors(g, 1.0)).items()}, "clip-norm-differs"
)
with_sum("counted_twice", lambda g: {n: 2 * v for n, v in clipped_sum(g).items()}, "counted-twice")


def in_pairs(gradients: Gradients) -> Gradients:
    grouped = {
        n: torch.cat([v[: len(v) // 2 * 2].reshape(-1, 2, *v.shape[1:]).sum(1), v[len(v) // 2 * 2 :]])
        for n, v in gradients.items()
    }
    return clipped_sum(grouped)


with_sum("micro_batches_clipped", in_pairs, "groups-clipped")


def factor_of_the_largest(gradients: Gradients) -> Gradients:
    if not len(norms(gradients)):
        return sum_of(gradients)
    common = factors(gradients).min().expand(len(norms(gradients)))
    return {name: value.sum(0) for name, value in scale(gradients, common).items()}


with_sum("factor_of_the_largest", factor_of_the_largest, "common-factor")


def median_clipping(gradients: Gradients) -> Gradients:
    if not len(norms(gradients)):
        return sum_of(gradients)
    limit = float(norms(gradients).nan_to_num(0, 0).median())
    return {name: value.sum(0) for name, value in scale(gradients, factors(gradients, limit)).items()}


with_sum("median_clipping", median_clipping, "private-clip-norm")


def root_mean_square(gradients: Gradients) -> Gradients:
    size = sum(math.prod(shape) for shape in SHAPES.values())
    found = norms(gradients) / math.sqrt(size)
    return {n: v.sum(0) for n, v in scale(gradients, (C / found.clamp(min=1e-30)).clamp(max=1)).items()}


with_sum("root_mean_square", root_mean_square, "other-norm")


def not_finite_poisons(gradients: Gradients) -> Gradients:
    by = (C / norms(gradients).clamp(min=1e-30)).clamp(max=1.0)
    return {n: (v * by.reshape(-1, *[1] * (v.ndim - 1))).sum(0) for n, v in gradients.items()}


with_sum("not_finite_poisons", not_finite_poisons, "non-finite-poisons")


def overflow_in_half_precision(gradients: Gradients) -> Gradients:
    found = torch.cat([v.flatten(1).half() for v in gradients.values()], 1).square().sum(1).sqrt().float()
    by = torch.where(found.isfinite(), (C / found.clamp(min=1e-30)).clamp(max=1.0), torch.ones(()))
    return {n: v.sum(0) for n, v in scale(gradients, by).items()}


with_sum("overflow_in_half_precision", overflow_in_half_precision, "sensitivity-exceeded", "not-clipped")


def dropped_signal(gradients: Gradients) -> Gradients:
    return {n: torch.zeros_like(v) for n, v in sum_of(gradients).items()}


with_sum("no_signal", dropped_signal, "no-signal")


# Division ---------------------------------------------------------------------------------------------------


def divided_by_actual_size(gradients: Gradients) -> Gradients:
    count = max(1, next(iter(gradients.values())).shape[0])
    return {n: (s + noise_like(s)) / count for n, s in clipped_sum(gradients).items()}


from_function("divided_by_actual_size", divided_by_actual_size, "actual-batch-size")


def mean_of_clipped(gradients: Gradients) -> Gradients:
    count = max(1, next(iter(gradients.values())).shape[0])
    return {n: s / count + noise_like(s) / B for n, s in clipped_sum(gradients).items()}


from_function("mean_of_clipped", mean_of_clipped, "actual-batch-size")


def divided_twice(gradients: Gradients) -> Gradients:
    return {n: (s / B + noise_like(s)) / B for n, s in clipped_sum(gradients).items()}


from_function("divided_twice", divided_twice, "divided-twice")


def not_divided(gradients: Gradients) -> Gradients:
    return {n: s + noise_like(s) / B for n, s in clipped_sum(gradients).items()}


from_function("not_divided", not_divided, "not-divided")


def skipped_when_empty(gradients: Gradients) -> Gradients:
    if not next(iter(gradients.values())).shape[0]:
        return sum_of(gradients)
    return correct(gradients)


from_function("skipped_when_empty", skipped_when_empty, "empty-draw-without-noise")


# What is remembered -----------------------------------------------------------------------------------------


@planted("state-kept")
def gradients_not_cleared() -> Update:
    kept: Gradients = {}

    def update(gradients: Gradients) -> Gradients:
        sums = clipped_sum(gradients)
        both = {name: total + kept.get(name, 0.0) for name, total in sums.items()}
        kept.update(sums)
        return {name: (total + noise_like(total)) / B for name, total in both.items()}

    return update


@planted("state-kept")
def momentum_before_noise() -> Update:
    kept: Gradients = {}

    def update(gradients: Gradients) -> Gradients:
        for name, total in clipped_sum(gradients).items():
            kept[name] = 0.9 * kept.get(name, torch.zeros_like(total)) + total
        return {name: (total + noise_like(total)) / B for name, total in kept.items()}

    return update


# What the accountant is given -------------------------------------------------------------------------------

for _name, _charged, _code in (
    ("sigma_over_batch_charged", SIGMA / B, "charged-sigma-over-batch"),
    ("sigma_times_clip_norm_charged", SIGMA * C, "charged-sigma-times-clip-norm"),
    ("sigma_over_clip_norm_charged", SIGMA / C, "charged-sigma-over-clip-norm"),
    ("sigma_times_batch_charged", SIGMA * B, "charged-sigma-times-batch"),
    ("std_of_the_update_charged", SIGMA * C / B, "charged-std-of-update"),
    ("variance_charged", SIGMA**2, "charged-variance"),
    ("sigma_times_root_of_batch_charged", SIGMA * math.sqrt(B), "charged-sigma-times-root-of-batch"),
    ("ten_percent_more_charged", 1.1 * SIGMA, "charged-other"),
):
    from_function(_name, correct, _code, charged=_charged)


def arguments(planted: Planted) -> dict[str, Any]:
    """Return what to call `verify_update` with, beside the update."""
    return {
        "noise_multiplier": SIGMA,
        "max_grad_norm": C,
        "expected_batch_size": B,
        "parameters": SHAPES,
        "charged_noise_multiplier": planted.charged,
    }
