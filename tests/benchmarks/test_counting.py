"""Operations and live bytes are counted exactly, and what cannot be counted is an error."""

import pytest
import torch
from benchmarks.contestants import CONTESTANTS
from benchmarks.counting import FORMULAS, LiveBytes, cost, flops, is_arithmetic
from benchmarks.workloads import SMALL
from torch.utils.flop_counter import FlopCounterMode

pytestmark = pytest.mark.filterwarnings("ignore::hushgrad.errors.HushgradWarning")


@pytest.mark.parametrize("workload", SMALL)
def test_an_ordinary_step_counts_as_torch_counts_it(workload):
    runner = CONTESTANTS["ordinary"].build(SMALL[workload], 0.0)
    batch = runner.prepare()
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        runner.step(batch)
    assert flops(lambda: runner.step(batch)) == counter.get_total_flops() > 0


def test_matrix_and_vector_products_count_a_multiplication_and_an_addition_for_each_term():
    a, b, v = torch.ones(3, 4), torch.ones(4, 5), torch.ones(4)
    assert flops(lambda: a @ b) == 2 * 3 * 4 * 5
    assert flops(lambda: a @ v) == 2 * 3 * 4
    assert flops(lambda: v @ v) == 2 * 4
    assert flops(lambda: torch.addmv(torch.ones(3), a, v)) == 2 * 3 * 4
    assert flops(lambda: torch.einsum("ij,jk->ik", a, b)) == 2 * 3 * 4 * 5
    assert flops(lambda: a * a + a) == 0


def test_a_grouped_weight_gradient_counts_as_many_operations_as_its_groups_one_by_one():
    x, g, w = torch.ones(1, 6, 5, 5), torch.ones(1, 4, 3, 3), torch.ones(4, 3, 3, 3)

    def backward(inputs, grad_outputs, weight, groups):
        torch.ops.aten.convolution_backward(
            grad_outputs, inputs, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], groups, [False, True, False]
        )

    together = flops(lambda: backward(x, g, w, 2))
    assert together == 2 * flops(lambda: backward(x[:, :3], g[:, :2], w[:2], 1)) == 2 * 4 * 3 * 9 * 9


def test_attention_counts_two_products_forward_and_five_backward():
    q = torch.ones(2, 3, 8, 4, requires_grad=True)
    product = 2 * 2 * 3 * 8 * 8 * 4
    assert flops(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)) == 2 * product
    out = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert flops(lambda: out.sum().backward()) == 5 * product


def test_an_operation_without_a_formula_is_an_error_and_not_nothing():
    with pytest.raises(LookupError, match="cdist"):
        flops(lambda: torch.cdist(torch.ones(3, 2), torch.ones(3, 2)))


@pytest.mark.parametrize(
    "operator",
    ["mkldnn_convolution", "addmm", "_int_mm", "addmv_", "mkldnn_rnn_layer", "_conv_depthwise2d", "_trilinear"],
)
def test_operators_that_multiply_and_add_are_known_by_their_names(operator):
    assert is_arithmetic(f"aten.{operator}")


@pytest.mark.parametrize(
    "operator", ["add", "lgamma", "hamming_window", "upsample_bilinear2d", "_convert_indices", "norm"]
)
def test_other_operators_are_not(operator):
    assert not is_arithmetic(f"aten.{operator}")


def test_live_bytes_are_those_of_storages_that_something_still_holds():
    with LiveBytes() as live:
        first = torch.zeros(100)
        view = first[10:]  # no memory of its own
        second = torch.zeros(50)
        assert live.now == 600
        del first
        assert live.now == 600
        del view
        assert live.now == 200
        del second
    assert (live.now, live.peak) == (0, 600)


def test_memory_that_a_graph_keeps_for_its_backward_is_live():
    x = torch.zeros(100, requires_grad=True)
    with LiveBytes() as live:
        y = x.exp().sin().sum()  # exp keeps its result, sin its input, which is the same
        assert live.now == 400 + 400 + 4
        y.backward()
        del y
        assert x.grad is not None
        assert live.now == 400 + 400


@pytest.mark.parametrize("contestant", ["ordinary", "hushgrad"])
def test_a_cost_is_the_same_every_time(contestant):
    assert cost(SMALL["encoder"], contestant) == cost(SMALL["encoder"], contestant)
