"""Which records a dataset has may not change while it trains: other indices are refused before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.errors import ContractChangedError
from hushgrad.sampling.membership import Membership

COUNT = 24


def base() -> TensorDataset:
    return TensorDataset(torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(COUNT))


class Wrapped(Dataset[Any]):
    """Hands out what another dataset has, and keeps a cache."""

    def __init__(self, inner: Dataset[Any]) -> None:
        self.inner, self.cache = inner, {}

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        return self.inner[index]


def subset(indices: Any = None) -> Subset[Any]:
    return Subset(base(), list(range(COUNT)) if indices is None else indices)


FOUND: dict[str, Callable[[], tuple[Any, Subset[Any]]]] = {
    "itself": lambda: (found := subset(), found),
    "in a subset": lambda: (Subset(found := subset(), range(12)), found),
    "in a joined one": lambda: (ConcatDataset([base(), found := subset()]), found),
    "in a wrapper": lambda: (Wrapped(found := subset()), found),
}


@pytest.mark.parametrize("where", FOUND)
def test_other_indices_of_the_same_number_are_refused(where: str) -> None:
    dataset, found = FOUND[where]()
    membership = Membership(dataset)
    membership.require_same(whole=True)
    found.indices = [*range(12), *range(12)]
    for whole in (False, True):
        with pytest.raises(ContractChangedError, match=r"DP404 the dataset: the indices of a Subset are others"):
            membership.require_same(whole=whole)


@pytest.mark.parametrize("where", FOUND)
def test_indices_that_were_written_in_their_place_are_refused_where_all_are_looked_at(where: str) -> None:
    dataset, found = FOUND[where]()
    membership = Membership(dataset)
    found.indices[0] = 5
    membership.require_same(whole=False)
    with pytest.raises(ContractChangedError, match="DP404"):
        membership.require_same(whole=True)


def test_another_number_and_another_dataset_within_are_refused() -> None:
    for change in (
        lambda found: found.indices.append(0),
        lambda found: setattr(found, "dataset", base()),
    ):
        found = subset()
        membership = Membership(found)
        change(found)
        with pytest.raises(ContractChangedError, match="DP404"):
            membership.require_same(whole=False)


@pytest.mark.parametrize(
    "indices",
    [list(range(COUNT)), tuple(range(COUNT)), np.arange(COUNT, dtype=np.int32), torch.arange(COUNT), range(COUNT)],
    ids=lambda value: type(value).__name__,
)
def test_the_same_indices_in_another_list_are_the_same(indices: Any) -> None:
    found = subset()
    membership = Membership(found)
    found.indices = indices
    membership.require_same(whole=False)
    membership.require_same(whole=True)


def test_indices_that_are_no_numbers_are_compared_as_they_are() -> None:
    for indices in (["a", "b"], [("a", 1), ("b", 2)], [("a",), ("b", 2)]):
        found = Subset({"a": 1}, indices)  # type: ignore[arg-type]
        membership = Membership(found)
        membership.require_same(whole=True)
        found.indices = indices[::-1]
        with pytest.raises(ContractChangedError, match="DP404"):
            membership.require_same(whole=True)


def test_other_attributes_of_a_wrapper_and_datasets_without_parts_are_not_looked_at() -> None:
    dataset = Wrapped(subset())
    membership = Membership(dataset)
    dataset.cache[0], dataset.more = 1, base()  # type: ignore[attr-defined]
    membership.require_same(whole=True)
    plain = Membership([1, 2, 3])
    plain.require_same(whole=True)


CHANGES: dict[str, tuple[Callable[[Subset[Any], int], Any], bool]] = {
    "chosen at the end of a pass": (
        lambda found, step: setattr(found, "indices", [0, 1, 2] * 8) if not step % 3 else 0,
        True,
    ),
    "chosen in a pass": (lambda found, step: setattr(found, "indices", [0, 1, 2] * 8), True),
    "the same again": (lambda found, step: setattr(found, "indices", list(range(COUNT))), False),
    "nothing": (lambda found, step: None, False),
}


@pytest.mark.parametrize(
    ("change", "workers"), [*((change, 0) for change in CHANGES), ("chosen at the end of a pass", 1)]
)
def test_no_step_is_charged_or_taken_on_records_that_a_loop_has_chosen(change: str, workers: int) -> None:
    """Guarantee: no pass begins, and no draw is made from lists of indices put in the place of others, if `Subset` or
    `ConcatDataset`, at the root of a dataset or in the attributes of its parts, has other records than it had."""
    write, is_refused = CHANGES[change]
    engine, model, found = PrivacyEngine(), nn.Linear(3, 2), subset()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(found, batch_size=8, num_workers=workers),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    criterion, steps = engine.per_example(lambda out, y: out.square().sum(1)), 0

    def train() -> None:
        nonlocal steps
        for _ in range(2):
            for x, y in loader:
                criterion(model(x), y).backward()
                optimizer.step()
                steps += 1
                write(found, steps)

    if not is_refused:
        train()
        assert steps == 6
        assert not {"losses that change between batches"} & {c.name for c in engine.guarantee(1e-5).conditions}
        return
    with pytest.raises(ContractChangedError, match="DP404"):
        train()
    assert steps == (3 if "end" in change else 1)
    assert engine.session.epsilon(1e-5) > 0
