"""Training on copies of a model: what is measured is what a user's run is, and the original stays as it was."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from first_forwards import CLASSES, WIDTH, attached, data, held
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from verified_training import SIGMA, B, C, N, claim, mlp

import hushgrad
import hushgrad.mechanism.gaussian
from hushgrad import DPSGD, FlatClipping, PoissonSampling, verify
from hushgrad.checks.verification.training.copies import TrainingReplica
from hushgrad.errors import InvalidArgumentError


def test_verify_leaves_model_criterion_and_random_numbers_as_they_were() -> None:
    """Guarantee: model, criterion and global random numbers are afterwards what they were."""

    class Counting(nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.body, self.dropout = nn.Linear(WIDTH, CLASSES), nn.Dropout(0.2)

        def forward(self, x: Tensor) -> Tensor:
            type(self).calls += 1
            return self.dropout(self.body(x))

    class CountingLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, out: Tensor, y: Tensor) -> Tensor:
            self.calls += 1
            return F.cross_entropy(out, y, reduction="none")

    model, criterion, records = Counting(), CountingLoss(), data(64)
    engine, _, _ = attached(model, records)
    model.session = engine.session  # type: ignore[assignment]
    before, state = held(model), torch.get_rng_state()
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.25), expected_batch_size=16
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verify(model, DataLoader(records, batch_size=16), criterion, mechanism, resolution=0.3)
    assert (Counting.calls, criterion.calls) == (0, 0)
    assert held(model) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_the_checked_loss_is_refused_with_the_cure() -> None:
    model = mlp()
    loader = DataLoader(TensorDataset(torch.randn(N, 20), torch.randint(0, 4, (N,))), batch_size=B)
    engine = hushgrad.PrivacyEngine()
    engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=loader,
        noise_multiplier=SIGMA,
        max_grad_norm=C,
    )
    with pytest.raises(InvalidArgumentError, match="given to per_example"):
        hushgrad.verify(model, loader, engine.per_example(nn.CrossEntropyLoss()), engine)


def test_a_private_loader_is_measured_in_its_own_shapes() -> None:
    data = DataLoader(TensorDataset(torch.randn(N, 20), torch.randint(0, 4, (N,))), batch_size=B)
    model = mlp()
    _, _, loader = hushgrad.PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=data,
        noise_multiplier=SIGMA,
        max_grad_norm=C,
        max_physical_batch_size=16,
        constant_shapes=True,
    )
    replica = TrainingReplica.of(mlp(), loader, nn.CrossEntropyLoss(), claim(), torch.optim.SGD, None)
    assert (replica.max_physical_batch_size, replica.constant_shapes) == (16, True)
    replica = TrainingReplica.of(mlp(), data, nn.CrossEntropyLoss(), claim(), torch.optim.SGD, None)
    assert (replica.max_physical_batch_size, replica.constant_shapes) == (None, False)
