"""What is known of the Trainers of TRL: which learn from their records alone, and which of their settings are exact.

Classes are told by their names, so that nothing of TRL is imported where it is not used.
"""

from __future__ import annotations

from typing import Any

from hushgrad.errors import IncompatibleFrameworkError
from hushgrad.integrations.pair_losses import LOSSES

_ONLINE = (
    *("GRPO", "RLOO", "PPO", "OnlineDPO", "NashMD", "XPO", "GKD", "GOLD", "Distillation", "MiniLLM", "PAPO", "GFPO"),
    *("A2PO", "AsyncDistillation", "AsyncGRPO", "GMPO", "IWOPD", "SDFT", "SDPO", "ServerDistillation"),
)
_OF_OTHERS = ("KTO", "BCO")


def _is(trainer_class: type[Any], *names: str) -> bool:
    wanted = {f"{name}Trainer" for name in names}
    return any(one.__name__ in wanted and one.__module__.startswith("trl.") for one in trainer_class.__mro__)


def is_of_pairs(trainer_class: type[Any]) -> bool:
    """Whether a record of a Trainer is a pair of answers with its prompt."""
    return _is(trainer_class, "DPO")


def require_offline(trainer_class: type[Any]) -> None:
    """Refuse a Trainer whose examples are not its records. Raises `IncompatibleFrameworkError`."""
    if _is(trainer_class, *_ONLINE):
        raise IncompatibleFrameworkError(
            "it learns from texts that its own model generates and others judge: a step holds no loss of one record, "
            "and rewards are compared within a group",
            where=trainer_class.__name__,
            cure="Generate and judge beforehand, and train on the records that come of it with private(SFTTrainer) or "
            "private(DPOTrainer)",
        )
    if _is(trainer_class, *_OF_OTHERS):
        raise IncompatibleFrameworkError(
            "the loss of a record is compared with a mean over other records of its batch",
            where=trainer_class.__name__,
            cure="Make pairs of preferred and rejected answers, and train with private(DPOTrainer)",
        )


def problems_of_config(trainer_class: type[Any], args: Any) -> list[tuple[str, str]]:
    """Return what of TRL's own arguments does not go with private training."""
    problems = []
    if getattr(args, "activation_offloading", False):
        problems.append(
            (
                "activation_offloading is a part of TRL's own step, which is not run",
                "Leave activation_offloading out; gradient_checkpointing saves memory, too",
            )
        )
    if _is(trainer_class, "SFT"):
        problems += _of_texts(args)
    if is_of_pairs(trainer_class):
        problems += _of_pairs(args)
    return problems


def _of_texts(args: Any) -> list[tuple[str, str]]:
    problems = []
    if getattr(args, "packing", False) or getattr(args, "padding_free", False):
        problems.append(
            (
                "packing and padding_free put several records into one row, and one record into several",
                "Set packing=False and padding_free=False",
            )
        )
    if getattr(args, "loss_type", "nll") != "nll":
        problems.append(
            (
                f"loss_type={args.loss_type!r} is no loss of the model's own, which private training compares with",
                "Leave loss_type at 'nll'; another loss is compute_loss_func=lambda outputs, labels: ..., which "
                "returns one loss per example",
            )
        )
    return problems


def _of_pairs(args: Any) -> list[tuple[str, str]]:
    problems = []
    kinds = [args.loss_type] if isinstance(args.loss_type, str) else args.loss_type
    if unknown := [kind for kind in kinds if kind not in LOSSES]:
        problems.append(
            (
                f"loss_type {', '.join(unknown)}: its pairs are sorted or averaged together, or not known apart",
                f"Choose of {', '.join(LOSSES)}",
            )
        )
    for name, plain, why in (
        ("use_weighting", False, "weights pairs by their own probabilities"),
        ("ld_alpha", None, "weights tokens by the length of the other answer"),
        ("f_divergence_type", "reverse_kl", "is another divergence"),
    ):
        if (value := getattr(args, name, plain)) != plain:
            problems.append((f"{name}={getattr(value, 'value', value)!r} {why}", f"Leave {name} at {plain!r}"))
    return problems


def problems_of_model(trainer: Any) -> list[tuple[str, str]]:
    """Return what a Trainer of TRL made of its model that does not go with private training."""
    problems = []
    if getattr(trainer, "aux_loss_enabled", False):
        problems.append(
            (
                "its model adds a loss over the tokens of the whole batch (of its router)",
                "Set router_aux_loss_coef=0.0",
            )
        )
    if is_of_pairs(type(trainer)) and getattr(trainer, "_is_vision_dataset", False):
        problems.append(("pairs with images are not known apart", "Give it pairs of texts"))
    return problems
