"""One record's own lengths in a padded batch: learnt from the record, and cut to without cutting what is content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from hushgrad.guards.probing.rows import Batch
from hushgrad.guards.probing.widths import (
    Drawn,
    OwnWidth,
    contents,
    cut_to,
    extremes,
    narrowed,
    own_widths,
    telling_rows,
    widened,
)

RECORDS = [[5, 6, 7], [8], [1, 2, 3, 4, 9], [2, 2]]
"""Ids of four records; 0 is padding."""

B, T = len(RECORDS), 5


def padded(records: Sequence[Sequence[int]], *, left: bool = False, width: int | None = None) -> Tensor:
    width = width or max(map(len, records))
    zeros = [[0] * (width - len(record)) for record in records]
    return torch.tensor([z + list(r) if left else [*r, *z] for z, r in zip(zeros, records, strict=True)])


def pad_right(records: list[Any]) -> Tensor:
    return padded(records)


def pad_left(records: list[Any]) -> Tensor:
    return padded(records, left=True)


def with_mask(records: list[Any]) -> tuple[Tensor, Tensor]:
    ids = padded(records)
    return ids, (ids != 0).long()


def time_first(records: list[Any]) -> Tensor:
    return padded(records).T.contiguous()


def drawn(collate: Any = pad_right, **options: Any) -> Drawn:
    item = collate(RECORDS) if collate is not None else options.pop("item")
    return Drawn(RECORDS, range(B), item, B, collate, **options)


def batch(value: Any, axis: int = 0, size: int = B) -> Batch:
    """Inputs of a model in which every tensor holds the batch on this axis."""
    parts = value if isinstance(value, tuple) else (value,)
    return Batch(parts, {(n,): axis for n, _ in enumerate(parts)}, size)


def runs(given: Batch, width: OwnWidth) -> list[tuple[list[Tensor], bool]]:
    """The inputs of a record by itself, and whether padding was on the left; each way once."""
    found = [([part for part in value if isinstance(part, Tensor)], left) for value, left in narrowed(given, width)]
    return found[::2]


# What a record is by itself ------------------------------------------------------------------------------------------


def test_contents_end_before_what_repeats_the_last_position() -> None:
    assert contents(padded(RECORDS)).tolist() == [3, 1, 5, 2]
    assert contents(padded(RECORDS, left=True)).tolist() == [5, 5, 5, 3]  # the last record ends on 2, 2
    assert contents(torch.zeros(2, 4)).tolist() == [1, 1]  # nothing but padding is one position
    assert contents(torch.tensor([[1, 2, 2, 2]])).tolist() == [1]
    assert contents(torch.tensor([[1, 2, 3], [1, 2, 0]])).tolist() == [3, 3]  # one position repeats nothing


def test_contents_are_of_whole_positions_also_of_features_and_of_nan() -> None:
    features = torch.zeros(2, 4, 3)
    features[0, :2] = 1
    features[1, :2, 2] = 1  # one feature is enough
    assert contents(features).tolist() == [2, 2]
    features[0, 2:] = float("nan")
    assert contents(features).tolist() == [2, 2]


def test_extremes_are_the_longest_and_the_shortest_example_of_whole_numbers() -> None:
    assert extremes(batch(padded(RECORDS))) == [2, 1]
    assert extremes(batch(padded(RECORDS).float())) == []
    assert extremes(batch(torch.arange(1, 9).reshape(4, 2))) == []
    assert extremes(Batch((padded(RECORDS),), {}, B)) == []  # of a constant nothing is told


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


# Cut to it -----------------------------------------------------------------------------------------------------------

SHORT = OwnWidth(1, {T: 1}, {}, True)
SECOND = OwnWidth(0, {T: 3}, {}, True)


def test_right_padding_is_cut_off_on_the_right_and_left_padding_on_the_left() -> None:
    (inputs, left), *others = runs(batch(padded(RECORDS)), SECOND)
    assert (inputs[0].tolist(), left, others) == ([[5, 6, 7]], False, [])
    (inputs, left), *others = runs(batch(padded(RECORDS, left=True)), SECOND)
    assert (inputs[0].tolist(), left, others) == ([[5, 6, 7]], True, [])


def test_nothing_is_run_where_content_would_be_cut_off() -> None:
    ids = padded(RECORDS)
    assert runs(batch(ids), OwnWidth(2, {T: 3}, {}, True)) == []
    assert runs(batch((ids, torch.rand(B, T))), SHORT) == []  # a second input has content everywhere


def test_a_record_in_inputs_that_are_not_padded_is_run_as_it_is() -> None:
    ids = padded(RECORDS)
    ((inputs, left),) = runs(batch(ids), OwnWidth(1, {7: 1}, {}, True))
    assert (inputs[0].tolist(), left) == (ids[1:2].tolist(), False)


def test_what_all_records_have_in_common_is_cut_along() -> None:
    """Positions, masks and pairs of positions."""
    ids = padded(RECORDS)
    positions = torch.arange(T).expand(B, T).contiguous()
    mask = (ids != 0).long()
    pairs = mask[:, :, None] * mask[:, None, :]
    (inputs, left), *_ = runs(batch((ids, positions, mask, pairs)), SECOND)
    assert not left
    assert [part.shape for part in inputs] == [(1, 3), (1, 3), (1, 3), (1, 3, 3)]
    assert inputs[1].tolist() == [[0, 1, 2]]


def test_positions_that_count_from_a_records_own_start_are_told_by_the_record_itself() -> None:
    """Left padding with positions -2, -1, 0, ...: what is cut off is no padding by its values, but is kept alone so."""
    ids = padded(RECORDS, left=True)
    starts = torch.tensor([T - len(record) for record in RECORDS])
    positions = torch.arange(T) - starts[:, None]
    alone = {("ids",): torch.tensor([[5, 6, 7]]), ("positions",): torch.tensor([[0, 1, 2]])}
    given = batch((ids, positions))
    assert runs(given, SECOND) == []
    (inputs, left), *_ = runs(given, OwnWidth(0, {T: 3}, alone, True))
    assert left
    assert inputs[1].tolist() == [[0, 1, 2]]


def test_inputs_and_targets_that_the_loop_shifted_keep_one_position_less() -> None:
    ids = padded(RECORDS)
    (inputs, _), *_ = runs(batch(ids[:, :-1]), SECOND)
    assert inputs[0].tolist() == [[5, 6]]
    (inputs, _), *_ = runs(batch(ids[:, 1:]), SECOND)
    assert inputs[0].tolist() == [[6, 7]]


def test_records_on_the_second_axis_are_cut_along_the_first() -> None:
    (inputs, left), *_ = runs(batch(padded(RECORDS).T.contiguous(), axis=1), SECOND)
    assert (inputs[0].tolist(), left) == ([[5], [6], [7]], False)


def test_constants_and_numbers_of_the_width_follow_it_in_the_second_way_only() -> None:
    ids = padded(RECORDS)
    given = Batch((ids, torch.arange(T), T), {(0,): 0}, B)
    first, second = [value for value, _ in narrowed(given, SECOND)]
    assert [first[0].shape, first[1].tolist(), first[2]] == [(1, 3), [0, 1, 2], T]
    assert [second[0].shape, second[1].tolist(), second[2]] == [(1, 3), [0, 1, 2], 3]


def test_the_axis_of_the_batch_is_never_cut() -> None:
    tensor = torch.arange(25).reshape(5, 5)
    width = OwnWidth(0, {5: 3}, {}, True)
    assert torch.equal(cut_to(tensor, width, 0, False), tensor[:, :3])
    assert torch.equal(cut_to(tensor, width, 1, True), tensor[2:])
    assert torch.equal(cut_to(tensor, width, None, False), tensor[:3, :3])
    assert cut_to(tensor, width, 1, True).is_contiguous()


def test_the_batch_itself_is_left_as_it_was() -> None:
    ids = padded(RECORDS)
    given = batch(ids)
    for value, _ in narrowed(given, SECOND):
        value[0].zero_()
    assert torch.equal(ids, padded(RECORDS))


# And back to the width of before the loop ----------------------------------------------------------------------------


def test_a_batch_that_the_loop_cut_to_its_longest_record_is_widened_again() -> None:
    wide, ids = padded(RECORDS, width=8), padded(RECORDS)
    found = widened(drawn(None, item=(wide, torch.zeros(B))), batch(ids))
    assert found is not None
    whole, cut, before = found
    assert (cut, before) == (T, 8)
    assert torch.equal(whole.value[0], wide)
    assert (whole.axes, whole.size) == (batch(ids).axes, B)


def test_ids_and_their_mask_are_widened_together_or_not_at_all() -> None:
    wide, ids = padded(RECORDS, width=8), padded(RECORDS)
    both = (wide, (wide != 0).long())
    found = widened(drawn(None, item=both), batch((ids, (ids != 0).float())))
    assert found is not None
    assert [(part.shape, part.dtype) for part in found[0].value] == [((B, 8), torch.int64), ((B, 8), torch.float32)]
    assert widened(drawn(None, item=wide), batch((ids, torch.rand(B, T)))) is None


@pytest.mark.parametrize(
    ("item", "given"),
    [
        (padded(RECORDS), padded(RECORDS)),
        (padded(RECORDS, width=8), padded(RECORDS, width=6)),
        (padded([*RECORDS[:3], [2] * 7], width=8), padded([*RECORDS[:3], [2] * 5])),
        (padded(RECORDS, width=8), padded(RECORDS) + 1),
        (torch.rand(B, 8), torch.rand(B, T)),
    ],
    ids=["not cut", "not to the longest", "content was cut off", "changed by the loop", "something else"],
)
def test_what_was_not_cut_to_the_longest_record_is_not_widened(item: Tensor, given: Tensor) -> None:
    assert widened(drawn(None, item=item), batch(given)) is None


def test_a_row_that_is_no_record_is_not_cut_short_by_those_that_are() -> None:
    item = padded([*RECORDS[:3], [2] * 7], width=8)
    source = Drawn(RECORDS, range(3), item, B, None)
    assert widened(source, batch(item[:, :T])) is None
    item[3, T:] = 0
    assert widened(source, batch(item[:, :T])) is not None
