"""What a use costs in a private step, by the counts of operations that also choose the way of its norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hushgrad.gradients.contribution import Contribution, Plan
from hushgrad.gradients.convolution import Convolution
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.factored import Factored
from hushgrad.gradients.outer import OuterProducts
from hushgrad.gradients.rows import Rows

SLICES_COST = 2
"""An operator run again on every example's slice at once costs its forward and backward a second time."""


@dataclass(frozen=True)
class GradientForm:
    """The shape of a use: T positions of a `[p, d]` weight, whose parts are None where it has no such form."""

    positions: int | None
    outputs: int | None
    inputs: int | None


@dataclass(frozen=True)
class Cost:
    """How one use of one parameter is handled, and what that takes."""

    way: str
    form: GradientForm
    ordinary_flops: int
    private_flops: int
    memory_bytes: int


def without_values(contribution: Contribution) -> tuple[Contribution, int]:
    """Return a contribution of the same shapes without memory, and the bytes that the real one holds."""
    held = 0

    def measure(operand: Tensor) -> Tensor:
        nonlocal held
        held += operand.nbytes
        return operand.to("meta")

    return contribution.map_examples(measure).wide, held


@dataclass(frozen=True, eq=False)
class LayerSetting:
    """What the cost of a use depends on beside its own shape.

    Attributes:
        whole: all uses of the parameter in one physical batch, combined.
        count: how many they are.
        held_bytes: what the use holds.
        output_values: the number of values of the operator's output gradient.
        input_needed: whether the ordinary backward forms the gradient of the operator's input as well.
    """

    whole: Contribution
    count: int
    held_bytes: int
    output_values: int
    input_needed: bool


def cost_of(part: Contribution, setting: LayerSetting, plan: Plan) -> Cost:
    """Return the cost of one use of a parameter, given as shapes."""
    whole, held = setting.whole, setting.held_bytes
    form = form_of(part)
    products = 3 if setting.input_needed else 2  # forward, weight gradient, and perhaps input gradient
    if isinstance(part, Factored):
        gemm = _gemm(part)
        if isinstance(whole, Factored):
            way, extra, kept = _of_matrix(setting, whole, form, plan)
            return Cost(way, form, products * gemm, products * gemm + extra, kept)
        extra, kept = _added_up(setting)
        return Cost("instantiate, keep", form, products * gemm, products * gemm + extra, held + kept)
    if isinstance(part, Rows):
        values = part.gradients.numel()
        way, extra, kept = ("rows", 0, 0) if isinstance(whole, Rows) else ("instantiate, keep", *_added_up(setting))
        return Cost(way, form, products * values, (products + 3) * values + extra, held + kept)
    values = _values(part)
    ordinary = products * max(values, setting.output_values)
    extra, kept = (0, 0) if setting.count == 1 else _added_up(setting)
    return Cost("per example", form, ordinary, ordinary + 4 * values + extra, held + kept)


def taken_by(whole: Contribution, plan: Plan) -> int:
    """Return what the gradients of a parameter with one use take of the budget."""
    if isinstance(whole, Factored) and whole.way(plan) == "instantiate":
        return whole.grows_by if whole.grows_by <= plan.keep_bytes else 0
    return 0


def form_of(part: Contribution) -> GradientForm:
    """Return T, p and d of a use."""
    if isinstance(part, OuterProducts):
        return GradientForm(part.left.shape[1], part.left.shape[2], part.right.shape[2])
    if isinstance(part, Convolution):
        return GradientForm(
            torch.Size(part.grad_outputs.shape[2:]).numel(), part.geometry.weight_shape[0], part.geometry.columns
        )
    if isinstance(part, Rows):
        return GradientForm(part.ids.shape[1], part.num_rows, part.gradients.shape[-1])
    return GradientForm(None, None, None)


def _gemm(part: Factored) -> int:
    form = form_of(part)
    return 2 * part.batch_size * (form.positions or 0) * (form.outputs or 0) * (form.inputs or 0)


def _of_matrix(setting: LayerSetting, whole: Factored, own: GradientForm, plan: Plan) -> tuple[str, int, int]:
    """Return the way, the operations beyond an ordinary weight gradient, and the bytes held until sums are formed."""
    form = form_of(whole)
    share = (own.positions or 0) / max(1, form.positions or 0)
    way = whole.way(plan)
    if way == "product":
        return way, 2 * whole.batch_size * ((form.outputs or 0) + (form.inputs or 0)), setting.held_bytes
    if way == "gram":
        return way, int(share * 2 * whole.batch_size * whole.gram_products(plan)), setting.held_bytes
    values, kept = whole.gradient_bytes // 4, int(share * whole.gradient_bytes)
    if whole.grows_by <= plan.keep_bytes:  # the sum is then a product of a vector with the gradients themselves
        # Formed at once, they stand in the place of the operands; of several uses they are formed at the end.
        return f"{way}, keep", int(share * 4 * values), kept if setting.count == 1 else setting.held_bytes + kept
    return f"{way}, drop", int(share * 2 * values) + _gemm(whole), setting.held_bytes


def _added_up(setting: LayerSetting) -> tuple[int, int]:
    """Return one use's share where uses are added as per-example gradients of the whole parameter."""
    values = _values(setting.whole)
    return 5 * values // setting.count, 4 * values // setting.count


def _values(part: Contribution) -> int:
    """Return B times the size of the parameter."""
    if isinstance(part, Dense):
        return part.gradients.numel()
    return part.per_example().numel()
