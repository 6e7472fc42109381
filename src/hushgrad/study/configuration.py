"""All settings of one training run, checked before any data is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from hushgrad.arguments import (
    non_negative_number,
    one_of,
    open_unit_interval,
    positive_number,
    real_number,
    whole_number,
)
from hushgrad.errors import InvalidArgumentError
from hushgrad.study.models import ACTIVATIONS, MODELS
from hushgrad.study.tasks import TASKS, TaskOptions

DEFAULT_DELTA = 1e-5

OptimizerMaker = Callable[[Iterable[nn.Parameter], float, float], torch.optim.Optimizer]

OPTIMIZERS: dict[str, OptimizerMaker] = {
    "sgd": lambda parameters, rate, momentum: torch.optim.SGD(parameters, lr=rate, momentum=momentum),
    "adam": lambda parameters, rate, momentum: torch.optim.Adam(parameters, lr=rate, betas=(momentum, 0.999)),
    "adamw": lambda parameters, rate, momentum: torch.optim.AdamW(parameters, lr=rate, betas=(momentum, 0.999)),
    "rmsprop": lambda parameters, rate, momentum: torch.optim.RMSprop(parameters, lr=rate, momentum=momentum),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    """How private a run is: a noise multiplier σ, or the ε that σ is to be found for; exactly one of the two.

    `noise_multiplier` 0 trains with clipping and without noise: ε is ∞.
    """

    max_grad_norm: float
    noise_multiplier: float | None = None
    target_epsilon: float | None = None
    delta: float = DEFAULT_DELTA

    def __post_init__(self) -> None:
        if (self.noise_multiplier is None) == (self.target_epsilon is None):
            raise InvalidArgumentError("give exactly one of noise_multiplier and target epsilon")
        if self.noise_multiplier is not None:
            non_negative_number("noise_multiplier", self.noise_multiplier)
        if self.target_epsilon is not None:
            positive_number("target epsilon", self.target_epsilon)
        positive_number("max_grad_norm", self.max_grad_norm)
        open_unit_interval("delta", self.delta, "Pass less than 1 / the number of training examples")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One training run. `privacy` None is an ordinary run, for comparison.

    `batch_size` is the expected size of a logical batch; `max_physical_batch_size` bounds what is in memory at once.
    `momentum` is the first β for Adam; `threads` is for the CPU, None leaves the number to torch. `seed` fixes initial
    parameters and an ordinary run's order of examples, never noise or private sampling.

    `augmentations` is the number of random views of each image whose mean loss is the image's loss (0: the image as it
    is). With an `average_decay` above 0 the average of the parameters over the steps is tested and released (see
    `averaging`), in place of the last ones.

    Raises InvalidArgumentError for every bad value, before data is read.
    """

    task: str
    model: str
    batch_size: int
    epochs: int
    learning_rate: float
    privacy: Privacy | None
    options: TaskOptions = field(default_factory=TaskOptions)
    hidden_sizes: tuple[int, ...] = (64,)
    activation: str = "tanh"
    max_physical_batch_size: int | None = None
    optimizer: str = "sgd"
    momentum: float = 0.9
    augmentations: int = 0
    average_decay: float = 0.0
    loss_reduction: str = "mean"
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        one_of("task", self.task, tuple(TASKS))
        one_of("model", self.model, MODELS)
        one_of("activation", self.activation, tuple(ACTIVATIONS))
        one_of("optimizer", self.optimizer, tuple(OPTIMIZERS))
        one_of("loss_reduction", self.loss_reduction, ("mean", "sum"))
        whole_number("batch_size", self.batch_size, minimum=1)
        whole_number("epochs", self.epochs, minimum=1)
        whole_number("seed", self.seed, minimum=0)
        if whole_number("augmentations", self.augmentations, minimum=0) and TASKS[self.task].shifts is None:
            raise InvalidArgumentError(f"task {self.task!r} has no images to augment; leave augmentations out")
        if not 0 <= real_number("average_decay", self.average_decay) < 1:
            raise InvalidArgumentError(f"average_decay must be in [0, 1), got {self.average_decay}")
        if self.max_physical_batch_size is not None:
            whole_number("max_physical_batch_size", self.max_physical_batch_size, minimum=1)
        if self.threads is not None:
            whole_number("threads", self.threads, minimum=1)
        for width in self.hidden_sizes:
            whole_number("hidden size", width, minimum=1)
        positive_number("learning_rate", self.learning_rate)
        if not 0 <= real_number("momentum", self.momentum) < 1:
            raise InvalidArgumentError(f"momentum must be in [0, 1), got {self.momentum}")
        own, target = self.options.vocabulary_epsilon, self.privacy.target_epsilon if self.privacy else None
        if own is not None and target is not None and own >= target:
            raise InvalidArgumentError(
                f"vocabulary_epsilon must be below the target epsilon {target:g}, which covers vocabulary and training "
                f"together, got {own:g}"
            )
        _check_device(self.device)


def suggested_run(task: str, *, privacy: Privacy | None, options: TaskOptions | None = None) -> RunConfig:
    """Return the settings that suit a task; change them with `dataclasses.replace`.

    They are those found for the ε nearest to the target ε of `privacy`; a run with a noise multiplier, or without
    privacy, gets those of ε = 3. The clipping norm is part of `privacy`: `max_grad_norm_for` gives the one that suits.
    """
    recipe = TASKS[one_of("task", task, tuple(TASKS))].recipe_at(privacy.target_epsilon if privacy else None)
    return RunConfig(
        task=task,
        model=recipe.model,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        privacy=privacy,
        options=options or TaskOptions(),
        hidden_sizes=recipe.hidden_sizes,
        activation=recipe.activation,
        optimizer=recipe.optimizer,
        momentum=recipe.momentum,
        augmentations=recipe.augmentations,
        average_decay=recipe.average_decay,
        max_physical_batch_size=recipe.max_physical_batch_size,
        threads=recipe.threads,
    )


def max_grad_norm_for(task: str, target_epsilon: float | None) -> float:
    """Return the clipping norm that suits a task at a target ε (None: a run with a noise multiplier)."""
    return TASKS[one_of("task", task, tuple(TASKS))].recipe_at(target_epsilon).max_grad_norm


def _check_device(name: str) -> None:
    """Raise InvalidArgumentError unless a tensor can be put on the device."""
    try:
        torch.empty(0, device=torch.device(name))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InvalidArgumentError(
            f"device must be one that is here ('cpu', 'cuda', 'cuda:1'), got {name!r}"
        ) from error
    if torch.device(name).type == "meta":
        raise InvalidArgumentError("device must hold data; 'meta' does not")
