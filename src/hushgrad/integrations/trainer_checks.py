"""What a Trainer, its arguments, its class or its loader do that private training cannot bear, each with its cure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from hushgrad.errors import IncompatibleFrameworkError

_Wrong = Callable[[Any], bool]
_IN_THE_BACKWARD = ("layerwise", "lomo")
"""How the names of optimizers that update inside the backward end."""

_CHECKS: tuple[tuple[_Wrong, str, str], ...] = (
    (
        lambda args: bool(args.fp16),
        "fp16 scales losses and skips steps by looking at gradients without noise",
        "Use bf16=True",
    ),
    (
        lambda args: bool(args.auto_find_batch_size),
        "auto_find_batch_size trains again where memory ran out, which depends on the records that were drawn",
        "Set per_device_train_batch_size, and gradient_accumulation_steps for a larger batch",
    ),
    (
        lambda args: bool(args.label_smoothing_factor),
        "label_smoothing_factor averages over the tokens of the batch",
        "Pass compute_loss_func=lambda outputs, labels: ..., which returns one loss per example",
    ),
    (
        lambda args: (
            getattr(args, "train_sampling_strategy", "random") != "random"
            or bool(getattr(args, "group_by_length", False))
        ),
        "records are drawn in an order that depends on what they hold",
        "Leave train_sampling_strategy at 'random'",
    ),
    (
        lambda args: bool(args.deepspeed or args.fsdp) or args.n_gpu > 1,
        "it shards the model, or runs replicas of it in one process",
        "Launch one process for each device by torchrun, or one that sees one device (CUDA_VISIBLE_DEVICES=0), without "
        "deepspeed and fsdp",
    ),
    (
        lambda args: bool(getattr(args, "use_liger_kernel", False)),
        "use_liger_kernel hides the losses of single examples",
        "Leave use_liger_kernel out",
    ),
    (
        lambda args: str(getattr(args.optim, "value", args.optim)).endswith(_IN_THE_BACKWARD),
        "its optimizer updates inside the backward, before the noise",
        "Choose another optim, such as adamw_torch",
    ),
    (
        lambda args: any(
            bool(getattr(args, name, False))
            and bool((getattr(args, f"{name}_kwargs", None) or {}).get("use_reentrant"))
            for name in ("gradient_checkpointing", "activation_checkpointing")
        ),
        "use_reentrant=True runs the forward again inside the backward, where nobody sees single examples",
        "Use gradient_checkpointing_kwargs={'use_reentrant': False}",
    ),
    (
        lambda args: bool((_accumulation(args) or {}).get("num_steps")),
        "accelerator_config accumulates batches, and a logical batch is one step",
        "Leave num_steps out of it, and set gradient_accumulation_steps",
    ),
)


def _accumulation(args: Any) -> Any:
    config = args.accelerator_config
    return (
        config.get("gradient_accumulation_kwargs")
        if isinstance(config, dict)
        else getattr(config, "gradient_accumulation_kwargs", None)
    )


MODEL_INIT = (
    "model_init makes several models of the same records",
    "Pass model=, and train each model by a private Trainer with an output_dir of its own; what they cost adds up",
)


_OURS = ("hushgrad.integrations.private_trainer", "hushgrad.integrations.trl_pairs")
_KNOWN_LOSSES = ("transformers.", "trl.trainer.sft_trainer", "trl.trainer.dpo_trainer")
_KNOWN_STEPS = ("transformers.", "trl.")


def has_own_losses(kind: type[Any]) -> bool:
    """Whether the class `kind` of private Trainers says itself what the loss of an example is."""
    return _owner_of("per_example_losses", kind.__mro__) not in _OURS


def _owner_of(name: str, classes: Iterable[type[Any]]) -> str:
    """Return the module of the first of these classes that defines the method `name`."""
    return next(one.__module__ for one in classes if name in vars(one))


COMPUTE_LOSS = (
    "its compute_loss would not be called in training, as it returns one loss for the batch",
    "Define per_example_losses(self, model, inputs) beside it, which returns one loss per example, [B]; compute_loss "
    "is then for evaluation",
)


def problems_of_class(kind: type[Any]) -> list[tuple[str, str]]:
    """Return what of the class `kind` of private Trainers would be passed over in silence."""
    problems = []
    behind = kind.__mro__[max(place for place, one in enumerate(kind.__mro__) if one.__module__ in _OURS) + 1 :]
    if not _owner_of("training_step", behind).startswith(_KNOWN_STEPS):
        problems.append(
            (
                "its training_step would not be called, as a step is made of items of a logical batch",
                "Put it into a subclass of private(Trainer), where it calls super().training_step",
            )
        )
    if not has_own_losses(kind) and not _owner_of("compute_loss", kind.__mro__).startswith(_KNOWN_LOSSES):
        problems.append(COMPUTE_LOSS)
    return problems


def problems_of(args: Any) -> list[tuple[str, str]]:
    """Return what of its arguments does not go with private training."""
    return [(what, cure) for is_wrong, what, cure in _CHECKS if is_wrong(args)]


def require_whole_data(theirs: Any, batch_size: int) -> None:
    """Refuse a loader whose records or batch size private training would not take as they are."""
    if not isinstance(theirs, DataLoader) or isinstance(theirs.dataset, IterableDataset):
        is_stream = isinstance(theirs, DataLoader)
        raise IncompatibleFrameworkError(
            "its dataset is a stream without a length" if is_stream else f"its loader is a {type(theirs).__name__}",
            where="the Trainer",
            cure="Give it a dataset with a length: records are drawn by their number"
            if is_stream
            else "Return a DataLoader from get_train_dataloader",
        )
    batches = theirs.batch_sampler
    while (whole := getattr(batches, "batch_sampler", None)) is not None:  # of several processes: those of all
        batches = whole
    sampler = getattr(batches, "sampler", None)
    count = len(theirs.dataset)  # type: ignore[arg-type]
    is_whole = (
        isinstance(sampler, RandomSampler)
        and not sampler.replacement
        and sampler.num_samples == len(sampler.data_source) == count
    )
    if not is_whole:
        raise IncompatibleFrameworkError(
            f"it samples records with a {type(sampler).__name__} of its own, and private training draws them from the "
            f"whole dataset by itself",
            where="the Trainer",
            cure="Leave train_sampling_strategy at 'random', override no sampler, and give train_dataset= the records "
            "that are meant",
        )
    if theirs.batch_sampler.batch_size != batch_size:  # type: ignore[union-attr]
        raise IncompatibleFrameworkError(
            f"its loader makes batches of {theirs.batch_sampler.batch_size}, and its arguments say {batch_size}",  # type: ignore[union-attr]
            where="the Trainer",
            cure="Set per_device_train_batch_size and gradient_accumulation_steps; a loader of your own takes "
            "self.args.per_device_train_batch_size, which is then the product of both",
        )
