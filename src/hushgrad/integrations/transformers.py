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

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hushgrad.accounting.conditions import Condition
from hushgrad.accounting.guarantee import Guarantee
from hushgrad.accounting.ledger.receipt import Receipt
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.errors import (
    CheckpointError,
    HushgradError,
    InvalidArgumentError,
    ProtocolError,
)
from hushgrad.extras import needs_extra
from hushgrad.integrations.incompatible import refuse
from hushgrad.integrations.model_losses import of_examples, require_own_loss
from hushgrad.integrations.receipt_file import RECEIPT, read_receipt, write_receipt
from hushgrad.integrations.trainer_checks import (
    COMPUTE_LOSS,
    MODEL_INIT,
    problems_of,
    problems_of_class,
    require_whole_data,
)
from hushgrad.privacy import Privacy
from hushgrad.sampling.loader import PrivateLoader
from hushgrad.session.session import Session

with needs_extra("hf", "hushgrad.integrations.transformers"):
    from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

OF_TRAINING_DATA = frozenset(
    {
        *("loss", "train_loss", "grad_norm", "aux_loss", "entropy", "mean_token_accuracy"),
        *("total_flos", "num_input_tokens_seen", "num_tokens"),
        *("train_runtime", "train_samples_per_second", "train_steps_per_second"),
    }
)
"""What a Trainer logs and that comes from training data without noise, or shows how many records were drawn."""

OF_MEMORY = ("init_mem_", "train_mem_", "before_init_mem_")
"""How what a Trainer says of the memory in use begins: it goes with the records that were drawn."""

SELECTED = Condition(
    "selection by evaluation",
    "which of its checkpoints the Trainer kept, or when it stopped, was decided by its evaluation data: what that "
    "choice tells of those records is not counted",
)

TIMED = Condition(
    "times of log entries",
    "its trackers write down when each entry was logged: how long the steps between took, which goes with the number "
    "of records that were drawn, is not covered",
)


def private(trainer_class: type[Any]) -> type[Any]:
    """Return a subclass of a Trainer class that trains privately; the class itself is left as it is.

    The subclass takes one argument more, `privacy`: a `hushgrad.Privacy`. Without a path in it the ledger is
    `ledger.jsonl` in the output folder. `trainer.guarantee()` says what was spent; `trainer.session` is the session.

    The loss of each example is that of the model's own kind (causal, masked and sequence-to-sequence language models,
    token and sequence and image classification, regression), averaged over its own tokens, and is compared with what
    the model itself says of one example; or what `compute_loss_func(outputs, labels)` or a method
    `per_example_losses(self, model, inputs)` returns, one loss per example. A class with a `compute_loss` or
    `training_step` of its own, which private training would not call, is refused.

    Guarantee: no loss, accuracy, gradient norm, count of tokens or duration of training data is logged or saved.

    Raises:
        InvalidArgumentError: not a class of Trainers.
    """
    if not isinstance(trainer_class, type) or not hasattr(trainer_class, "get_train_dataloader"):
        raise InvalidArgumentError(
            "private takes a class of Trainers", cure="Write private(Trainer)(model=..., args=..., privacy=...)"
        )
    if issubclass(trainer_class, PrivateTraining):
        raise InvalidArgumentError("the class trains privately already", cure="Use it as it is")
    own = (
        {"per_example_losses": trainer_class.per_example_losses} if hasattr(trainer_class, "per_example_losses") else {}
    )
    return type(f"Private{trainer_class.__name__}", (PrivateTraining, trainer_class), own)


class _LogicalBatches:
    """A private loader as a Trainer reads one: `len()` logical batches, each drawn in the step that is made of it."""

    def __init__(self, loader: PrivateLoader) -> None:
        self._loader = loader
        self.dataset = loader.dataset

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return self._loader.logical_batches()


class _Follower(TrainerCallback):  # type: ignore[misc, unused-ignore]  # untyped where transformers is
    """Ends training with the budget, and leaves a receipt in every checkpoint."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._trainer.session.steps_left == 0 and state.global_step < state.max_steps:
            control.should_training_stop = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.tell_selection()  # callbacks may have come after the session

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the receipt, last of all: a checkpoint without it was never finished."""
        folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        write_receipt(folder, self._trainer.session, guarantee=str(self._trainer.guarantee()))


class PrivateTraining:
    """The part of a Trainer that is private: what it reads, how a step is made, and what it may tell. See `private`."""

    def __init__(
        self, model: Any = None, args: TrainingArguments | None = None, *positional: Any, privacy: Privacy, **named: Any
    ) -> None:
        if not isinstance(privacy, Privacy):
            raise InvalidArgumentError(
                f"must be a Privacy, got {type(privacy).__name__}", where="privacy", cure="Pass hushgrad.Privacy(...)"
            )
        args = TrainingArguments(output_dir="trainer_output") if args is None else copy.copy(args)
        refuse("the Trainer", [*problems_of(args), *problems_of_class(type(self), PrivateTraining)])
        self.privacy = privacy
        self.session: Session | None = None
        self.lost_steps = 0
        """How many steps came after the checkpoint that training goes on from: they stay charged."""
        self._receipt: Receipt | None = None
        self._batches: _LogicalBatches | None = None
        self._is_loss_known = self._is_selection_told = False
        self._private_optimizer: Any = None
        self._most_records = args.per_device_train_batch_size
        args.per_device_train_batch_size *= args.gradient_accumulation_steps
        args.gradient_accumulation_steps = 1
        args.max_grad_norm = 0.0  # clipping is each example's own
        args.ignore_data_skip = True  # draws have no position to return to
        args.include_num_input_tokens_seen = "no"
        super().__init__(model, args, *positional, **named)  # type: ignore[call-arg]  # that of the Trainer it is mixed into
        this: Any = self
        if this.model_init is not None:
            refuse("the Trainer", [MODEL_INIT])
        if (loss_of := this.compute_loss_func) is not None:  # the Trainer evaluates with a third argument
            this.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: loss_of(outputs, labels)
        this.add_callback(_Follower(self))

    # What it reads ---------------------------------------------------------------------------------------------------

    @property
    def _ledger(self) -> str | os.PathLike[str]:
        return self.privacy.ledger or os.path.join(self.args.output_dir, "ledger.jsonl")  # type: ignore[attr-defined]

    def get_train_dataloader(self) -> Any:
        """Return the private logical batches; the first call makes the training private."""
        if self._batches is None:
            self._attach(super().get_train_dataloader())  # type: ignore[misc]
        return self._batches

    def _attach(self, theirs: Any) -> None:
        this: Any = self
        require_whole_data(theirs, this.args.per_device_train_batch_size)
        own: DataLoader[Any] = DataLoader(
            theirs.dataset,
            batch_size=this.args.per_device_train_batch_size,
            shuffle=True,
            collate_fn=theirs.collate_fn,
            num_workers=theirs.num_workers,
            pin_memory=theirs.pin_memory,
            worker_init_fn=theirs.worker_init_fn,
            persistent_workers=theirs.persistent_workers,
            prefetch_factor=theirs.prefetch_factor,
            drop_last=this.args.dataloader_drop_last,
        )
        *_, max_steps = this.set_initial_training_values(
            this.args, own
        )  # its own arithmetic: so many steps it will run
        population = len(theirs.dataset)
        mechanism = self.privacy.mechanism(
            batch_size=this.args.per_device_train_batch_size, population=population, steps=max_steps
        )
        os.makedirs(os.path.dirname(os.fspath(self._ledger)) or ".", exist_ok=True)
        this.create_optimizer()
        this.model.train()
        session = self.privacy.privatize(this.model, this.optimizer, mechanism, self._ledger)
        try:
            loader = session.batches_of(own, max_physical_batch_size=min(self._most_records, population))
            assert isinstance(loader, PrivateLoader)  # a stream was refused before, as it has no length
            if self._receipt is not None:
                self.lost_steps = session.load_state_dict(self._receipt.as_state())
            self.session = session
            self.tell_selection()
            if any(name != "none" for name in this.args.report_to):
                session.trust(TIMED)
        except BaseException:
            self.session = None
            session.close()
            raise
        self._private_optimizer, self._batches = this.optimizer, _LogicalBatches(loader)

    def tell_selection(self) -> None:
        """Say in the guarantee, once, that evaluation data chooses the weights, where it does."""
        this: Any = self
        if not self._is_selection_told and _selects(this.args, this.callback_handler.callbacks):
            assert self.session is not None
            self.session.trust(SELECTED)
            self._is_selection_told = True

    def create_optimizer(self, *positional: Any, **named: Any) -> Any:
        """Return the optimizer; once training is private, the same one."""
        this: Any = self
        if self.session is not None:
            return this.optimizer
        return super().create_optimizer(*positional, **named)  # type: ignore[misc]

    def train(self, resume_from_checkpoint: Any = None, *positional: Any, **named: Any) -> Any:
        """Train, from the beginning or from a checkpoint of private training.

        Raises:
            CheckpointError: the checkpoint was not written by private training, or not to its end.
            LedgerError: the ledger does not hold the checkpoint's steps.
            ProtocolError: the output folder's ledger holds steps, and no checkpoint is to be resumed.
        """
        if "compute_loss" in vars(self):  # set on the instance, after its class was looked at
            refuse("the Trainer", [COMPUTE_LOSS])
        if resume_from_checkpoint:
            folder = self._folder_of(resume_from_checkpoint)
            self._receipt = read_receipt(folder)
            if self.session is None:
                self._receipt.steps_of(self._ledger)  # before the Trainer loads any weight
            else:
                self.lost_steps = self.session.load_state_dict(self._receipt.as_state())
            resume_from_checkpoint = str(folder)
        elif self.session is None and os.path.lexists(self._ledger) and (steps := read_ledger(self._ledger).steps):
            raise ProtocolError(
                f"its ledger holds {steps} steps of an earlier run",
                where="the Trainer",
                cure="Go on with train(resume_from_checkpoint=True), or give this run "
                + ("an output_dir" if self.privacy.ledger is None else "a path in Privacy(ledger=...)")
                + " of its own; what both cost adds up",
            )
        return super().train(resume_from_checkpoint, *positional, **named)  # type: ignore[misc]

    def _folder_of(self, given: Any) -> Path:
        if given is not True:
            return Path(given)
        out = Path(self.args.output_dir)  # type: ignore[attr-defined]
        finished = {
            int(number): folder
            for folder in out.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
            if (number := folder.name.rpartition("-")[2]).isdecimal() and (folder / RECEIPT).is_file()
        }
        if not finished:
            raise CheckpointError(
                "there is no checkpoint of private training in its output folder",
                where="the Trainer",
                cure="Save more often (save_steps), or begin a new run in a new folder; what was charged stays spent",
            )
        return finished[max(finished)]

    # A step ----------------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run forward and backward over the items of one logical batch, and return 0: its loss has no noise."""
        this: Any = self
        session = self._require_session()
        model.train()
        for item in inputs:
            placed = this._prepare_inputs(item)
            if not self._is_loss_known:
                self._require_known_loss(model, placed)
            with this.compute_loss_context_manager():
                losses = self.per_example_losses(model, placed)
            session.backward(losses)
            session.end_item()
        return torch.zeros((), device=this.args.device)

    def _require_session(self) -> Session:
        this: Any = self
        if self.session is None:
            raise ProtocolError(
                "its batches do not come from the private loader: get_train_dataloader is overridden in a subclass of "
                "the private class",
                where="the Trainer",
                cure="Override it in the class that private(...) is given, or call super().get_train_dataloader()",
            )
        if getattr(this.optimizer, "optimizer", this.optimizer) is not self._private_optimizer:
            raise ProtocolError(
                "its optimizer was replaced after training was made private",
                where="the Trainer",
                cure="Pass optimizers=(optimizer, scheduler), or override create_optimizer in the class that "
                "private(...) is given",
            )
        return self.session

    def per_example_losses(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Return one loss per example, `[B]`. Override it for a loss of your own, or pass `compute_loss_func`."""
        return of_examples(model, self._base, dict(inputs), self.compute_loss_func)  # type: ignore[attr-defined]

    @property
    def _base(self) -> Any:
        this: Any = self
        return this.accelerator.unwrap_model(this.model)

    def _require_known_loss(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        this: Any = self
        try:
            if this.compute_loss_func is None and type(self).per_example_losses is PrivateTraining.per_example_losses:
                require_own_loss(
                    this.model, inputs, lambda one: self.per_example_losses(this.model, one), this.args.bf16
                )
        except HushgradError:
            assert self.session is not None
            self.session.close()  # nothing was charged: the cure may take the same model
            self.session = self._batches = None
            raise
        self._is_loss_known = True

    # What it may tell ------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], *positional: Any, **named: Any) -> None:
        """Log what is no training data's, and ε."""
        for name in [name for name in logs if name in OF_TRAINING_DATA or name.startswith(OF_MEMORY)]:
            del logs[name]  # the caller's own dictionary becomes the result of train()
        if self.session is not None:
            logs["epsilon"] = self.session.epsilon(self.privacy.target_delta, self.privacy.accountant)
            if self.session.steps_left is not None:
                logs["steps_left"] = self.session.steps_left
        if logs:
            super().log(logs, *positional, **named)  # type: ignore[misc]

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: how much was computed shows how many records were drawn."""
        return 0

    def guarantee(self) -> Guarantee:
        """Return the guarantee at `target_delta` with all its conditions."""
        if self.session is None:
            raise ProtocolError("nothing was trained yet", where="the Trainer", cure="Call train() first")
        return self.session.guarantee(self.privacy.target_delta, self.privacy.accountant)


def _selects(args: Any, callbacks: list[Any]) -> bool:
    is_best = args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST
    return bool(is_best or any(isinstance(callback, EarlyStoppingCallback) for callback in callbacks))
