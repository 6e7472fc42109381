"""Training on features that are computed once is the training of the whole model, and costs no less privacy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import hushgrad
from hushgrad import DPSGD, FlatClipping, PoissonSampling, privatize
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time
from hushgrad.study import frozen
from hushgrad.study.configuration import Privacy, RunConfig, suggested_run
from hushgrad.study.frozen import OnFeatures, with_features_computed_once
from hushgrad.study.models import build_model
from hushgrad.study.outcome import Callbacks
from hushgrad.study.resuming import resume
from hushgrad.study.run import Reporter, run
from hushgrad.study.scoring import score
from hushgrad.study.tasks import Task, TaskOptions
from hushgrad.study.training import train


def stripes(count: int, seed: int = 0) -> TensorDataset:
    """Images of 8×8 pixels with stripes that lie, or stand, at a random place, and noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    phase = torch.rand(count, 1, generator=generator) * 6
    wave_N8 = 0.5 + 0.5 * torch.sin(2 * torch.arange(8) + phase)
    lying = wave_N8[:, :, None].expand(-1, -1, 8)
    drawn = torch.where(labels[:, None, None] == 0, lying, lying.transpose(1, 2))
    noisy = (drawn + 0.2 * torch.rand(count, 8, 8, generator=generator)).clamp(0, 1)
    return TensorDataset(noisy[:, None].contiguous(), labels)


@pytest.fixture(scope="module")
def task() -> Task:
    return Task("digits", "stripes", stripes(60), stripes(20, seed=1), ("lying", "standing"))


def config(privacy: Privacy | None, **changes: object) -> RunConfig:
    found = suggested_run("digits", privacy=privacy, model="scatter-linear")
    return replace(found, **{"batch_size": 20, "epochs": 3, "learning_rate": 0.2, "threads": 1, **changes})


def linear(seed: int = 0) -> nn.Module:
    return build_model("scatter-linear", input_shape=(1, 8, 8), num_classes=2, seed=seed)


def test_features_computed_once_equal_those_computed_in_the_step(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: features that are computed once equal those that are computed in the step."""
    model = linear()
    monkeypatch.setattr(frozen, "EXAMPLES_AT_ONCE", 7)
    head, featured, whole = with_features_computed_once(model, task, "cpu")
    for once, images in ((featured.train, task.train), (featured.test, task.test)):
        torch.testing.assert_close(head(once.tensors[0]), model(images.tensors[0]), rtol=1e-5, atol=1e-5)
        assert torch.equal(once.tensors[1], images.tensors[1])
    assert whole(head).state_dict().keys() == model.state_dict().keys()
    assert torch.equal(whole(head)(task.test.tensors[0]), model(task.test.tensors[0]))


def update_of(model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the clipped sum of a step over these examples, without noise."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    mechanism = DPSGD(
        noise_multiplier=0.0,
        clipping=FlatClipping(1.0),
        sampling=PoissonSampling(rate=0.1),
        expected_batch_size=4,
        loss_reduction="sum",
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    session = privatize(model, optimizer, mechanism)
    session.backward(nn.functional.cross_entropy(model(inputs), labels, reduction="none"))
    optimizer.step()
    session.close()
    return {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("once", [True, False])
def test_a_step_is_the_clipped_sum_of_one_example_at_a_time(task: Task, once: bool) -> None:
    images, labels = (part[:6] for part in task.train.tensors)
    oracle = linear()
    losses = [
        lambda row=row: nn.functional.cross_entropy(
            oracle(images[row : row + 1]), labels[row : row + 1], reduction="sum"
        )
        for row in range(6)
    ]
    expected = clipped_sum_of(one_at_a_time(oracle, losses), FlatClipping(1.0))
    model = linear()
    if once:
        head, featured, _ = with_features_computed_once(model, task, "cpu")
        found = {f"head.{name}": sum for name, sum in update_of(head, featured.train.tensors[0][:6], labels).items()}
    else:
        found = update_of(model, images, labels)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_where_features_are_computed_does_not_change_what_a_run_costs_or_learns(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for most in (frozen.MOST_FEATURE_BYTES, 0):
        monkeypatch.setattr(frozen, "MOST_FEATURE_BYTES", most)
        ledger = tmp_path / f"{most}.jsonl"
        privacy = Privacy(noise_multiplier=1.0, max_grad_norm=1.0, delta=1e-3)
        model, outcome = train(config(privacy), task, Callbacks(), ledger=ledger)
        ordinary, _ = train(config(None), task, Callbacks())
        assert score(model, task.test, "cpu").accuracy == outcome.test_accuracy
        found.append((read_ledger(ledger).events, model.state_dict().keys(), ordinary))
    assert found[0][:2] == found[1][:2]
    for once, in_step in zip(found[0][2].parameters(), found[1][2].parameters(), strict=True):
        torch.testing.assert_close(once, in_step, rtol=1e-4, atol=1e-5)


def test_views_have_their_features_computed_in_the_step(task: Task) -> None:
    privacy = Privacy(noise_multiplier=1.0, max_grad_norm=1.0, delta=1e-3)
    model, outcome = train(config(privacy, augmentations=2, epochs=1), task, Callbacks())
    assert isinstance(model, OnFeatures)
    assert outcome.steps == 3


def test_a_run_goes_on_after_a_stop_and_its_model_is_loaded_and_predicts(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    options = TaskOptions(classes=("0", "1"))
    privacy = Privacy(noise_multiplier=1.0, max_grad_norm=1.0, delta=1e-3)
    settings = replace(
        suggested_run("digits", privacy=privacy, options=options, model="scatter-linear"),
        batch_size=72,
        epochs=2,
        learning_rate=0.2,
        average_decay=0.5,
    )

    class StopError(Exception):
        pass

    def stop_at(step: int) -> None:
        if step == 5:
            raise StopError

    with pytest.raises(StopError):
        run(settings, tmp_path / "run", Reporter(on_step=stop_at))
    finished = resume(tmp_path / "run")
    assert finished.outcome.status == "completed"
    loaded = hushgrad.load(tmp_path / "run")
    images, labels = finished.task.test.tensors
    rows = list((images[:, 0] * 16).numpy())
    right = [name == str(int(label)) for name, label in zip(loaded.predict(rows), labels, strict=True)]
    assert sum(right) / len(right) == pytest.approx(finished.outcome.test_accuracy)
    assert finished.outcome.test_accuracy > 0.9
