"""Axes of a graph: where the batch lies after values were laid out anew or broadcast."""

from __future__ import annotations

from hushgrad.guards.probing.loss_values import Reading, axes_of, broadcast_axis, moved_axis


def test_the_axis_of_the_batch_is_followed_through_other_shapes() -> None:
    assert moved_axis(0, (4, 6), (4, 2, 3), 4) == 0
    assert moved_axis(1, (1, 4, 6), (4, 6), 4) == 0
    assert moved_axis(None, (4, 6), (24,), 4) is None


def test_broadcasting_says_which_other_axis_grew() -> None:
    axis, grown = broadcast_axis(0, (4, 1), (4, 4), 4)
    assert (axis, grown) == (0, 4)
    assert broadcast_axis(0, (4, 3), (4, 3), 4) == (0, None)


def test_nodes_keep_axes_as_they_like() -> None:
    assert axes_of(None, 3) == axes_of((), 3) == (0, 1, 2)
    assert axes_of(-1, 3) == (2,)
    assert axes_of((2**64 - 1, 0), 3) == (2, 0)


def test_what_was_cut_is_whole_if_the_parts_are_all_of_it() -> None:
    reading = Reading(size=4)
    reading.cuts = [(range(0, 2), 4)]
    assert not reading.is_cut_whole()
    reading.cuts.append((range(2, 4), 4))
    assert reading.is_cut_whole()
