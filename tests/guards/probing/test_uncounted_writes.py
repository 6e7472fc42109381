"""A forward that writes into its inputs past torch's count is refused; one that torch counts is handled as before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine
from hushgrad.errors import PrivacyUnitError
from hushgrad.guards.probing.trees import copied
from hushgrad.guards.probing.uncounted_writes import UncountedWrites


def by_numpy(x: Tensor) -> None:
    array = x.numpy()
    array -= array.mean(0)


def by_dlpack(x: Tensor) -> None:
    other = torch.from_dlpack(x)
    other -= other.mean(0)


def by_storage(x: Tensor) -> None:
    other = torch.empty(0).set_(x.untyped_storage(), 0, x.shape)  # type: ignore[call-overload]
    other -= other.mean(0)


def by_data(x: Tensor) -> None:
    x.data.mul_(2)


WAYS = [by_numpy, by_dlpack, by_storage, by_data]


def found_after(given: Any, write: Callable[[], object]) -> Any:
    watch = UncountedWrites(given, copied(given))
    write()
    return watch.found()


@pytest.mark.parametrize("write", WAYS)
def test_a_write_that_torch_does_not_count_is_found_and_one_that_it_counts_is_not(write: Any) -> None:
    x = torch.randn(3, 4)
    assert found_after(((x,), {}), lambda: write(x)) == (0, 0)
    assert found_after(((x,), {}), lambda: x.mul_(2)) is None
    assert found_after(((x,), {}), lambda: x[:].mul_(2)) is None
    assert found_after(((x,), {}), lambda: None) is None


def test_arrays_and_packed_sequences_are_watched_wherever_they_are_given() -> None:
    array, packed = np.ones(3), pack_sequence([torch.ones(2), torch.ones(1)])
    assert found_after(((), {"x": [{"a": array}]}), lambda: array.fill(2)) == (1, "x", 0, "a")
    assert found_after(((packed,), {}), lambda: packed.data.numpy().fill(2)) == (0, 0)


def test_nan_is_no_write_and_neither_is_a_key_that_was_taken_out() -> None:
    x, batch = torch.full((2,), float("nan")), {"y": torch.ones(2)}
    assert found_after(((x, batch), {}), lambda: batch.pop("y")) is None


def test_what_cannot_be_compared_is_left_alone() -> None:
    sparse = torch.eye(3).to_sparse()
    with torch.inference_mode():
        made = torch.ones(3)
    assert found_after(((sparse, made, nn.Parameter(torch.ones(2))), {}), lambda: None) is None


class Writing(nn.Module):
    def __init__(self, write: Any) -> None:
        super().__init__()
        self.a, self.write = nn.Linear(4, 4), write

    def forward(self, x: Tensor) -> Tensor:
        out = self.a(x.clone())
        if self.write is not None:
            self.write(x)
        return out  # type: ignore[no-any-return]


def trained(write: Any) -> PrivacyEngine:
    model, engine = Writing(write), PrivacyEngine(test_key=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(list(torch.randn(16, 4)), batch_size=8),  # type: ignore[arg-type]
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    criterion = engine.per_example(lambda out, x: (out - x).square().sum(1))
    for x in loader:
        criterion(model(x), x).backward()
        optimizer.step()
    return engine


@pytest.mark.parametrize("write", WAYS)
def test_a_forward_that_writes_so_is_refused_before_anything_is_released(write: Any) -> None:
    with pytest.raises(PrivacyUnitError, match=r"Writing itself: writes into its input 0 .*Compute a new tensor"):
        trained(write)


@pytest.mark.parametrize("write", [None, lambda x: x[:].mul_(2)])
def test_a_forward_that_writes_nothing_or_by_torch_s_operators_trains(write: Any) -> None:
    assert trained(write).session.steps == 2


def test_tensors_that_are_put_into_what_was_given_are_seen_unless_they_are_returned() -> None:
    x, item = torch.ones(3), {"x": torch.ones(3)}
    watch = UncountedWrites(((item, [x]), {}), copied(((item, [x]), {})))
    assert not watch.has_left_more(x)
    item["y"] = x * 2
    assert watch.has_left_more(x)
    assert not watch.has_left_more((x, item))
    assert not watch.has_left_more(item["y"])
    item["y"] = x
    assert not watch.has_left_more(None)
