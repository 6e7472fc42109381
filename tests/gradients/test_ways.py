"""Every way of computing norms and sums gives the same numbers."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, losses
from hypothesis import given, settings
from hypothesis import strategies as st
from measure import captured, clipped, distance, norm_of, reference
from torch import Tensor

from hushgrad.clipping.flat import FlatClipping
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.gradients.combine import combine
from hushgrad.gradients.contribution import Contribution, Plan, Way, chunks_of_examples
from hushgrad.gradients.convolution import Convolution, Geometry
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.oracle import clipped_sum_of
from hushgrad.gradients.outer import OuterProducts
from hushgrad.gradients.places import Places
from hushgrad.gradients.rows import Rows

WAYS: list[Way | None] = [None, "product", "gram", "instantiate"]
FORMS = ["mlp", "linear, one middle dimension", "linear, short and wide", "conv1d", "conv2d", "conv2d groups", "conv3d"]
FORMS += ["embedding", "tied head", "conv called twice", "called three times", "matmul", "attention"]


@pytest.mark.parametrize("keep_bytes", [0, 700, 1 << 28])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FORMS)
def test_every_way_and_every_memory_budget_gives_the_same_sums(name: str, way: Way | None, keep_bytes: int) -> None:
    case = CASES[name]
    model, batch = case.model().double(), case.batch(6, torch.float64)
    per_example = reference(model, batch, losses)
    max_grad_norm = float(norm_of(per_example).median())
    found = clipped(captured(model, batch, losses), max_grad_norm, Plan(way, keep_bytes))
    assert distance(found, clipped_sum_of(per_example, FlatClipping(max_grad_norm))) <= 1e-10


def examples_of(contribution: Contribution) -> Tensor:
    return contribution.per_example()


def assert_consistent(contribution: Contribution, plan: Plan) -> None:
    """Norms and weighted sums of a contribution agree with its per-example gradients."""
    explicit = contribution.per_example()
    norms, measured = contribution.measure(plan)
    torch.testing.assert_close(norms, explicit.flatten(1).square().sum(1), rtol=1e-9, atol=1e-9)
    weights = torch.rand(contribution.batch_size, dtype=explicit.dtype)
    wanted = torch.tensordot(weights, explicit, 1)
    for part in (contribution, measured):
        torch.testing.assert_close(part.weighted_sum(weights), wanted, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 5)] * 4),
    way=st.sampled_from(WAYS),
    keep_bytes=st.sampled_from([0, 300, 1 << 20]),
)
def test_norms_and_sums_of_outer_products_are_those_of_their_gradients(
    sizes: tuple[int, int, int, int], way: Way | None, keep_bytes: int
) -> None:
    batch, positions, p, d = sizes
    left = torch.randn(batch, positions, p, dtype=torch.float64)
    right = torch.randn(batch, positions, d, dtype=torch.float64)
    contribution = OuterProducts(left, right)
    assert_consistent(contribution, Plan(way, keep_bytes))
    assert_consistent(contribution.transposed, Plan(way, keep_bytes))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3)),
    repeats=st.integers(1, 3),
)
def test_norms_and_sums_of_rows_are_those_of_their_gradients(sizes: tuple[int, int, int, int], repeats: int) -> None:
    batch, positions, rows, width = sizes
    ids = torch.randint(0, rows, (batch, positions))
    parts = [Rows(ids, torch.randn(batch, positions, width, dtype=torch.float64), rows) for _ in range(repeats)]
    joined = combine(parts)
    assert_consistent(joined, Plan())
    torch.testing.assert_close(joined.per_example(), torch.stack([part.per_example() for part in parts]).sum(0))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.lists(st.integers(1, 3), min_size=1, max_size=3)),
    number=st.integers(1, 7),
    repeats=st.integers(1, 3),
)
def test_norms_and_sums_of_places_are_those_of_their_gradients(
    sizes: tuple[int, int, list[int]], number: int, repeats: int
) -> None:
    batch, positions, shape = sizes
    dims = tuple(dim for dim in range(len(shape)) if number >> dim & 1) or (0,)
    rest = [size for dim, size in enumerate(shape) if dim not in dims]
    table = torch.arange(torch.Size(shape).numel()).view(shape)
    rows = torch.movedim(table, dims, tuple(range(len(dims)))).reshape(-1, torch.Size(rest).numel())
    ids = torch.randint(0, len(rows), (batch, positions))
    parts, wanted = [], torch.zeros(batch, table.numel(), dtype=torch.float64)
    for _ in range(repeats):
        gradients = torch.randn(batch, positions, rows.shape[1], dtype=torch.float64)
        parts.append(Places(Rows(ids, gradients, len(rows)), tuple(shape), dims))
        wanted.scatter_add_(1, rows[ids].flatten(1), gradients.flatten(1))
    joined = combine(parts)
    assert isinstance(joined, Places)
    assert_consistent(joined, Plan())
    torch.testing.assert_close(joined.per_example(), wanted.view(batch, *shape))


@settings(max_examples=60, deadline=None)
@given(
    space=st.integers(1, 3),
    numbers=st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.integers(1, 3), st.integers(1, 2)),
    groups=st.sampled_from([1, 2]),
    way=st.sampled_from(WAYS),
    keep_bytes=st.sampled_from([0, 300, 1 << 20]),
)
def test_norms_and_sums_of_convolutions_are_those_of_their_gradients(
    space: int, numbers: tuple[int, int, int, int, int], groups: int, way: Way | None, keep_bytes: int
) -> None:
    stride, padding, dilation, kernel, batch = numbers
    size = 6
    geometry = Geometry(
        (4, 4 // groups, *[kernel] * space), (stride,) * space, (padding,) * space, (dilation,) * space, groups
    )
    out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    inputs = torch.randn(batch, 4, *[size] * space, dtype=torch.float64)
    grad_outputs = torch.randn(batch, 4, *[out] * space, dtype=torch.float64)
    contribution = Convolution(inputs, grad_outputs, geometry)
    one_by_one = [geometry.weight_gradient(inputs[i : i + 1], grad_outputs[i : i + 1]) for i in range(batch)]
    torch.testing.assert_close(contribution.per_example(), torch.stack(one_by_one))
    if groups == 1:
        torch.testing.assert_close(contribution.unfolded().per_example(), contribution.per_example().flatten(2))
    assert_consistent(contribution, Plan(way, keep_bytes))


def test_uses_of_different_forms_add_up_example_by_example() -> None:
    outer = OuterProducts(torch.randn(3, 2, 5), torch.randn(3, 2, 4))
    rows = Rows(torch.randint(0, 5, (3, 6)), torch.randn(3, 6, 4), 5)
    dense = Dense(torch.randn(3, 5, 4))
    total = combine([outer, rows, dense, outer])
    wanted = outer.per_example() * 2 + rows.per_example() + dense.per_example()
    torch.testing.assert_close(total.per_example(), wanted)


def test_a_gram_norm_that_cancels_is_computed_again_from_the_gradient() -> None:
    """Two positions that all but cancel: in float32 the Gram sum is 0 or negative, the true norm is not."""
    left = torch.randn(4, 2, 30)
    right = torch.randn(4, 2, 30)
    left[1, 1], right[1, 1] = -left[1, 0], right[1, 0] * (1 + 3e-4)
    contribution = OuterProducts(left, right)
    norms, _ = contribution.measure(Plan(way="gram"))
    exact = OuterProducts(left.double(), right.double()).per_example().flatten(1).square().sum(1)
    torch.testing.assert_close(norms.double(), exact, rtol=1e-3, atol=0)
    limit = float(exact[1].sqrt()) / 2
    found = clipped_sums({"w": [contribution]}, clip=FlatClipping(limit), plan=Plan(way="gram"))
    explicit = OuterProducts(left.double(), right.double()).per_example()
    assert distance(found, clipped_sum_of({"w": explicit}, FlatClipping(limit))) <= 1e-4


@pytest.mark.parametrize("way", WAYS)
def test_a_norm_that_overflows_float32_contributes_what_float64_says(way: Way | None) -> None:
    """Guarantee: a finite gradient contributes what its factor allows, also where its square overflows float32."""
    left, right = torch.randn(5, 3, 4), torch.randn(5, 3, 6)
    left[2] *= 1e15
    right[2] *= 1e15
    left[4] *= 1e25
    bias = torch.randn(5, 4)
    bias[1] *= 1e30
    uses = {"w": [OuterProducts(left, right)], "b": [Dense(bias)]}
    found = clipped_sums(uses, clip=FlatClipping(2.0), plan=Plan(way=way))
    explicit = {"w": OuterProducts(left.double(), right.double()).per_example(), "b": bias.double()}
    assert distance(found, clipped_sum_of(explicit, FlatClipping(2.0))) <= 1e-5


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", ["left", "right", "rows", "dense", "inputs"])
def test_an_example_that_is_not_finite_contributes_exactly_zero(broken: float, place: str) -> None:
    """Guarantee: an example whose gradient is not finite contributes exactly 0 to every parameter."""
    operands = {
        "left": torch.randn(4, 2, 3),
        "right": torch.randn(4, 2, 3),
        "rows": torch.randn(4, 2, 3),
        "dense": torch.randn(4, 3),
        "inputs": torch.randn(4, 2, 5),
    }
    operands[place][1].view(-1)[0] = broken
    geometry = Geometry((3, 2, 2), (1,), (0,), (1,), 1)

    def sums(chosen: list[int]) -> dict[str, Tensor]:
        part = {name: value[chosen] for name, value in operands.items()}
        uses = {
            "outer": [OuterProducts(part["left"], part["right"])],
            "rows": [Rows(torch.tensor([[0, 1], [1, 1], [2, 0], [0, 0]])[chosen], part["rows"], 3)],
            "dense": [Dense(part["dense"])],
            "conv": [Convolution(part["inputs"], torch.ones(len(chosen), 3, 4), geometry)],
        }
        return clipped_sums(uses, clip=FlatClipping(1.5))

    assert distance(sums([0, 1, 2, 3]), sums([0, 2, 3])) <= 1e-6


def test_a_scale_undoes_the_division_of_a_mean_loss_before_clipping() -> None:
    gradients = torch.randn(6, 10)
    whole = clipped_sums({"p": [Dense(gradients)]}, clip=FlatClipping(3.0))
    halved = clipped_sums({"p": [Dense(gradients / 6)]}, clip=FlatClipping(3.0), scale=6.0)
    assert distance(halved, whole) <= 1e-6


def test_sixteen_bit_gradients_are_measured_and_summed_in_float32() -> None:
    case = CASES["mlp"]
    model, batch = case.model().bfloat16(), case.batch(5, torch.bfloat16)
    uses = captured(model, batch, losses)
    assert all(value.dtype == torch.float32 for value in clipped(uses, 1.0).values())


def test_no_uses_give_no_sums() -> None:
    assert clipped_sums({}, clip=FlatClipping(1.0)) == {}
    assert clipped_sums({"p": []}, clip=FlatClipping(1.0)) == {}


@given(batch=st.integers(1, 50), size=st.integers(0, 1000), budget=st.integers(0, 5000))
def test_chunks_cover_every_example_once_and_fit_the_budget(batch: int, size: int, budget: int) -> None:
    chunks = chunks_of_examples(batch, size, budget)
    assert [i for chunk in chunks for i in range(batch)[chunk]] == list(range(batch))
    assert all(chunk.stop - chunk.start == 1 or (chunk.stop - chunk.start) * size <= budget for chunk in chunks)


@pytest.mark.parametrize("positions", [1, 2, 64])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("way", [None, "gram"])
def test_a_gradient_of_a_tiny_and_a_huge_factor_is_clipped(positions: int, count: int, way: Way | None) -> None:
    """The square of one factor is 0 in float32, that of the other 1e36; their product is a gradient of about 1e-5."""
    torch.manual_seed(positions)
    left, right = torch.rand(2, positions, 3) * 1e-23, torch.rand(2, positions, 4) * 1.7e18
    parts = {str(number): [OuterProducts(left, right)] for number in range(count)}
    bound = 1e-6
    sums = clipped_sums(parts, clip=FlatClipping(bound), plan=Plan(way=way))
    norm = torch.sqrt(sum(total.double().square().sum() for total in sums.values()))
    assert bound * 0.5 <= norm <= 2 * bound * (1 + 1e-5)
