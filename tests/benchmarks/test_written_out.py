"""Training that is written out: the same clipped sums as one example at a time, and the same law of steps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from benchmarks.written_out import clipped_sums, model_of, trained
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hushgrad import AutomaticClipping, ClipRule, FlatClipping
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time
from hushgrad.study.configuration import Privacy, RunConfig
from hushgrad.study.tasks import Task

RULES = [FlatClipping(0.3), AutomaticClipping(1.0, 0.01)]
SENTENCES = torch.tensor([[3, 1, 3, 0], [2, 0, 0, 0], [0, 0, 0, 0], [4, 4, 4, 1]])


def settings(model: str, optimizer: str = "sgd") -> RunConfig:
    return RunConfig(
        task="text" if model == "transformer" else "digits",
        model=model,
        hidden_sizes=(3,),
        privacy=Privacy(target_epsilon=1.0, max_grad_norm=1.0),
        batch_size=4,
        epochs=1,
        optimizer=optimizer,
        learning_rate=0.5,
    )


def task_of(inputs: Tensor, vocabulary_size: int | None = None) -> Task:
    examples = TensorDataset(inputs, torch.tensor([0, 1, 0, 1]))
    return Task("digits", "made up", examples, examples, ("a", "b"), vocabulary_size=vocabulary_size)


def oracle(model: nn.Module, examples: TensorDataset, rule: ClipRule) -> dict[str, Tensor]:
    def loss(row: int) -> Tensor:
        inputs, labels = examples[row : row + 1]
        return nn.functional.cross_entropy(model(inputs), labels)

    return clipped_sum_of(one_at_a_time(model, [partial(loss, row) for row in range(len(examples))]), rule)


@pytest.mark.parametrize("rule", RULES, ids=["flat", "automatic"])
@pytest.mark.parametrize(
    ("kind", "inputs", "words"),
    [("mlp", torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), None), ("transformer", SENTENCES, 5)],
    ids=["mlp", "transformer"],
)
def test_sums_are_those_of_one_example_at_a_time(kind: str, inputs: Tensor, words: int | None, rule: ClipRule) -> None:
    task = task_of(inputs, words)
    model = model_of(settings(kind), task, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    expected = oracle(model, task.train, rule)
    found = clipped_sums(model, *task.train.tensors, rule)
    for (name, _), total in zip(model.named_parameters(), found, strict=True):
        torch.testing.assert_close(total, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("rule", RULES, ids=["flat", "automatic"])
@pytest.mark.parametrize(
    ("kind", "inputs", "words"),
    [("mlp", torch.eye(4), None), ("transformer", SENTENCES, 5)],
    ids=["mlp", "transformer"],
)
def test_a_step_without_noise_moves_by_the_sum_over_the_expected_batch(
    kind: str, inputs: Tensor, words: int | None, rule: ClipRule
) -> None:
    """A batch size of all records draws each of them; sentences are cut to the places that they need."""
    task = task_of(inputs, words)
    before = model_of(settings(kind), task, seed=3)
    expected = oracle(before, task.train, rule)
    after = dict(trained(settings(kind), task, rule, 0.0, 1, seed=3).named_parameters())
    for name, parameter in before.named_parameters():
        torch.testing.assert_close(after[name], parameter - 0.5 * expected[name] / 4, msg=lambda text: text)


def test_noise_is_sigma_times_the_sensitivity_and_follows_from_the_seed() -> None:
    """Differences of one step at two σ are the noise: its standard deviation over 2,000 values is within 10%, six σ."""
    config, rule = settings("mlp"), FlatClipping(0.3)
    config = replace(config, hidden_sizes=(300,))
    task = task_of(torch.eye(4))

    def weights(noise_multiplier: float, seed: int) -> Tensor:
        model = trained(config, task, rule, noise_multiplier, 1, seed)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    quiet = weights(0.0, 5)
    noise = (weights(2.0, 5) - quiet) / 0.5 * config.batch_size
    assert len(noise) > 2000
    assert noise.std() == pytest.approx(2.0 * 0.3, rel=0.1)
    torch.testing.assert_close(weights(2.0, 5), weights(2.0, 5), rtol=0, atol=0)
