"""One record's own lengths in a padded batch: learnt from the record, or guessed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from padded_records import RECORDS, B, T, batch, drawn, pad_left, pad_right, padded, time_first, with_mask
from torch import Tensor

from hushgrad.guards.probing.widths import Drawn, OwnWidth, own_widths, telling_rows


@pytest.mark.parametrize("collate", [pad_right, pad_left, with_mask], ids=["right", "left", "with a mask"])
def test_the_shortest_record_and_the_longest_shorter_one_are_read_again(collate: Any) -> None:
    source = drawn(collate)
    found = own_widths(source, batch(source.item), set())
    assert [width.row for width in found] == [1, 0]
    assert [width.of(T) for width in found] == [1, 3]
    assert all(width.is_sure for width in found)
    assert [tensor.shape for tensor in found[0].alone.values()] == [(1, 1)] * (2 if collate is with_mask else 1)


def test_records_on_the_second_axis_are_read_again_too() -> None:
    source = drawn(time_first, axes={(): 1})
    found = own_widths(source, batch(source.item, axis=1), set())
    assert found
    assert all(width.is_sure and width.of(T) == len(RECORDS[width.row]) < T for width in found)


def test_rows_after_the_drawn_ones_are_no_records() -> None:
    item = torch.cat([padded(RECORDS), torch.zeros(3, T, dtype=torch.long)])
    source = Drawn(RECORDS, range(B), item, B + 3, pad_right)
    assert all(width.row < B for width in own_widths(source, batch(item, size=B + 3), set()))


def test_where_all_records_are_as_long_no_one_has_a_width_of_its_own() -> None:
    records = [[1, 2], [3, 4], [5, 6]]
    source = Drawn(records, range(3), padded(records), 3, pad_right)
    assert own_widths(source, batch(source.item, size=3), set()) == []


def test_masks_are_as_good_as_numbers_for_telling_records_apart() -> None:
    item = (padded(RECORDS), padded(RECORDS) == 0)
    assert sorted(telling_rows(Drawn(RECORDS, range(B), item, B, pad_right), 4)) == sorted(
        telling_rows(Drawn(RECORDS, range(B), item[0], B, pad_right), 4)
    )
    assert telling_rows(Drawn(RECORDS, range(B), item[1], B, pad_right), 4)


def test_a_record_that_cannot_be_read_again_says_nothing() -> None:
    class Gone:
        def __getitem__(self, index: int) -> list[int]:
            raise OSError("gone")

    source = Drawn(Gone(), range(B), padded(RECORDS), B, pad_right)
    assert own_widths(source, batch(source.item), set()) == []


def test_the_dataset_is_not_changed_by_a_collate_that_pads_in_place() -> None:
    records = [[5, 6, 7], [8]]

    def in_place(some: list[list[int]]) -> Tensor:
        width = max(map(len, some))
        for record in some:
            record += [0] * (width + 1 - len(record))
        return torch.tensor(some)

    source = Drawn(records, range(2), padded(records, width=4), 2, in_place)
    assert own_widths(source, batch(source.item, size=2), set())
    assert records == [[5, 6, 7], [8]]


def test_lists_of_records_tell_the_lengths_of_all() -> None:
    tensors = [torch.ones(len(record), 2) for record in RECORDS]
    for item in (RECORDS, tensors, [{"ids": record} for record in RECORDS]):
        source = Drawn(RECORDS, range(B), item, B, list, lists=frozenset({()}))
        found = own_widths(source, batch(padded(RECORDS)), set())
        assert [(width.row, width.of(T), width.is_sure) for width in found] == [(1, 1, True), (0, 3, True)]


def test_without_a_collate_function_a_length_is_guessed_where_it_follows_the_longest_record() -> None:
    ids, wide = padded(RECORDS), padded(RECORDS, width=8)
    cut = own_widths(drawn(None, item=wide), batch(ids), set())  # the loop cut to the longest
    assert [(width.row, width.of(T), width.is_sure) for width in cut] == [(1, 1, False), (0, 3, False)]
    assert own_widths(drawn(None, item=ids), batch(ids), set()) == []  # as wide in every batch
    assert [width.row for width in own_widths(drawn(None, item=ids), batch(ids), {T})] == [1, 0]
    assert [width.row for width in own_widths(None, batch(ids), {T})] == [1, 0]
    lengths = torch.tensor([len(record) for record in RECORDS])
    features = torch.ones(B, T, 2)
    assert [width.of(T) for width in own_widths(None, batch((features, lengths)), {T})] == [1, 3]


def test_a_record_that_ends_in_equal_positions_is_not_taken_for_a_shorter_one() -> None:
    equal_ends = torch.tensor([[5, 6, 7, 7], [5, 6, 7, 8], [1, 2, 3, 4]])
    assert own_widths(None, batch(equal_ends, size=3), {4}) == []
    padded_too = torch.tensor([[5, 6, 7, 7], [5, 0, 0, 0], [1, 2, 0, 0]])
    assert [width.row for width in own_widths(None, batch(padded_too, size=3), {4})] == [1, 2]
    ids = torch.tensor([[5, 9, 9, 9], [5, 6, 9, 9], [1, 2, 3, 9]])  # what ends a record is what pads, too
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    found = own_widths(None, batch((ids, mask), size=3), {4})
    assert [(width.row, width.of(4)) for width in found] == [(0, 2)]


def test_what_the_records_themselves_tell_leaves_nothing_to_guess() -> None:
    """Two of three records end in equal ids; all are as long as the longest."""
    records = [[5, 6, 7, 7], [1, 2, 7, 7], [1, 2, 3, 4]]
    source = Drawn(records, range(3), padded(records), 3, pad_right)
    assert own_widths(source, batch(source.item, size=3), {4}) == []


def test_a_short_record_is_found_by_what_it_held_however_its_row_looks() -> None:
    """Masks of ones, types of zeros and many longest records in front hide no short one."""

    def with_types(records: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
        ids, mask = with_mask(records)
        return ids, mask, torch.zeros_like(ids)

    for short in ([7], [7, 8, 9, 9]):
        records = [*([1 + row, 2, 3, 4, 5] for row in range(9)), short]
        source = Drawn(
            records, range(10), with_types(records), 10, with_types, extents=[len(record) for record in records]
        )
        found = own_widths(source, batch(source.item, size=10), set())
        assert [(width.row, width.of(5), width.is_sure) for width in found] == [(9, len(short), True)]


def test_where_no_lengths_are_known_many_records_are_read_until_a_shorter_one_is_found() -> None:
    records = [*([1 + row, 2, 3, 4, 5] for row in range(9)), [7, 8, 9, 9]]
    source = Drawn(records, range(10), with_mask(records), 10, with_mask)
    found = own_widths(source, batch(source.item, size=10), set())
    assert [(width.row, width.of(5)) for width in found] == [(9, 4)]


def test_an_axis_that_is_one_shorter_was_shifted_by_the_loop() -> None:
    width = OwnWidth(0, {5: 3}, {}, True)
    assert [width.of(length) for length in (3, 4, 5, 6)] == [3, 2, 5 - 2, 6]
    assert OwnWidth(0, {5: 1}, {}, True).of(4) == 1
