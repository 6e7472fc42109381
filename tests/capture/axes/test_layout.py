"""What inputs hold: told by shapes and values, by what they were before, or not at all."""

from __future__ import annotations

import torch
from torch import Tensor

from hushgrad.capture.axes.layout import Layout, Path, Role, layout_of, mark_candidates, owners_of

COUNTS = [2, 0, 3]
X = torch.randn(5, 4)
OWNERS = torch.tensor([0, 0, 2, 2, 2])
STARTS = torch.tensor([0, 2, 2])
BOUNDS = torch.tensor([0, 2, 2, 5])
EDGES = torch.tensor([[0, 1, 2, 4], [1, 0, 3, 2]])
LABELS = torch.tensor([0, 0, 1])


def found(*tensors: Tensor, known: dict[Path, Role] | None = None) -> Layout:
    return layout_of([((place,), tensor) for place, tensor in enumerate(tensors)], 3, known)


def roles(*tensors: Tensor, known: dict[Path, Role] | None = None) -> list[Role]:
    return list(found(*tensors, known=known).roles.values())


def test_an_axis_as_long_as_the_batch_holds_the_examples() -> None:
    assert roles(torch.zeros(3, 5), torch.zeros(5, 3), torch.zeros(1, 3), torch.zeros(5, 5)) == [
        Role.FIRST, Role.SECOND, Role.CONSTANT, Role.LOST,
    ]  # fmt: skip


def test_rows_end_to_end_are_divided_as_any_of_three_forms_says() -> None:
    for mark, role in ((OWNERS, Role.OWNERS), (STARTS, Role.STARTS), (BOUNDS, Role.BOUNDS)):
        layout = found(X, mark)
        assert list(layout.roles.values()) == [Role.FLAT, role]
        assert layout.counts == {5: COUNTS}
        assert layout.counts_at((0,), X) == layout.division(role, mark) == COUNTS
    assert owners_of(COUNTS).tolist() == OWNERS.tolist()


def test_pairs_are_told_by_their_ends_and_pairs_of_two_examples_are_lost() -> None:
    layout = found(X, OWNERS, EDGES, torch.rand(4))
    assert list(layout.roles.values())[2:] == [Role.LINKS, Role.FLAT]
    assert layout.links == {4: [2, 0, 2]}
    assert layout.counts_at((2,), EDGES) == [2, 0, 2]
    assert layout.rows_of_links(EDGES) == COUNTS
    across = torch.tensor([[0, 1], [1, 2]])
    assert roles(X, OWNERS, across)[2] is Role.LOST


def test_two_divisions_of_the_same_rows_are_none_unless_one_is_known() -> None:
    """Guarantee: flat rows have owners only where one division of them fits all tensors that say where examples begin.

    Two of them are none, unless it is known which of the tensors says it.
    """
    assert roles(X, STARTS, LABELS) == [Role.LOST, Role.FIRST, Role.FIRST]
    known = {(1,): Role.STARTS, (2,): Role.FIRST}
    assert roles(X, STARTS, LABELS, known=known) == [Role.FLAT, Role.STARTS, Role.FIRST]
    assert {path for path, _ in mark_candidates([((1,), STARTS), ((2,), LABELS), ((0,), X)], 3)} == {(1,), (2,)}


def test_as_many_rows_as_examples_are_flat_only_where_that_is_known() -> None:
    x, bounds = torch.randn(3, 4), torch.tensor([0, 2, 2, 3])
    assert roles(x, bounds) == [Role.LOST, Role.BOUNDS]
    assert roles(x, bounds, known={(0,): Role.FLAT}) == [Role.FLAT, Role.BOUNDS]
    assert roles(x, torch.tensor([0, 1, 2, 3]))[0] is Role.FIRST  # one row each


def test_what_was_known_and_does_not_fit_any_more_is_lost() -> None:
    assert roles(torch.zeros(5, 3), known={(0,): Role.FIRST}) == [Role.LOST]
    assert roles(torch.zeros(3, 5), known={(0,): Role.SECOND}) == [Role.LOST]


def test_a_square_tensor_has_its_examples_first_unless_it_is_known() -> None:
    assert roles(torch.zeros(3, 3)) == [Role.FIRST]
    assert roles(torch.zeros(3, 3), known={(0,): Role.SECOND}) == [Role.SECOND]


def test_labels_in_order_do_not_divide_a_time_first_tensor() -> None:
    assert roles(torch.zeros(5, 3, 2), LABELS) == [Role.SECOND, Role.FIRST]
