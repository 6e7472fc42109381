"""A collate function that cuts a record by the lengths of the others is refused; one that only pads is not."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine
from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.collate_runs import CollateRuns
from hushgrad.guards.probing.companions import require_same_beside_any
from hushgrad.sampling.extent import extent_of

SIZE = 16


def of_length(length: int) -> Tensor:
    return torch.arange(length) % 7 + 1


def cut_to(rule: Callable[[list[int]], int], *, left: bool = False) -> Any:
    def collate(records: list[Tensor]) -> Tensor:
        length = rule(sorted(map(len, records)))
        x = torch.zeros(len(records), length, dtype=torch.long)
        for row, record in zip(x, records, strict=True):
            kept = record[-length:] if left else record[:length]
            row[length - len(kept) if left else 0 :][: len(kept)] = kept
        return x

    return collate


RULES: dict[str, Callable[[list[int]], int]] = {
    "shortest": lambda n: n[0],
    "third": lambda n: n[min(2, len(n) - 1)],
    "lower quartile": lambda n: n[len(n) // 4],
    "median": lambda n: n[len(n) // 2],
    "mean": lambda n: sum(n) // len(n),
    "second longest": lambda n: n[max(0, len(n) - 2)],
    "90th percentile": lambda n: n[int(0.9 * len(n))],
    "twice the shortest": lambda n: 2 * n[0],
}

TWO = [of_length(4), of_length(16)]
FEW_SHORT = [of_length(4), *[of_length(16)] * 5]
FEW_LONG = [*[of_length(4)] * 5, of_length(16)]
MANY = [of_length(12 + place % 4) for place in range(6)]
ONE_WORD = [torch.ones(4, dtype=torch.long), torch.ones(16, dtype=torch.long)]


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("records", [TWO, FEW_SHORT, FEW_LONG, ONE_WORD])
@pytest.mark.parametrize("rule", RULES)
def test_a_cut_to_any_statistic_of_the_lengths_is_refused(rule: str, records: list[Tensor], left: bool) -> None:
    with pytest.raises(CrossSampleLeakError, match=r"collate_fn collate: mixes examples.*longer or shorter"):
        require_same_beside_any(CollateRuns(cut_to(RULES[rule], left=left)), records, SIZE)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "twice the shortest"])
def test_a_cut_among_lengths_that_differ_little_is_refused(rule: str) -> None:
    with pytest.raises(CrossSampleLeakError):
        require_same_beside_any(CollateRuns(cut_to(RULES[rule])), MANY, SIZE)


HARMLESS: dict[str, Callable[[list[int]], int]] = {
    "longest": lambda n: n[-1],
    "a multiple of 8": lambda n: -(-n[-1] // 8) * 8,
    "at most 10": lambda n: min(10, n[-1]),
    "6": lambda n: 6,
    "64": lambda n: 64,
}


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("records", [TWO, FEW_SHORT, FEW_LONG, ONE_WORD, MANY, [of_length(5)] * 6])
@pytest.mark.parametrize("rule", HARMLESS)
def test_padding_to_the_longest_and_cuts_to_a_constant_are_not_refused(
    rule: str, records: list[Tensor], left: bool
) -> None:
    assert require_same_beside_any(CollateRuns(cut_to(HARMLESS[rule], left=left)), records, SIZE)


WIDE = [F.pad(record, (0, 24 - len(record))) for record in MANY + TWO]


def trimmed(rule: Callable[[list[int]], int]) -> Any:
    """Cuts records that come padded to one width."""

    def collate(records: list[Tensor]) -> dict[str, Tensor]:
        ids = torch.stack(records)
        ids = ids[:, : rule(sorted((ids != 0).sum(1).tolist()))]
        return {"ids": ids, "mask": ids != 0}

    return collate


def test_padding_of_the_dataset_s_own_may_be_trimmed_to_the_longest_and_to_nothing_else() -> None:
    assert require_same_beside_any(CollateRuns(trimmed(lambda n: n[-1])), WIDE, SIZE)
    for rule in ("shortest", "median", "mean", "90th percentile"):
        with pytest.raises(CrossSampleLeakError, match="part ids"):
            require_same_beside_any(CollateRuns(trimmed(RULES[rule])), WIDE, SIZE)


def test_texts_and_the_second_of_two_lengths_are_told_apart_as_well() -> None:
    def words(records: list[str]) -> Tensor:
        length = len(sorted(records, key=len)[len(records) // 2])
        return torch.tensor([list(text[:length].ljust(length).encode()) for text in records])

    def targets(records: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return pad_sequence([x for x, _ in records], True), cut_to(RULES["median"])([y for _, y in records])

    with pytest.raises(CrossSampleLeakError):
        require_same_beside_any(CollateRuns(words), ["some", "words of others"], SIZE)
    pairs = [(of_length(20), of_length(4)), (of_length(5), of_length(16)), (of_length(6), of_length(5))]
    with pytest.raises(CrossSampleLeakError, match="part 1"):
        require_same_beside_any(CollateRuns(targets), pairs, SIZE)


def test_random_masks_of_padded_batches_are_not_refused() -> None:
    def masked(records: list[Tensor]) -> Tensor:
        ids = pad_sequence(records, batch_first=True)
        return ids.masked_fill(torch.bernoulli(torch.full(ids.shape, 0.5)).bool(), 9)

    assert require_same_beside_any(CollateRuns(masked), TWO, SIZE)


def test_masks_over_pairs_of_positions_are_not_refused() -> None:
    def causal(records: list[Tensor]) -> dict[str, Tensor]:
        ids = pad_sequence(records, batch_first=True)
        allowed = torch.ones(len(ids), 1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        return {"ids": ids, "mask": allowed & (ids != 0)[:, None, None, :]}

    assert require_same_beside_any(CollateRuns(causal), TWO, SIZE)


def test_lists_of_records_are_not_refused_unless_they_are_cut() -> None:
    assert require_same_beside_any(CollateRuns(list), TWO, SIZE)
    with pytest.raises(CrossSampleLeakError):
        require_same_beside_any(
            CollateRuns(lambda records: [record[: min(map(len, records))] for record in records]), TWO, SIZE
        )


def test_a_function_that_fails_on_one_record_alone_is_told() -> None:
    def pairwise(records: list[Tensor]) -> Tensor:
        if len(records) < 2:
            raise ValueError
        return pad_sequence(records, batch_first=True)

    assert not require_same_beside_any(CollateRuns(pairwise), TWO, SIZE)


def test_records_are_left_alone_and_batches_of_large_ones_stay_small() -> None:
    seen: SimpleQueue[int] = SimpleQueue()  # out of the probe's reach: what a list holds, it puts back

    def collate(records: list[Tensor]) -> Tensor:
        seen.put(len(records))
        found = torch.stack([record.sum() for record in records])
        for record in records:
            record.zero_()
        return found

    records = [torch.ones(1 << 20), torch.ones(1 << 21)]
    assert require_same_beside_any(CollateRuns(collate), records, 1000)
    assert extent_of(records[1]) == int(records[1].sum())
    assert max(seen.get() for _ in range(seen.qsize())) <= 8


LATE = [of_length(8)] * SIZE + [of_length(4 if place % 2 else 12) for place in range(SIZE)]


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.o = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        is_real = (ids > 0).float()[:, :, None]
        return self.o((self.e(ids) * is_real).sum(1) / is_real.sum(1).clamp(min=1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("rule", ["shortest", "median", "90th percentile", "longest", "6"])
def test_the_first_batch_whose_records_differ_in_length_is_examined(rule: str) -> None:
    """With a key whose second batch is not looked at otherwise."""
    model, engine = Mean(), PrivacyEngine(test_key=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(LATE, batch_size=SIZE, collate_fn=cut_to({**RULES, **HARMLESS}[rule])),  # type: ignore[arg-type]
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    criterion = engine.per_example(lambda out, _: out.square().sum(1))

    def train() -> None:
        for ids in loader:
            criterion(model(ids), ids).backward()
            optimizer.step()

    if rule in HARMLESS:
        train()
        assert engine.session.steps == 2
    else:
        with pytest.raises(CrossSampleLeakError, match="collate_fn collate"):
            train()
        assert engine.session.steps == 1
