"""Inputs cut to a record's own length, without cutting what is content; and those that the loop cut, whole again."""

from __future__ import annotations

import pytest
import torch
from padded_records import RECORDS, B, T, batch, drawn, padded
from torch import Tensor

from hushgrad.guards.probing.narrowing import cut_to, narrowed, widened
from hushgrad.guards.probing.rows import Batch
from hushgrad.guards.probing.widths import Drawn, OwnWidth


def runs(given: Batch, width: OwnWidth) -> list[tuple[list[Tensor], bool]]:
    """The inputs of a record by itself, and whether padding was on the left; each way once."""
    found = [([part for part in value if isinstance(part, Tensor)], left) for value, left in narrowed(given, width)]
    return found[::2]


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


@pytest.mark.parametrize("records", [[[1, 2, 3], [4, 5]], [[1, 2, 3, 4], [5, 5]], [[1, 2, 3], [4, 5], [6, 7]]])
def test_a_record_padded_on_the_left_is_told_by_itself_where_its_end_looks_like_padding(
    records: list[list[int]],
) -> None:
    """A single position is equal to itself, and so are two equal ones."""
    width, own = len(records[0]), len(records[1])
    known = OwnWidth(1, {width: own}, {("ids",): torch.tensor([records[1]])}, True)
    given = batch(padded(records, left=True), size=len(records))
    assert [(inputs[0].tolist(), left) for inputs, left in runs(given, known)] == [([records[1]], True)]
    shifted = batch(padded(records, left=True)[:, :-1], size=len(records))
    assert [(inputs[0].tolist(), left) for inputs, left in runs(shifted, known)] == [([records[1][:-1]], True)]
