"""Private training in Hugging Face's Trainer, and in the Trainers made of it::

    from hushgrad import Privacy
    from hushgrad.integrations.transformers import private

    trainer = private(Trainer)(
        model=model, args=args, train_dataset=data, privacy=Privacy(max_grad_norm=1.0, target_epsilon=8, target_delta=1e-5)
    )
    trainer.train()
    print(trainer.guarantee())

The arguments keep their meaning. A logical batch has per_device_train_batch_size · gradient_accumulation_steps records on
average, at most per_device_train_batch_size of them are in memory at once, and everything that counts steps (warm-up, saving,
evaluation, logging) counts logical ones. Nothing of `transformers` is patched: `private` returns a new class.
"""  # noqa: E501 - an example says more

from __future__ import annotations

from typing import Any

from hushgrad.errors import InvalidArgumentError
from hushgrad.integrations.private_trainer import PrivateTraining
from hushgrad.integrations.trl import is_of_pairs, require_offline
from hushgrad.integrations.trl_pairs import PrivatePairs


def private(trainer_class: type[Any]) -> type[Any]:
    """Return a subclass of a Trainer class that trains privately; the class itself is left as it is.

    The subclass takes one argument more, `privacy`: a `hushgrad.Privacy`. Without a path in it the ledger is
    `ledger.jsonl` in the output folder. `trainer.guarantee()` says what was spent; `trainer.session` is the session.

    The loss of each example is that of the model's own kind (causal, masked and sequence-to-sequence language models,
    token and sequence and image classification, regression), averaged over its own tokens, and is compared with what
    the model itself says of one example; or what `compute_loss_func(outputs, labels)` or a method
    `per_example_losses(self, model, inputs)` returns, one loss per example. A class with a `compute_loss` or
    `training_step` of its own, which private training would not call, is refused.

    TRL's `SFTTrainer` trains so, too, and in its `DPOTrainer` a record is a pair of answers with its prompt.

    Guarantee: no loss, accuracy, gradient norm, count of tokens or duration of training data is logged or saved.

    Raises:
        InvalidArgumentError: not a class of Trainers.
        IncompatibleFrameworkError: a Trainer that learns from what its own model generates.
    """
    if not isinstance(trainer_class, type) or not hasattr(trainer_class, "get_train_dataloader"):
        raise InvalidArgumentError(
            "private takes a class of Trainers", cure="Write private(Trainer)(model=..., args=..., privacy=...)"
        )
    if issubclass(trainer_class, PrivateTraining):
        raise InvalidArgumentError("the class trains privately already", cure="Use it as it is")
    require_offline(trainer_class)
    base = PrivatePairs if is_of_pairs(trainer_class) else PrivateTraining
    own = (
        {"per_example_losses": trainer_class.per_example_losses} if hasattr(trainer_class, "per_example_losses") else {}
    )
    return type(f"Private{trainer_class.__name__}", (base, trainer_class), own)
