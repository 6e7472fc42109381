"""The part of a Trainer that is private: what it reads, how a step is made, and what it may tell."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hushgrad.accounting.guarantee import Guarantee
from hushgrad.accounting.ledger.receipt import Receipt
from hushgrad.errors import HushgradError, InvalidArgumentError, ProtocolError
from hushgrad.extras import needs_extra
from hushgrad.integrations.incompatible import refuse
from hushgrad.integrations.model_losses import of_examples, require_own_loss
from hushgrad.integrations.trainer_arguments import Given
from hushgrad.integrations.trainer_batches import LogicalBatches
from hushgrad.integrations.trainer_checks import (
    COMPUTE_LOSS,
    MODEL_INIT,
    has_own_losses,
    problems_of,
    problems_of_class,
    require_whole_data,
)
from hushgrad.integrations.trl import problems_of_config, problems_of_model
from hushgrad.integrations.used_ledger import require_unused
from hushgrad.parallel.messages import told_by_first
from hushgrad.parallel.world import join_world
from hushgrad.privacy import Privacy
from hushgrad.sampling.loader import PrivateLoader
from hushgrad.session.session import Session
from hushgrad.torch_internals import unseen

with needs_extra("hf", "hushgrad.integrations.transformers"):
    from transformers import TrainingArguments

    from hushgrad.integrations.trainer_life import (
        SELECTED,
        Follower,
        finished_checkpoint,
        receipt_of,
        selects,
        steps_without_checkpoint,
    )
    from hushgrad.integrations.trainer_silence import TIMED, silence, stop_clocks


class PrivateTraining:
    """The part of a Trainer that is private: what it reads, how a step is made, and what it may tell. See `private`."""

    def __init__(self, *positional: Any, privacy: Privacy, **named: Any) -> None:
        if not isinstance(privacy, Privacy):
            raise InvalidArgumentError(
                f"must be a Privacy, got {type(privacy).__name__}", where="privacy", cure="Pass hushgrad.Privacy(...)"
            )
        given = Given(type(self).__mro__[type(self).__mro__.index(PrivateTraining) + 1 :], positional, named)
        args = self._default_arguments() if given.args is None else copy.copy(given.args)
        refuse(
            "the Trainer", [*problems_of(args), *problems_of_config(type(self), args), *problems_of_class(type(self))]
        )
        self.privacy = privacy
        self.session: Session | None = None
        self.lost_steps = 0
        """How many steps came after the checkpoint that training goes on from: they stay charged."""
        self._receipt: Receipt | None = None
        self._batches: LogicalBatches | None = None
        self._is_loss_known = self._is_selection_told = False
        self._private_optimizer: Any = None
        self._most_records = args.per_device_train_batch_size
        self._settle(args)
        positional, named = given.with_args(args)
        super().__init__(*positional, **named)  # that of the Trainer it is mixed into
        this: Any = self
        problems = problems_of_model(self)
        refuse("the Trainer", problems if this.model_init is None else [MODEL_INIT, *problems])
        if (loss_of := this.compute_loss_func) is not None:  # the Trainer evaluates with a third argument
            this.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: loss_of(outputs, labels)
        this.add_callback(Follower(self))

    def _default_arguments(self) -> TrainingArguments:
        return TrainingArguments(output_dir="trainer_output")

    def _settle(self, args: TrainingArguments) -> None:
        args.per_device_train_batch_size *= args.gradient_accumulation_steps
        args.gradient_accumulation_steps = 1
        args.max_grad_norm = 0.0  # clipping is each example's own
        args.ignore_data_skip = True  # draws have no position to return to
        args.include_num_input_tokens_seen = "no"

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
        size = this.args.per_device_train_batch_size * this.args.world_size
        own: DataLoader[Any] = DataLoader(
            theirs.dataset,
            batch_size=size,
            shuffle=True,
            collate_fn=self._collate(theirs.collate_fn),
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
            batch_size=size, population=population, steps=max_steps, steps_per_pass=len(own)
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
            if set(this.args.report_to) - {"none", "tensorboard"}:
                session.trust(TIMED)
        except BaseException:
            self.session = None
            session.close()
            raise
        self._private_optimizer = this.optimizer
        # Whoever resumes a run that had come to its end takes no step more.
        self._batches = LogicalBatches(loader, lambda: this.state.global_step >= this.state.max_steps)

    def _collate(self, theirs: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return theirs

    def tell_selection(self) -> None:
        """Say in the guarantee, once, that evaluation data chooses the weights, where it does."""
        this: Any = self
        if not self._is_selection_told and selects(this.args, this.callback_handler.callbacks, this.lr_scheduler):
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

        With `resume_from_checkpoint=True`, a run that was killed before its first checkpoint begins anew; all steps
        that it had charged are `lost_steps`.

        Raises:
            CheckpointError: the checkpoint was not written by private training, or not to its end.
            LedgerError: the ledger does not hold the checkpoint's steps.
            ProtocolError: the output folder's ledger holds steps, and no checkpoint is to be resumed.
        """
        if "compute_loss" in vars(self):  # set on the instance, after its class was looked at
            refuse("the Trainer", [COMPUTE_LOSS])
        wanted, output = resume_from_checkpoint, self.args.output_dir  # type: ignore[attr-defined]
        folder = finished_checkpoint(wanted, output) if wanted else None
        if folder is not None:
            self._receipt = receipt_of(folder)
            if self.session is None:
                receipt = self._receipt  # looked at before the Trainer loads any weight, by who has the ledger
                told_by_first(join_world(), "look at the ledger", lambda: receipt.steps_of(self._ledger))
            else:
                self.lost_steps = self.session.load_state_dict(self._receipt.as_state())
            resume_from_checkpoint = str(folder)
        elif wanted:  # it begins anew, and stays charged for what was lost
            is_open, phase, resume_from_checkpoint = self.session is not None, self.privacy.phase, None
            self.lost_steps = told_by_first(
                join_world(),
                "look at the ledger",
                lambda: steps_without_checkpoint(self._ledger, phase, is_open=is_open),
            )
        elif self.session is None:
            told_by_first(join_world(), "look at the ledger", self._require_unused)
        stop_clocks(self.callback_handler.callbacks, self.args.output_dir)  # type: ignore[attr-defined]
        return super().train(resume_from_checkpoint, *positional, **named)  # type: ignore[misc]

    def _require_unused(self) -> None:
        resume = "train(resume_from_checkpoint=True)"
        require_unused(self._ledger, self.privacy, where="the Trainer", resume=resume, folder="an output_dir")

    def hyperparameter_search(self, *_: Any, **__: Any) -> Any:
        """Refuse: each trial trains on the same records."""
        refuse("the Trainer", [MODEL_INIT])

    # A step ----------------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run forward and backward over the items of one logical batch, and return 0: its loss has no noise."""
        this: Any = self
        session = self._require_session()
        model.train()
        if callable(to_training := getattr(this.optimizer, "train", None)):  # a schedule-free one has two modes
            to_training()
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
        """Refuse a loss that is not the model's own. It stays unknown over items that train nothing: all losses 0."""
        this: Any = self
        try:
            is_given = this.compute_loss_func is not None or has_own_losses(type(self))
            with unseen():  # it is no part of the loop's program
                self._is_loss_known = is_given or self._compare_with_own(model, inputs)
        except HushgradError:
            assert self.session is not None
            self.session.close()  # nothing was trained on it: the cure may take the same model
            self.session = self._batches = None
            raise

    def _compare_with_own(self, model: nn.Module, inputs: dict[str, Any]) -> bool:
        this: Any = self
        return require_own_loss(
            this.model, inputs, lambda one: self.per_example_losses(this.model, one), this.args.bf16
        )

    # What it may tell ------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], *positional: Any, **named: Any) -> None:
        """Log what is no training data's, and ε."""
        silence(logs)
        if self.session is not None:
            logs["epsilon"] = self.privacy.spent(self.session)
            if self.session.steps_left is not None:
                logs["steps_left"] = self.session.steps_left
        if logs:
            super().log(logs, *positional, **named)  # type: ignore[misc]

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: how much was computed shows how many records were drawn."""
        return 0

    def _save_rng_state(self, output_dir: str) -> None:
        """Save no state of generators: how far they went (dropout) shows how many records were drawn."""

    def guarantee(self) -> Guarantee:
        """Return the guarantee at `target_delta` with all its conditions."""
        if self.session is None:
            raise ProtocolError("nothing was trained yet", where="the Trainer", cure="Call train() first")
        return self.privacy.guarantee(self.session)
