"""The loaders of a session draw as its mechanism says."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import DPSGD, FlatClipping, PoissonSampling, Session, privatize
from hushgrad.errors import InvalidArgumentError, ProtocolError

N = 40
DATA = TensorDataset(torch.randn(N, 3))


def session(size: float = 8) -> Session:
    model = nn.Linear(3, 2)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(8 / N), expected_batch_size=size
    )
    return privatize(model, torch.optim.SGD(model.parameters(), lr=0.1), mechanism)


def test_a_pass_has_as_many_steps_as_batches_fit_into_the_data() -> None:
    assert len(session().batches(DATA)) == 5
    assert len(session().batches(DATA, steps_per_pass=3)) == 3
    assert len(session().batches_of(DataLoader(DATA, batch_size=8))) == 5


def test_a_loader_draws_with_the_mechanisms_scheme_and_size() -> None:
    for loader in (session().batches(DATA), session().batches_of(DataLoader(DATA, batch_size=8))):
        assert (loader.sampling, loader.batch_size, loader.population) == (PoissonSampling(8 / N), 8, N)


def test_batches_of_another_size_than_the_sum_is_divided_by_are_refused() -> None:
    with pytest.raises(InvalidArgumentError):
        session(size=9).batches(DATA)
    with pytest.raises(InvalidArgumentError):
        session().batches_of(DataLoader(DATA, batch_size=10))


def test_a_session_has_one_loader() -> None:
    one = session()
    one.batches(DATA)
    with pytest.raises(ProtocolError, match="one loader"):
        one.batches(DATA)


def test_two_sessions_draw_differently() -> None:
    draws = []
    for one in (session(), session()):
        loader = one.batches(DATA)
        next(iter(loader))
        assert one.current_batch is not None
        draws.append(one.current_batch.indices)
    assert draws[0] != draws[1]  # alike with a probability below 1e-6
