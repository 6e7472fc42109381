"""Gram matrices of what convolution positions see, from the Gram matrix of the inputs."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hushgrad.gradients.contribution import Plan
from hushgrad.gradients.convolution import Convolution, Geometry, unfold
from hushgrad.gradients.windows import Axis, window_gram, window_gram_cost

KERNELS = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 3), st.integers(1, 7))


def axis_of(kernel: int, stride: int, padding: int, dilation: int, size: int) -> Axis:
    reach = dilation * (kernel - 1) + 1
    assume(reach <= size + 2 * padding)
    return Axis((size + 2 * padding - reach) // stride + 1, kernel, stride, padding, dilation)


@settings(max_examples=80, deadline=None)
@given(st.lists(KERNELS, min_size=1, max_size=3))
def test_inner_products_of_windows_are_those_of_the_unfolded_inputs(
    numbers: list[tuple[int, int, int, int, int]],
) -> None:
    axes = tuple(axis_of(*of_axis) for of_axis in numbers)
    inputs = torch.randn(2, 3, *[size for *_, size in numbers], dtype=torch.float64)
    kernel, stride, padding, dilation = (tuple(of_axis[i] for of_axis in numbers) for i in range(4))
    geometry = Geometry((1, 3, *kernel), stride, padding, dilation, 1)
    seen = unfold(inputs, geometry, torch.Size(axis.positions for axis in axes))
    torch.testing.assert_close(window_gram(inputs, axes), seen @ seen.mT)


def test_the_cost_of_windows_is_what_is_computed() -> None:
    """One axis: residues 0 and 1 of a kernel of 3 with stride 2, seen 6 and 5 inputs long."""
    axis = Axis(positions=5, kernel=3, stride=2, padding=0, dilation=1)
    assert axis.phases == {0: [0, 1], 1: [0]}
    products, moved = window_gram_cost(7, (axis,))
    assert products == 7 * (6**2 + 5**2)
    assert moved == 2 * 5**2 + 5**2


def test_a_convolution_whose_gram_terms_cancel_is_measured_from_its_gradient() -> None:
    """Two positions see the same inputs with opposite gradients, but for a little: the Gram sum has no digit left."""
    geometry = Geometry((3, 2, 1), (1,), (0,), (1,), 1)
    inputs, grad_outputs = torch.randn(2, 2, 2), torch.randn(2, 3, 2)
    inputs[1, :, 1], grad_outputs[1, :, 1] = inputs[1, :, 0] * (1 + 3e-4), -grad_outputs[1, :, 0]
    contribution = Convolution(inputs, grad_outputs, geometry)
    norms, _ = contribution.measure(Plan("gram"))
    exact = Convolution(inputs.double(), grad_outputs.double(), geometry).per_example().flatten(1).square().sum(1)
    torch.testing.assert_close(norms.double(), exact, rtol=1e-3, atol=0)


def test_windows_and_unfolding_choose_by_the_machine_and_agree() -> None:
    geometry = Geometry((5, 4, 3, 3), (1, 1), (1, 1), (1, 1), 1)
    inputs = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    outputs = F.conv2d(inputs, torch.randn(5, 4, 3, 3, dtype=torch.float64), padding=1)
    contribution, plan = Convolution(inputs, torch.randn_like(outputs), geometry), Plan("gram")
    found = []
    for moved, unfolded in ((0.0, 1e6), (1e6, 0.0)):
        machine = replace(plan.machine, moved=moved, unfolded=unfolded)
        found.append(contribution.measure(replace(plan, machine=machine))[0])
        assert contribution.gram_products(replace(plan, machine=machine)) > 0
    torch.testing.assert_close(found[0], found[1])
