"""What arithmetic, criteria and reductions make of values of single examples, and of sums over them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from reading import B, faults, is_unread, read, rows, terms
from torch import Tensor

Y = torch.tensor([0, 1, 2, 0])
T = torch.rand(B, 3)

Loss = Callable[[Tensor], Tensor]

MEANS: dict[str, Loss] = {
    "of values": lambda o: o.tanh().mean(),
    "of losses": lambda o: o.square().sum(1).mean(),
    "of a criterion": lambda o: F.mse_loss(o, T),
    "of a criterion for rows": lambda o: F.multi_margin_loss(o, Y),
    "of two, added": lambda o: F.mse_loss(o, T) + o.abs().mean(),
    "less a constant": lambda o: -(1 - o.mean()),
}
SUMS: dict[str, Loss] = {
    "of values": lambda o: o.exp().sum(),
    "of a criterion": lambda o: F.l1_loss(o, T, reduction="sum"),
    "of chosen classes": lambda o: F.cross_entropy(o, Y, reduction="sum"),
    "in two steps": lambda o: o.sum(1).sum(),
}


@pytest.mark.parametrize(("kind", "losses"), [("mean", MEANS), ("sum", SUMS)])
def test_a_mean_is_read_as_a_mean_and_a_sum_as_a_sum(kind: str, losses: dict[str, Loss]) -> None:
    for name, loss in losses.items():
        found = terms(loss)
        assert {(term.kind, term.is_plain, term.counts) for term in found} == {(kind, True, False)}, name


def test_a_mean_of_chosen_classes_counts_them_and_may_weigh_them() -> None:
    (plain,), (weighted,) = (
        terms(lambda o, weight=weight: F.cross_entropy(o, Y, weight=weight)) for weight in (None, torch.rand(3))
    )
    assert (plain.kind, plain.counts, plain.is_weighted) == ("mean", True, False)
    assert weighted.is_weighted


def test_what_a_mean_divides_by_is_noted_for_each_example() -> None:
    assert read(lambda o: o.mean()).divisors == [3]
    assert read(lambda o: o.mean(1).sum()).divisors == [3]
    assert read(lambda o: o.sum(1).mean()).divisors == [1]


def test_a_factor_that_the_graph_does_not_show_makes_a_reduction_no_plain_one() -> None:
    assert not terms(lambda o: o.mean() * torch.rand(()))[0].is_plain
    assert not terms(lambda o: o.sum() / 7)[0].is_plain


MIXING: dict[str, tuple[Loss, str]] = {
    "the root of a mean": (lambda o: o.square().mean().sqrt(), "sqrt of a sum or mean"),
    "a product of two means": (lambda o: o.mean() * o.sum(), "mul of a sum or mean"),
    "a quotient of two sums": (lambda o: o.sum() / o.exp().sum(), "div of a sum or mean"),
    "a spread": (lambda o: o.std(0).sum(), "Std over the batch"),
    "the largest": (lambda o: o.amax(), "Amax over the batch"),
    "a softmax over the batch": (lambda o: o.log_softmax(0).sum(), "LogSoftmax over the batch"),
    "a norm of the batch": (lambda o: o.norm(), "LinalgVectorNorm over the batch"),
    "a criterion of a mean": (lambda o: F.mse_loss(o.mean(0), T[0]), "criterion of a sum or mean"),
    "every pair": (lambda o: (o[:, None] - o[None]).abs().sum(), "set against every other"),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_depends_on_the_batch_as_a_whole_is_a_fault_by_its_name(name: str) -> None:
    loss, what = MIXING[name]
    found = faults(loss)
    assert found
    assert what in found[0]


def test_an_examples_own_value_beside_a_sum_over_all_is_no_plain_reduction() -> None:
    reading = read(lambda o: (o - o.mean()).sum())
    assert [term.kind for term in reading.value.terms] == ["other"]  # type: ignore[union-attr]


def test_values_stay_on_the_axis_of_their_examples() -> None:
    assert rows(lambda o: o.exp()).axis == 0
    assert rows(lambda o: o + torch.rand(2, 1, 1)).axis == 1
    assert rows(lambda o: o.sum(0), 2, B, 3).axis == 0
    assert rows(lambda o: o.softmax(1)).axis == 0
    assert rows(lambda o: F.cross_entropy(o, Y, reduction="none")).axis == 0


def test_broadcasting_to_the_length_of_the_batch_is_noted_where_it_is_reduced() -> None:
    assert read(lambda o: (o - torch.rand(B)).abs().mean(), B, 1).broadcasts == [(B, (B, B))]
    assert read(lambda o: (o - torch.rand(B, 1)).abs().mean(), B, 1).broadcasts == []


def test_how_values_depend_on_the_output_is_known_while_they_are_only_scaled_or_cut_out() -> None:
    laws = {
        "classes": lambda o: o.log_softmax(1),
        "square": lambda o: F.mse_loss(o, T, reduction="none") * 2,
        "absolute": lambda o: (o - 1).abs(),
        "bernoulli": lambda o: F.binary_cross_entropy_with_logits(o, T, reduction="none"),
    }
    for kind, values in laws.items():
        law = rows(values).law
        assert law is not None
        assert law.kind == kind
        assert rows(lambda o, values=values: values(o).exp()).law is None


def test_a_mean_over_a_number_of_values_that_is_no_multiple_of_the_batch_is_uneven() -> None:
    assert "mean over 9 values of a batch of 4" in faults(lambda o: o[:3].mean())[0]
    assert is_unread(lambda o: o[:3].sum() + o[:3].mean() + o[3:].mean())  # together they hold all examples
