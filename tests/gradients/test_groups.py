"""Several examples as one: the gradients of a user's records, joined and clipped once, for every kind of operator."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from cases import CASES, losses
from measure import captured, clipped, distance, norm_of, reference
from torch import Tensor

from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import PrivacyUnitError, UnsupportedModelError
from hushgrad.gradients.contribution import Contribution, Plan
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.groups import Groups
from hushgrad.gradients.narrow import Narrow
from hushgrad.gradients.oracle import clipped_sum_of
from hushgrad.gradients.outer import OuterProducts
from hushgrad.gradients.rows import Rows
from hushgrad.gradients.tied import Tied

OWNERS = {"unequal": [4, 4, 4, 0, 7, 7, 2, 2], "equal": [1, 1, 3, 3, 0, 0, 2, 2], "single": [3, 1, 2, 0, 7, 6, 5, 4]}


def groups(owners: list[int], *, averages: bool = False) -> Groups:
    return Groups.of(owners, averages=averages, device=torch.device("cpu"))


def joined(per_example: dict[str, Tensor], found: Groups) -> dict[str, Tensor]:
    """The gradients of groups from those of examples, one group at a time."""
    ends = list(accumulate(found.sizes))
    parts = [slice(end - size, end) for end, size in zip(ends, found.sizes, strict=True)]
    return {
        name: torch.stack([value[part].mean(0) if found.averages else value[part].sum(0) for part in parts])
        for name, value in per_example.items()
    }


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", CASES)
def test_a_users_records_are_clipped_once_as_a_whole_by_every_operator(name: str) -> None:
    """To 1e-9 in float64: norms of sums hold the terms between the records of a user."""
    case = CASES[name]
    model, batch = case.model().double(), case.batch(8, torch.float64)
    per_example = reference(model, batch, losses)
    for kind, averages in (("unequal", True), ("equal", False)):
        found = groups(OWNERS[kind], averages=averages)
        own = joined(per_example, found)
        max_grad_norm = float(norm_of(own).median())
        wanted = clipped_sum_of(own, FlatClipping(max_grad_norm))
        uses = {n: [part.of_groups(found) for part in parts] for n, parts in captured(model, batch, losses).items()}
        assert all(part.batch_size == found.count for parts in uses.values() for part in parts)
        assert distance(clipped(uses, max_grad_norm), wanted) <= 1e-9


def contribution(kind: str, examples: int = 8) -> Contribution:
    torch.manual_seed(2)
    if kind == "dense":
        return Dense(torch.randn(examples, 3, 4))
    if kind == "rows":
        return Rows(torch.randint(0, 3, (examples, 5)), torch.randn(examples, 5, 4), 3)
    left, right = torch.randn(examples, 5, 3), torch.randn(examples, 5, 4)
    return Narrow(OuterProducts(left.bfloat16(), right.bfloat16())) if kind == "narrow" else OuterProducts(left, right)


@pytest.mark.parametrize("averages", [False, True], ids=["sum", "mean"])
@pytest.mark.parametrize("owners", OWNERS)
@pytest.mark.parametrize("kind", ["dense", "rows", "outer", "narrow"])
@pytest.mark.parametrize("way", ["gram", "instantiate"])
def test_groups_are_the_sums_of_their_examples(kind: str, owners: str, averages: bool, way: str) -> None:
    """To 1e-6, and so are their norms and weighted sums, in each way."""
    part, found = contribution(kind), groups(OWNERS[owners], averages=averages)
    expected = joined({"p": part.per_example().double()}, found)["p"]
    own = part.of_groups(found)
    assert own.batch_size == found.count
    torch.testing.assert_close(own.per_example().double(), expected, rtol=1e-6, atol=1e-6)
    squares, again = own.measure(Plan(way=way))  # type: ignore[arg-type]
    torch.testing.assert_close(squares, expected.flatten(1).square().sum(1), rtol=1e-5, atol=1e-6)
    weights = torch.rand(found.count)
    summed = torch.einsum("b,bpd->pd", weights.double(), expected)
    torch.testing.assert_close(again.weighted_sum(weights).double(), summed, rtol=1e-5, atol=1e-5)


def test_one_user_with_many_records_beside_many_with_one_is_formed_and_not_padded() -> None:
    """Blocks of zeros would hold 40 · 41 rows for 80."""
    part = OuterProducts(torch.randn(80, 1, 3), torch.randn(80, 1, 4))
    found = groups([0] * 41 + list(range(1, 40)), averages=False)
    own = part.of_groups(found)
    assert isinstance(own, Dense)
    expected = joined({"p": part.per_example()}, found)["p"]
    torch.testing.assert_close(own.per_example(), expected, rtol=1e-5, atol=1e-5)
    few = groups([0, 0, 1], averages=False)
    assert isinstance(OuterProducts(torch.randn(3, 1, 30), torch.randn(3, 1, 40)).of_groups(few), OuterProducts)


@pytest.mark.parametrize("kind", ["dense", "outer", "rows"])
@pytest.mark.parametrize("close", [1e-1, 1e-3, 1e-5])
def test_records_that_all_but_cancel_add_no_more_than_the_clip_norm(kind: str, close: float) -> None:
    """A user whose second record takes back what the first one adds: what is measured is what is added."""
    doubled = contribution(kind, 4).map_examples(lambda operand: operand[[0, 0, 2, 2]])
    signs = torch.tensor([1.0, -(1 - close), 1.0, -(1 - close)])
    last = doubled.operands[-1] * signs.reshape(-1, *[1] * (doubled.operands[-1].ndim - 1))
    changed: Contribution = (
        Dense(last) if kind == "dense" else OuterProducts(doubled.operands[0], last) if kind == "outer"
        else Rows(doubled.operands[0], last, 3)
    )  # fmt: skip
    own = changed.of_groups(groups([0, 0, 1, 1]))
    limit = 1e-3 * close
    found = clipped({"p": [own]}, limit)["p"].double()
    assert float(found.norm()) <= 2 * limit * (1 + 1e-5)
    alone = clipped({"p": [own.alone(0)]}, limit)["p"].double()
    assert float(alone.norm()) <= limit * (1 + 1e-5)
    assert float(alone.norm()) >= 0.5 * limit


def test_another_number_of_examples_than_were_handed_out_is_refused() -> None:
    for kind in ("dense", "rows", "outer", "narrow"):
        with pytest.raises(PrivacyUnitError, match="it is not known whose they are"):
            contribution(kind, 7).of_groups(groups(OWNERS["unequal"]))


def test_what_is_made_of_recorded_uses_is_not_grouped() -> None:
    rows, outer = contribution("rows"), contribution("outer")
    assert isinstance(rows, Rows)
    assert isinstance(outer, OuterProducts)
    with pytest.raises(UnsupportedModelError, match="Tied: gradients of this kind cannot be joined by user"):
        Tied(rows, outer).of_groups(groups(OWNERS["equal"]))


def test_a_record_that_is_not_finite_takes_its_user_out_and_nobody_else() -> None:
    part = contribution("outer")
    assert isinstance(part, OuterProducts)
    part.left[1] = torch.nan
    found = groups(OWNERS["unequal"])
    with_it = clipped({"p": [part.of_groups(found)]}, 1.0)["p"]
    rest = OuterProducts(part.left[3:], part.right[3:]).of_groups(groups(OWNERS["unequal"][3:]))
    torch.testing.assert_close(with_it, clipped({"p": [rest]}, 1.0)["p"])
