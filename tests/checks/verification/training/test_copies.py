"""Training on copies of a model: what is measured is what a user's run is, and the original stays as it was."""

from __future__ import annotations

import copy
import warnings

import pytest
import replicas
import torch
import torch.nn.functional as F
from first_forwards import CLASSES, WIDTH, attached, data, held
from replicas import flat, replica
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from verified_training import SIGMA, B, C, N, claim, mlp

import hushgrad
import hushgrad.mechanism.gaussian
from hushgrad import DPSGD, FlatClipping, PoissonSampling, verify
from hushgrad.checks.verification.training.copies import TrainingReplica, ordinary_loop, without_session
from hushgrad.checks.verification.training.session_update import SessionUpdate
from hushgrad.errors import InvalidArgumentError
from hushgrad.session.spending import Spending


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


# The copies ----------------------------------------------------------------------------------------------------------


def test_two_sessions_under_one_seed_write_the_same_update_and_under_secret_keys_never() -> None:
    source = replica()
    updates = [flat(SessionUpdate(source).call(source.item([0, 1, 2]), seed)) for seed in (3, 3, 4, None, None)]
    assert torch.equal(updates[0], updates[1])
    assert len({tuple(update.tolist()) for update in updates[1:]}) == 4


def test_an_item_without_rows_is_an_empty_draw_of_noise_alone() -> None:
    source = replica()
    update = SessionUpdate(source)
    x, y = source.item([0])
    empty, one = (flat(update.call(item, 3)) for item in ((x[:0], y[:0]), (x, y)))
    gradient = flat(source.gradients_of(0))
    clipped = gradient * min(1.0, replicas.C / float(gradient.norm()))
    torch.testing.assert_close(one - empty, clipped / replicas.B, rtol=1e-4, atol=1e-6)


def test_one_examples_gradient_is_that_of_ordinary_autograd() -> None:
    source = replica()
    model = copy.deepcopy(source.model)
    x, y = source.item([4])
    F.cross_entropy(model(x), y).backward()
    found = source.gradients_of(4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name][0], parameter.grad)


def test_a_run_says_what_an_observer_of_its_control_flow_sees() -> None:
    source = replica()
    run = source.train(without_session(ordinary_loop), seed=5, updates=4)
    assert run.updates == 4
    assert run.charged_before
    assert [updated for updated, _, _ in run.flow] == [True] * 4
    assert {rates for _, rates, _ in run.flow} == {(0.1,)}
    assert run.ledger.steps == 4
    assert set(run.drawn) <= set(range(replicas.N))
    assert set(run.first) == set(source.names) == {"weight", "bias"}
    assert source.train(without_session(ordinary_loop), seed=5, updates=4).flow == run.flow


def test_training_copies_leaves_the_model_as_it_was() -> None:
    source = replica()
    before = copy.deepcopy(source.model.state_dict())
    source.train(without_session(ordinary_loop), seed=None, updates=2)
    assert all(torch.equal(value, before[name]) for name, value in source.model.state_dict().items())


def test_a_schedule_and_limits_are_not_part_of_what_is_measured() -> None:
    mechanism = replica(steps=7).mechanism
    assert (mechanism.steps, mechanism.passes) == (None, None)


def test_an_update_that_is_not_in_the_ledger_when_it_is_written_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spending, "charge", lambda self, *_: None)
    run = replica().train(without_session(ordinary_loop), seed=5, updates=2)
    assert (run.updates, run.ledger.steps, run.charged_before) == (2, 0, False)
