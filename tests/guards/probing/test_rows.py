"""A batch with an example altered, and whether the others' rows noticed."""

from __future__ import annotations

import torch

from hushgrad.guards.probing.rows import Batch, batch_axes, grown_axes, others_differ, rows_agree, split_examples


def batch(size: int = 5) -> Batch:
    value = torch.arange(size * 3.0).reshape(size, 3)
    return Batch(value, batch_axes(value, size)[0], size)


def test_an_example_is_left_out_or_kept_alone() -> None:
    whole = batch()
    assert torch.equal(whole.without(1), whole.value[[0, 2, 3, 4]])
    assert torch.equal(whole.only([3, 1]), whole.value[[3, 1]])
    assert whole.largest() == 4


def test_exchanged_and_poisoned_examples_leave_the_others_bit_for_bit() -> None:
    whole = batch()
    for altered in (whole.exchanged([1, 2], away=True), whole.exchanged([1, 2], away=False), whole.poisoned([1, 2])):
        assert torch.equal(altered[[0, 3, 4]], whole.value[[0, 3, 4]])
        assert not torch.equal(altered[[1, 2]], whole.value[[1, 2]])
    assert bool(whole.poisoned([1])[1].isnan().all())
    assert torch.equal(whole.value, batch().value)


def test_halves_are_two_parts_of_all_examples() -> None:
    for size in range(2, 9):
        some, rest = split_examples(size)
        assert some
        assert rest
        assert sorted(some + rest) == list(range(size))


def test_the_axis_that_grew_is_the_batchs() -> None:
    assert grown_axes(torch.zeros(7, 4), torch.zeros(7, 3), 4) == {(): 1}
    assert grown_axes(torch.zeros(8, 2), torch.zeros(6, 2), 4) == {(): 0}  # two positions folded into it


def test_a_difference_in_the_rows_of_others_is_seen_and_rounding_is_not() -> None:
    base = torch.randn(4, 3)
    changed, axes, others = base.clone(), {(): 0}, ([0, 1, 3], [0, 1, 3])
    changed[2] += 1
    assert not others_differ(base, changed, axes, others, (4, 4))
    changed[3, 0] += 0.1
    assert others_differ(base, changed, axes, others, (4, 4))
    assert rows_agree(base, base * (1 + 1e-7))
    assert rows_agree(torch.tensor([[float("nan")]]), torch.tensor([[float("nan")]]))


def test_a_small_value_that_other_kernels_round_otherwise_is_rounding_beside_large_ones() -> None:
    """As the last logits of a decoder in bfloat16 came out of its captured forward and of a plain one."""
    base = torch.tensor([[5.44, -0.152], [5.16, 0.03]], dtype=torch.bfloat16)
    other = torch.tensor([[5.47, -0.136], [5.19, 0.03]], dtype=torch.bfloat16)
    axes, everyone = {(): 0}, ([0, 1], [0, 1])
    assert others_differ(base, other, axes, everyone, (2, 2))
    assert not others_differ(base, other, axes, everyone, (2, 2), same_kernels=False)
    assert others_differ(base, base.neg(), axes, everyone, (2, 2), same_kernels=False)


def test_float32_that_a_model_computed_in_bfloat16_is_compared_in_its_precision() -> None:
    """Frameworks convert what a model under autocast returns; whole numbers, and finer values, stay exact."""
    exact = torch.linspace(-1.0, 1.0, 60).reshape(2, 30)
    narrow = exact.bfloat16().float()
    other = (exact * 1.004).bfloat16().float()
    assert not torch.equal(narrow, other)
    assert rows_agree(narrow, other, same_kernels=False)
    assert not rows_agree(narrow, narrow.roll(1, 1), same_kernels=False)
    assert not rows_agree(exact, exact * 1.004, same_kernels=False)
    counts = torch.arange(60.0).reshape(2, 30)
    assert not rows_agree(counts, counts + 1, same_kernels=False)


def test_rounding_of_rows_that_values_put_together_is_allowed_by_column_so_that_a_large_head_hides_nothing() -> None:
    """Outputs `[B, T, columns]` of which the last column is a head of 1e6."""
    one = torch.ones(3, 8, 3)
    one[:, 0, 0], one[..., 2] = 1e-4, 1e6

    def differs(change: float, regrouped: bool) -> bool:
        two = one.clone()
        two[1, 0, 0] += change
        return others_differ(one, two, {(): 0}, ([1], [1]), (3, 3), regrouped=regrouped)

    assert differs(3e-7, regrouped=False)
    assert not differs(3e-7, regrouped=True)
    assert differs(1e-4, regrouped=True)
