"""All settings of one training run, checked before any data is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hushgrad.arguments import non_negative_number, one_of, open_unit_interval, positive_number, whole_number
from hushgrad.clipping.named import NAMES, rule_named
from hushgrad.clipping.rule import ClipRule
from hushgrad.errors import InvalidArgumentError
from hushgrad.mechanism import DPSGD
from hushgrad.mechanism.known import NAMED
from hushgrad.mechanism.named_noise import CHOSEN, apart, kind_of
from hushgrad.sampling.choice import NAMES as SAMPLINGS
from hushgrad.sampling.choice import passes_of, scheme_named, size_of
from hushgrad.sampling.scheme import SamplingScheme
from hushgrad.sampling.truncated_poisson import TruncatedPoissonSampling
from hushgrad.strategies.banded import INDEPENDENT
from hushgrad.strategies.optimal_banded import optimal_banded
from hushgrad.study.class_weights import CLASS_WEIGHTS, ClassWeights, check_class_weights
from hushgrad.study.models import ACTIVATIONS, MODELS, require_base
from hushgrad.study.pretrained.classifier import Base
from hushgrad.study.pretrained.tuning import LORA
from hushgrad.study.settings import Kind, check_settings, choice, fraction, number, setting, text, whole
from hushgrad.study.tasks import TASKS, TaskOptions
from hushgrad.study.tasks.people import People
from hushgrad.study.wide_resnet import require_sizes

DEFAULT_DELTA = 1e-5

OptimizerMaker = Callable[[Iterable[nn.Parameter], float, float], torch.optim.Optimizer]

OPTIMIZERS: dict[str, OptimizerMaker] = {
    "sgd": lambda parameters, rate, momentum: torch.optim.SGD(parameters, lr=rate, momentum=momentum),
    "adam": lambda parameters, rate, momentum: torch.optim.Adam(parameters, lr=rate, betas=(momentum, 0.999)),
    "adamw": lambda parameters, rate, momentum: torch.optim.AdamW(parameters, lr=rate, betas=(momentum, 0.999)),
    "rmsprop": lambda parameters, rate, momentum: torch.optim.RMSprop(parameters, lr=rate, momentum=momentum),
}


def _widths(given: str) -> tuple[int, ...]:
    return () if given == "none" else tuple(int(width) for width in given.split(","))


def _check_widths(name: str, value: Any) -> None:
    if not isinstance(value, tuple):
        raise InvalidArgumentError(
            f"must be whole numbers, got {type(value).__name__}", where=name, cure="Pass a tuple, such as (64, 32)"
        )
    for width in value:
        whole_number(f"each width of {name}", width, minimum=1)


HIDDEN_SIZES = Kind(_widths, _check_widths, "N,N,…", "whole numbers, such as 64,32, or none")


def _check_clipping(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise InvalidArgumentError(
            f"must be the name of a clip rule, got {type(value).__name__}", where=name, cure='Pass such as "automatic"'
        )
    rule_named(value, 1.0, 1.0)


CLIPPING = Kind(str, _check_clipping, "RULE", f"one of {', '.join(NAMES)}, or such as automatic:gamma=0.1")


NOISES = (*NAMED, *(name for name in CHOSEN if name != "buffered"))


def _check_noise(name: str, value: Any) -> None:
    if value == "buffered":
        raise InvalidArgumentError(
            "buffered noise is for batches that come in one order in every pass, and these runs draw theirs at random",
            where=name,
            cure="Take banded, or best for the one that leaves less; in Python "
            'make_private_with_epsilon(noise="buffered", poisson_sampling=False)',
        )
    one_of(name, value, NOISES)


NOISE = Kind(str, _check_noise, "|".join(NOISES), f"one of {', '.join(NOISES)}")


def _delta(name: str, value: Any) -> float:
    return open_unit_interval(name, value, "the usual choice is below 1/N")


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    """How private a run is: a noise multiplier σ, or the ε that σ is chosen for; exactly one of the two.

    `noise_multiplier` 0 trains with clipping and without noise: ε is ∞. A target decides how much noise there is; a
    budget, `max_epsilon`, decides nothing but whether the run may go on.
    """

    max_grad_norm: float = field(
        metadata=setting(number(positive_number, "C"), "Clipping norm of each example's gradient.")
    )
    clipping: str = field(
        default="flat",
        metadata=setting(
            CLIPPING,
            "How each example is bounded: a clip rule by its name, constants after a colon (docs/clipping.md).",
        ),
    )
    noise_multiplier: float | None = field(
        default=None,
        metadata=setting(number(non_negative_number, "SIGMA"), "Noise σ; give this or the target ε.", key=None),
    )
    target_epsilon: float | None = field(
        default=None,
        metadata=setting(number(positive_number), "Target ε at δ: the noise is chosen to meet it.", "--epsilon"),
    )
    max_epsilon: float | None = field(
        default=None,
        metadata=setting(number(positive_number), "Budget of ε at δ: a run that would spend more is refused."),
    )
    delta: float = field(default=DEFAULT_DELTA, metadata=setting(number(_delta), "δ; must be below 1/N.", key=None))
    noise: str = field(
        default="gaussian",
        metadata=setting(
            NOISE,
            "grid: on a grid, which floating point does not betray; with a target ε also banded (correlated between "
            "steps) or best (banded where that leaves less).",
        ),
    )
    sampling: str = field(
        default="poisson",
        metadata=setting(
            choice(SAMPLINGS),
            "balls-in-bins: every record in one random step of each pass; fixed-size: batches of exactly that size.",
            key="sampling_name",
        ),
    )
    max_batch_size: int | None = field(
        default=None,
        metadata=setting(whole(1), "Poisson draws with more examples are cut at random to so many, and charged so."),
    )
    spare_steps: int = field(
        default=0,
        metadata=setting(whole(0), "Steps beyond the planned ones that are paid for, taken only after crashes."),
    )

    def clip_rule(self, batch_size: float) -> ClipRule:
        """Return the clip rule of a run whose batches have this expected size."""
        return rule_named(self.clipping, self.max_grad_norm, batch_size)

    def scheme(self, batch_size: int, population: int, people: People | None = None) -> SamplingScheme:
        """Return how the examples of a run are drawn, or its people: a pass has ⌈population / batch size⌉ steps."""
        if people is not None:
            return people.sampling(batch_size)
        if self.max_batch_size is not None:
            return TruncatedPoissonSampling(batch_size / population, population, self.max_batch_size)
        return scheme_named(self.sampling, batch_size, population, -(-population // batch_size))

    def plan(
        self, batch_size: int, population: int, epochs: int, noise_multiplier: float, people: People | None = None
    ) -> DPSGD:
        """Return the mechanism of a run with so much noise; where noise is correlated, that of the fewest bands."""
        sampling, steps = self.scheme(batch_size, population, people), -(-population // batch_size)
        strategy = optimal_banded(2, 2) if self.noise in CHOSEN else INDEPENDENT
        return DPSGD(
            noise_multiplier=noise_multiplier,
            noise_kind=kind_of(self.noise),
            clipping=self.clip_rule(batch_size),
            sampling=sampling if strategy == INDEPENDENT else apart(sampling, strategy, steps_per_pass=steps),
            expected_batch_size=size_of(sampling, batch_size, population),
            steps=epochs * steps + self.spare_steps,
            passes=passes_of(sampling, epochs * steps, steps, self.spare_steps),
            strategy=strategy,
        )

    def __post_init__(self) -> None:
        if (self.noise_multiplier is None) == (self.target_epsilon is None):
            raise InvalidArgumentError(
                "privacy must have exactly one of noise_multiplier and target_epsilon",
                cure="Give one: noise_multiplier=1 fixes the noise, target_epsilon=3 has it chosen",
            )
        check_settings(self)
        if self.max_batch_size is not None and self.sampling != "poisson":
            raise InvalidArgumentError(
                f"cuts Poisson draws, and the sampling is {self.sampling}", where="max_batch_size", cure="Leave it out"
            )
        if self.noise in CHOSEN and self.target_epsilon is None:
            raise InvalidArgumentError(
                f"{self.noise} noise is chosen for a number of steps and a target ε, and none is given",
                where="noise",
                cure="Give target_epsilon (--epsilon) in place of noise_multiplier",
            )
        self.plan(1, 2, 1, 1.0)  # refuses what does not go together, whatever the data are
        target, most = self.target_epsilon, self.max_epsilon
        if self.spare_steps and target is None and most is None:
            raise InvalidArgumentError(
                "spare_steps go with a target ε or a budget; with a noise multiplier alone nothing limits the steps",
                where="spare_steps",
                cure="Leave spare_steps out: a run that was killed goes on to its planned end without them",
            )
        if target is not None and most is not None and target > most:
            raise InvalidArgumentError(
                f"the target ε {target:g} is beyond the budget max_epsilon = {most:g}",
                cure="Lower target_epsilon, or leave max_epsilon out",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One training run. `privacy` None is an ordinary run, for comparison.

    Each field's help says what it is. `threads` None leaves the number to torch; `max_physical_batch_size` None puts
    whole batches in memory.

    Raises InvalidArgumentError for every bad value, before data is read.
    """

    task: str = field(metadata=setting(choice(TASKS), "What to train on."))
    options: TaskOptions = field(default_factory=TaskOptions)
    model: str = field(metadata=setting(choice(MODELS), "Kind of model."))
    hidden_sizes: tuple[int, ...] = field(
        default=(64,),
        metadata=setting(
            HIDDEN_SIZES, "Widths of the mlp's hidden layers; 'none' for a linear model.", "--hidden", key=None
        ),
    )
    activation: str = field(default="tanh", metadata=setting(choice(ACTIVATIONS), "Between the model's layers."))
    depth: int = field(default=16, metadata=setting(whole(10, "L"), "wrn: its layers, 6n + 4.", key=None))
    width: int = field(
        default=4, metadata=setting(whole(1, "K"), "wrn: its channels, in 16, 32 and 64 by stage.", key=None)
    )
    lora_rank: int = field(default=8, metadata=setting(whole(1, "R"), "base-lora: rank of the adapters.", key=None))
    privacy: Privacy | None
    batch_size: int = field(
        metadata=setting(
            whole(1),
            "Expected size of a batch, drawn at random (--sampling); with --person in people.",
            key="expected_batch_size",
        )
    )
    max_physical_batch_size: int | None = field(
        default=None,
        metadata=setting(whole(1), "Most examples in memory at once; changes nothing else.", "--physical-batch-size"),
    )
    epochs: int = field(metadata=setting(whole(1), "Passes over the data (N / batch size steps each)."))
    optimizer: str = field(default="sgd", metadata=setting(choice(OPTIMIZERS), "The optimizer."))
    learning_rate: float = field(metadata=setting(number(positive_number), "Learning rate.", "--lr"))
    momentum: float = field(default=0.9, metadata=setting(number(fraction), "Momentum (Adam: the first β)."))
    augmentations: int = field(
        default=0, metadata=setting(whole(0, "K"), "Images: the mean over K random views is one loss; 0: no views.")
    )
    average_decay: float = field(
        default=0.0,
        metadata=setting(
            number(fraction, "DECAY"),
            "Test and release the parameters' average over the steps; 0: the last ones.",
            "--average",
        ),
    )
    class_weights: ClassWeights | None = field(
        default=None,
        metadata=setting(
            CLASS_WEIGHTS,
            "Weights of classes in the loss, as public numbers (others weigh 1); 'counted' balances classes by noised "
            "counts.",
        ),
    )
    class_weights_epsilon: float | None = field(
        default=None,
        metadata=setting(number(positive_number), "What counting the classes may cost of the total ε, such as 0.1."),
    )
    loss_reduction: str = field(
        default="mean", metadata=setting(choice(("mean", "sum")), "sum: the update is not divided.")
    )
    seed: int = field(
        default=0,
        metadata=setting(
            whole(0), "Initial parameters (an ordinary run: the order, too); never noise or private sampling."
        ),
    )
    device: str = field(default="cpu", metadata=setting(text(), "Such as cpu or cuda:0."))
    threads: int | None = field(default=None, metadata=setting(whole(1), "CPU threads."))

    def __post_init__(self) -> None:
        check_settings(self)
        if self.augmentations and TASKS[self.task].shifts is None:
            raise InvalidArgumentError(f"task {self.task!r} has no images to augment", cure="Leave augmentations out")
        clipping = None if self.privacy is None else self.privacy.clipping
        check_class_weights(self.class_weights, self.class_weights_epsilon, clipping)
        target = self.privacy.target_epsilon if self.privacy else None
        parts = {
            "vocabulary_epsilon": self.options.vocabulary_epsilon,
            "class_weights_epsilon": self.class_weights_epsilon,
        }
        counted = {name: own for name, own in parts.items() if own is not None}
        if counted and target is not None and sum(counted.values()) >= target:
            raise InvalidArgumentError(
                f"{' and '.join(counted)} must be below the target ε {target:g}, which covers what is counted and "
                f"training together, got {sum(counted.values()):g}",
                cure=f"Lower {' or '.join(counted)}, or raise target_epsilon",
            )
        _check_people(self)
        require_sizes(self.depth, self.width)
        require_base(self.model, self.options.base is not None)
        _check_device(self.device)

    @property
    def base(self) -> Base | None:
        """What a model of a base is made from; None for every other."""
        return None if self.options.base is None else Base(self.lora_rank, self.options.base)


def named_model(model: str | None, options: TaskOptions | None) -> str | None:
    """Return the model that was named: with a base and no name its adapters; None for the task's own."""
    return LORA if model is None and options is not None and options.base is not None else model


FEWEST_BATCHES = 4
"""In how many batches the data come at least, where nobody chose the size of a batch."""


def fitting_batch_size(found: int, population: int) -> int:
    """Return a batch size that nobody chose: the one found for a task, at most a fourth of the data.

    `population` is the public number of units of privacy to train on.
    """
    return min(found, max(1, population // FEWEST_BATCHES))


def suggested_run(
    task: str,
    *,
    privacy: Privacy | None,
    options: TaskOptions | None = None,
    model: str | None = None,
    population: int | None = None,
) -> RunConfig:
    """Return the settings that suit a task, with its own model or another; change them with `dataclasses.replace`.

    They are those found for the ε nearest to the target ε of `privacy`; a run with a noise multiplier, or without
    privacy, gets those of ε = 3. A `model` that no settings were found for gets those of the task's own model. The
    clipping norm is part of `privacy`: `max_grad_norm_for` gives the one that suits.

    The batch size was found for all of a task's data. With `population` (`Task.population`), where these are few, such
    as two classes of many, it is at most a fourth of them, as in `hushgrad train`.
    """
    model = named_model(model, options)
    recipe = TASKS[one_of("task", task, tuple(TASKS))].recipe_at(privacy.target_epsilon if privacy else None, model)
    return RunConfig(
        task=task,
        model=recipe.model if model is None else model,
        batch_size=recipe.batch_size if population is None else fitting_batch_size(recipe.batch_size, population),
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


def max_grad_norm_for(task: str, target_epsilon: float | None, model: str | None = None) -> float:
    """Return the clipping norm that suits a task at a target ε (None: a run with a noise multiplier).

    `model` is one that the user named; None for the task's own.
    """
    return TASKS[one_of("task", task, tuple(TASKS))].recipe_at(target_epsilon, model).max_grad_norm


def _check_people(config: RunConfig) -> None:
    """Raise InvalidArgumentError for what does not go with whole people."""
    privacy = config.privacy
    if config.options.person is not None and config.class_weights_epsilon is not None:
        raise InvalidArgumentError(
            "classes are counted over records, bounded for one of them, and ε is to be for people with several",
            where="class_weights",
            cure="Give public numbers in place of 'counted', such as yes:20",
        )
    if config.options.person is None or privacy is None:
        return
    if privacy.sampling != "poisson" or privacy.max_batch_size is not None or privacy.noise in CHOSEN:
        raise InvalidArgumentError(
            "people are drawn each by themselves, whole, in every step, with noise that is independent between steps",
            where="person",
            cure="Leave sampling, max_batch_size and correlated noise out",
        )
    most, rows = config.options.records_per_person or 1, config.max_physical_batch_size
    if rows is not None and rows < most:
        raise InvalidArgumentError(
            f"must be at least records_per_person = {most}, since a person's rows are never parted, got {rows}",
            where="max_physical_batch_size",
            cure="Raise it, or lower records_per_person",
        )


def _check_device(name: str) -> None:
    """Raise InvalidArgumentError unless a tensor can be put on the device."""
    try:
        torch.empty(0, device=torch.device(name))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InvalidArgumentError(
            f"device must be one that is here, got {name!r}", cure="Choose such as 'cpu', 'cuda' or 'cuda:1'"
        ) from error
    if torch.device(name).type == "meta":
        raise InvalidArgumentError("device must hold data; 'meta' does not", cure="Choose such as 'cpu' or 'cuda'")
