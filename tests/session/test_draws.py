"""Which sums share a draw of noise: small ones of a kind, each once, and large ones alone and in their own memory."""

from __future__ import annotations

import torch

from hushgrad.parallel.shards import Shards
from hushgrad.session.draws import SMALL_VALUES, TOGETHER_VALUES, draws_of, owners_of_their_memory

SPLIT = Shards(0, 1, 2)


def test_every_sum_is_in_one_draw_with_others_of_its_kind() -> None:
    totals = [torch.zeros(3), torch.zeros(2, dtype=torch.float64), torch.zeros(SMALL_VALUES + 1), torch.zeros(4, 2)]
    splits = [None, None, None, None]
    draws = draws_of([*totals, *totals], [*splits, *[SPLIT] * 4], [None] * 8)
    assert [draw.places for draw in draws] == [(0, 3), (1,), (4, 7), (5,), (2,), (6,)]
    assert [draw.split for draw in draws] == [None, None, SPLIT, SPLIT, None, SPLIT]


def test_sums_of_two_owners_share_no_draw() -> None:
    totals = [torch.zeros(3) for _ in range(5)]
    draws = draws_of(totals, [None] * 5, [0, 1, None, 1, 0])
    assert [(draw.places, draw.owner) for draw in draws] == [((0, 4), 0), ((1, 3), 1), ((2,), None)]


def test_sums_come_apart_as_they_were_laid_out_and_split_ones_as_this_process_s_part() -> None:
    totals = [torch.arange(6.0).view(3, 2), torch.empty(0, 2), torch.arange(5.0)]
    [draw] = draws_of(totals, [None] * 3, [None] * 3)
    for part, total in zip(draw.taken_apart(draw.laid_out(totals), totals), totals, strict=True):
        assert torch.equal(part, total)
    [draw] = draws_of(totals, [SPLIT] * 3, [None] * 3)
    rows = draw.laid_out(totals)
    for part, total in zip(draw.taken_apart(rows[1], totals), totals, strict=True):
        chunks = torch.chunk(total, 2)
        assert torch.equal(part, chunks[1] if len(chunks) > 1 else total[:0])


def test_noise_is_written_over_no_memory_that_somebody_else_reads() -> None:
    large = torch.zeros(SMALL_VALUES + 1)
    totals = [large, large, torch.zeros(SMALL_VALUES + 1), torch.zeros(2 * SMALL_VALUES, 2)[:, 0], torch.zeros(3)]
    draws = draws_of(totals, [None] * 5, [None] * 5)
    sums = [draw.laid_out(totals) for draw in draws]
    assert [draw.places for draw in draws] == [(4,), (0,), (1,), (2,), (3,)]
    assert owners_of_their_memory(draws, sums) == [True, False, False, True, False]
    draws = draws_of(totals[:1], [SPLIT], [None])
    assert owners_of_their_memory(draws, [draws[0].laid_out(totals)]) == [True]


def test_processes_with_unequal_parts_come_to_the_same_draws_of_each_owner_in_the_same_order() -> None:
    """Also where one has a large part of what others have a small one of, or more than one draw of them."""

    def draws(rows: int) -> list[tuple[int, ...]]:
        many = TOGETHER_VALUES // SMALL_VALUES + 1
        shapes = [(rows, 256), (5, 5), (SMALL_VALUES + 1,), (7,), *[(rows, 256)] * many, (9,)]
        owners = [None, 0, 1, 0, *[None] * many, 0]
        totals = [torch.empty(shape, device="meta") for shape in shapes]
        return [draw.places for draw in draws_of(totals, [SPLIT] * len(totals), owners) if draw.owner is not None]

    large, small, empty = draws(SMALL_VALUES // 256 + 1), draws(SMALL_VALUES // 256), draws(0)
    assert large == small == empty
    assert len(large) == 2
