"""NumPy's global generator is kept and put back, whatever kind it is."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.numpy_generator import begin_anew, kept_generator

KINDS = [np.random.MT19937, np.random.PCG64, np.random.Philox]


@pytest.fixture(params=KINDS, ids=[kind.__name__ for kind in KINDS])
def kind(request: pytest.FixtureRequest) -> Iterator[Any]:
    before, state = np.random.get_bit_generator(), np.random.get_state(legacy=False)
    np.random.set_bit_generator(request.param(3))
    np.random.standard_normal()  # it keeps the second of two normal numbers
    yield request.param
    np.random.set_bit_generator(before)
    np.random.set_state(state)


def test_it_is_given_back_as_it_was_and_takes_a_seed_meanwhile(kind: Any) -> None:
    own, state = np.random.get_bit_generator(), pickle.dumps(np.random.get_state(legacy=False))
    with kept_generator():
        np.random.seed(5)
        first = np.random.standard_normal(7)
    assert np.random.get_bit_generator() is own
    assert pickle.dumps(np.random.get_state(legacy=False)) == state
    with kept_generator():
        np.random.seed(5)
        assert np.array_equal(np.random.standard_normal(7), first)


def test_begun_anew_it_is_of_its_kind_and_draws_something_else(kind: Any) -> None:
    begin_anew()
    assert type(np.random.get_bit_generator()) is kind
    drawn = np.random.random_sample(4)
    begin_anew()
    assert not np.array_equal(np.random.random_sample(4), drawn)


def test_a_loop_beside_any_kind_of_generator_trains_with_what_it_draws(kind: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = PrivacyEngine(test_key=1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(TensorDataset(torch.randn(16, 4), torch.arange(16) % 2), batch_size=8),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    for x, y in loader:
        own = np.random.get_bit_generator()
        engine.session.backward(F.cross_entropy(model(x), y, reduction="none"))
        optimizer.step()
        assert np.random.get_bit_generator() is own
    assert engine.session.steps == 2
