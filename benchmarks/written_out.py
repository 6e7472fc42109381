"""DP-SGD written out plainly, for many short runs whose draws and noise follow from a seed.

Such a run has no session, no ledger and no checks, so it is private for nobody: it tells how settings compare, in a
tenth of the time of `hushgrad train`. Two runs with one seed begin with the same parameters, draw the same batches and
get the same noise in units of σC, so that what differs between them is what their settings do. The factors of examples
are those of the library's clip rule; σ is that of its accountant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.accuracy import places_of_each
from hushgrad import ClipRule
from hushgrad.accounting.calibration import calibrate_noise_multiplier, poisson_steps
from hushgrad.study.averaging import ParameterAverage
from hushgrad.study.configuration import OPTIMIZERS, RunConfig
from hushgrad.study.tasks import Task
from hushgrad.study.training import model_for
from hushgrad.study.transformer import Transformer

SENTENCES_AT_ONCE = 512
VALUES_AT_ONCE = 1 << 19
"""Of the inputs of a piece of a batch: it stays in a processor's cache."""


def model_of(config: RunConfig, task: Task, seed: int) -> nn.Module:
    """Return the model with the parameters that the seed gives."""
    model = model_for(replace(config, seed=seed), task)
    if isinstance(model, Transformer):
        model.places = places_of_each  # type: ignore[method-assign]
    return model


def noise_multiplier_of(config: RunConfig, records: int) -> tuple[float, int]:
    """Return σ and the number of steps."""
    assert config.privacy is not None
    assert config.privacy.target_epsilon is not None
    steps = config.epochs * -(-records // config.batch_size)
    sigma = calibrate_noise_multiplier(
        target_epsilon=config.privacy.target_epsilon,
        target_delta=config.privacy.delta,
        composition=poisson_steps(config.batch_size / records, steps),
    )
    return sigma, steps


def trained(config: RunConfig, task: Task, rule: ClipRule, noise_multiplier: float, steps: int, seed: int) -> nn.Module:
    """Train a model on all records of `task.train` and return it, or the average of its steps."""
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = task.train.tensors
    model = model_of(config, task, seed)
    parameters = list(model.parameters())
    optimizer = OPTIMIZERS[config.optimizer](parameters, config.learning_rate, config.momentum)
    average = ParameterAverage(model, config.average_decay) if config.average_decay else None
    std = noise_multiplier * rule.sensitivity
    for _ in range(steps):
        drawn = torch.rand(len(labels), generator=generator) < config.batch_size / len(labels)
        sums = [std * torch.randn(parameter.shape, generator=generator) for parameter in parameters]
        for rows, length in _pieces(inputs, drawn.nonzero().flatten()):
            for total, part in zip(sums, clipped_sums(model, inputs[rows, :length], labels[rows], rule), strict=True):
                total += part
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.grad = total / config.batch_size
        optimizer.step()
        if average is not None:
            average.update(model)
    return model if average is None else average.model


def clipped_sums(model: nn.Module, inputs: Tensor, labels: Tensor, rule: ClipRule) -> tuple[Tensor, ...]:
    """Return for each parameter Σ_i c_i·g_i, c_i the rule's factor for the norm of g_i over all parameters.

    Norms come from what enters a layer and the gradient of what leaves it; a second backward weighs the losses.
    """
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda called, given, out: calls.append((called, given[0].detach(), out)))
        for layer in model.modules()
        if next(layer.parameters(recurse=False), None) is not None
    ]
    losses = functional.cross_entropy(model(inputs), labels, reduction="none")
    for hook in hooks:
        hook.remove()
    assert len(calls) == len(hooks), "each layer is called once"
    found = torch.autograd.grad(losses.sum(), [out for *_, out in calls], retain_graph=True)
    squares = torch.zeros(len(labels))
    for (layer, given, _), gradients in zip(calls, found, strict=True):
        squares += SQUARES[type(layer)](layer, given, gradients)
    factors = rule.factors(squares.sqrt().unsqueeze(0))[0]
    return torch.autograd.grad(losses, list(model.parameters()), factors.to(losses.dtype))


def _of_linear(layer: nn.Module, given: Tensor, gradients: Tensor) -> Tensor:
    if given.ndim == 2:
        return (torch.linalg.vector_norm(given, dim=1).square() + 1) * gradients.square().sum(1)
    weight = torch.einsum("bto,bti->boi", gradients, given)
    return weight.square().sum((1, 2)) + gradients.sum(1).square().sum(1)


def _of_layer_norm(layer: nn.Module, given: Tensor, gradients: Tensor) -> Tensor:
    assert isinstance(layer, nn.LayerNorm)
    normal = functional.layer_norm(given, layer.normalized_shape, eps=layer.eps)
    return (gradients * normal).sum(1).square().sum(1) + gradients.sum(1).square().sum(1)


def _of_embedding(layer: nn.Module, given: Tensor, gradients: Tensor) -> Tensor:
    same = given.unsqueeze(1) == given.unsqueeze(2)
    return ((gradients @ gradients.mT) * same).sum((1, 2))


SQUARES: dict[type[nn.Module], Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    nn.Linear: _of_linear,
    nn.LayerNorm: _of_layer_norm,
    nn.Embedding: _of_embedding,
}
"""By layer: the squared norm of each example's gradient, [B]. Each layer has a bias where it can."""


def _pieces(inputs: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, int | None]]:
    """Yield the rows in pieces; of sentences those of like length together, and how many of their places they need."""
    if inputs.dtype.is_floating_point:
        yield from ((piece, None) for piece in rows.split(max(1, VALUES_AT_ONCE // inputs[0].numel())))
        return
    places = inputs.shape[1]
    words = (inputs[rows] != 0) * torch.arange(1, places + 1)
    lengths = words.amax(1)
    lengths[lengths == 0] = places  # one without words reads all of its padding
    lengths, order = lengths.sort()
    for piece, needed in zip(rows[order].split(SENTENCES_AT_ONCE), lengths.split(SENTENCES_AT_ONCE), strict=True):
        yield piece, int(needed[-1])
