"""Private training in Lightning's Trainer, by one callback that also makes the loader::

    from hushgrad import Privacy
    from hushgrad.integrations.lightning import PrivateTraining

    privacy = PrivateTraining(
        Privacy(max_grad_norm=1.0, target_epsilon=3, target_delta=1e-5), max_physical_batch_size=64
    )
    trainer = Trainer(max_epochs=5, callbacks=[privacy])
    trainer.fit(Classifier(privacy), privacy.batches(train_loader), val_loader)
    print(privacy.guarantee())

and the last line of the module's `training_step`::

    return privacy.loss(F.cross_entropy(self.net(x), y, reduction="none"))  # [b], one loss per example

Lightning sees the first item of each logical batch, so that it counts logical steps. The rest of them run where it is
about to step: inside of the closure of `optimizer.step`, by the hook `on_before_optimizer_step`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from hushgrad.accounting.guarantee import Guarantee
from hushgrad.accounting.ledger.receipt import Receipt
from hushgrad.errors import IncompatibleFrameworkError, InvalidArgumentError, ProtocolError
from hushgrad.extras import needs_extra
from hushgrad.integrations.incompatible import refuse
from hushgrad.integrations.lightning_checks import LOGGED, PASS_CUT_SHORT, conditions_of, network_of, problems_of
from hushgrad.integrations.lightning_data import Batches, with_private_batches
from hushgrad.integrations.lightning_life import ledger_of, receipt_of, require_new
from hushgrad.integrations.lightning_logs import TrainingLog
from hushgrad.privacy import Privacy
from hushgrad.sampling.loader import PrivateLoader
from hushgrad.session.session import Session
from hushgrad.session.spending import steps_taken

with needs_extra("lightning", "hushgrad.integrations.lightning"):
    from lightning.pytorch import LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.utilities.model_helpers import is_overridden
    from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

_CURE_LOSS = (
    "End training_step with: return privacy.loss(losses), where losses has one loss per example, [B] "
    "(reduction='none', each example averaged over its own elements)"
)


class PrivateTraining(Callback):
    """Makes the training of a Lightning Trainer private: give it to `callbacks`, and its batches to `fit`.

    Args:
        privacy: the clip norm, and ε or the noise. Without a path in it the ledger is `ledger.jsonl` in the Trainer's
            `default_root_dir`.
        max_physical_batch_size: the most records in one item; None for all.
        may_restart: whether `fit` without a checkpoint goes on with a ledger that holds steps, as one does that was
            killed before its first checkpoint: training begins anew, and all of them are `lost_steps`.
        may_log: names of metrics that the module may log while it trains. They have no noise, so the guarantee says
            that they are not covered.

    Guarantee: what is logged while training, by any hook and under any name that was not let through, is refused before
    it is written or a callback sees it. `may_log` lets names through. What `training_step` logs is refused before
    anything is charged. What callbacks are given as the loss of a step is 0.
    """

    def __init__(
        self,
        privacy: Privacy,
        *,
        max_physical_batch_size: int | None = None,
        may_log: Collection[str] = (),
        may_restart: bool = False,
    ) -> None:
        if not isinstance(privacy, Privacy):
            raise InvalidArgumentError(
                f"must be a Privacy, got {type(privacy).__name__}", where="privacy", cure="Pass hushgrad.Privacy(...)"
            )
        if isinstance(may_log, str):
            raise InvalidArgumentError("must be names, got one", where="may_log", cure="Pass may_log=('name',)")
        self.privacy = privacy
        self.session: Session | None = None
        self.lost_steps = 0
        """How many steps came after the checkpoint that training goes on from: they stay charged."""
        self._max_physical_batch_size = max_physical_batch_size
        self._may_restart = may_restart
        self._may_log = frozenset(may_log)
        self._log = TrainingLog(self._may_log)
        self._batches: Batches | None = None
        self._loader: PrivateLoader | None = None
        self._receipt: Receipt | None = None
        self._before_weights: Any = None
        self._rest: Iterator[Any] = iter(())
        self._losses = self._arrived = self._batch_idx = 0

    # What the user calls ---------------------------------------------------------------------------------------------

    def batches(self, data_loader: Any) -> Batches:
        """Return what `fit` takes in the place of an ordinary DataLoader; its batch size is B.

        With strategy="ddp" its batch size is that of one process, as everywhere in Lightning.

        Raises what `hushgrad.sampling.torch_loader.read_data_loader` raises.
        """
        self._batches = Batches(data_loader, self._first_items)
        return self._batches

    def data(self, data_module: LightningDataModule) -> LightningDataModule:
        """Return a copy of a data module whose train loader is private; its other loaders are what they were."""
        found: LightningDataModule = with_private_batches(data_module, self.batches)
        return found

    def loss(self, losses: Tensor, *, scale: float = 1.0) -> Tensor:
        """Return what `training_step` returns: 0, whose backward is that of the sum of `losses`.

        Lightning hands the value on to every callback, and the losses have no noise. Where gradients are off, as in
        evaluation, their mean is returned.

        Args:
            losses: `[b]`, one loss per example.
            scale: what the module multiplies the result by, > 0, a public constant.

        Raises:
            LossShapeError: not one loss per example.
            ProtocolError: this callback is not in the Trainer; from the backward, a gradient other than `scale`.
        """
        if not torch.is_grad_enabled():
            return losses.mean()
        total = self._require_session().loss(losses, scale=scale)
        total.detach().zero_()
        self._losses += 1
        total.register_hook(self._gradient_arrived)  # type: ignore[no-untyped-call]
        return total

    def guarantee(self) -> Guarantee:
        """Return the guarantee at `target_delta` with all its conditions."""
        return self.privacy.guarantee(self._require_session())

    # Before training -------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be private, and make ready to look at a checkpoint before its weights are loaded."""
        if stage != "fit":
            return
        if not isinstance(trainer, Trainer):
            raise IncompatibleFrameworkError(
                f"its Trainer is {type(trainer).__module__}.{type(trainer).__name__}, another package's",
                where="Lightning",
                cure="Import the Trainer from lightning.pytorch",
            )
        refuse("Lightning", problems_of(trainer, pl_module))
        self._receipt = None
        look = pl_module.register_load_state_dict_pre_hook
        self._before_weights = look(lambda *_: self._look_at_receipt(trainer))  # type: ignore[no-untyped-call]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a checkpoint that is not this ledger's, and a ledger that nobody goes on with."""
        self._before_weights.remove()
        if self._receipt is None:
            self._look_at_receipt(trainer)
        if self._receipt is None and not self._may_restart:
            require_new(trainer, self.privacy)

    def _look_at_receipt(self, trainer: Trainer) -> None:
        self._receipt = receipt_of(trainer, self.privacy, self.state_key)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the training private: model, optimizer and loader are as Lightning trains them."""
        batches = self._batches
        loader: Any = trainer.train_dataloader
        if batches is None or loader is not batches:
            raise ProtocolError(
                "the Trainer reads another loader than the private one",
                where="Lightning",
                cure="Call trainer.fit(model, privacy.batches(train_loader), ...), or "
                "trainer.fit(model, datamodule=privacy.data(data_module))",
            )
        if len(trainer.optimizers) != 1:
            refuse("Lightning", [(f"there are {len(trainer.optimizers)} optimizers", "Return one optimizer")])
        if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
            refuse("Lightning", [("training_step takes a dataloader_iter", "Write training_step(self, batch)")])
        steps = trainer.estimated_stepping_batches
        if math.isinf(steps):
            refuse("Lightning", [("its number of steps is not limited", "Set max_epochs or max_steps")])
        reading = batches.reading
        mechanism = self.privacy.mechanism(
            batch_size=reading.batch_size,
            population=reading.count,
            steps=int(steps),
            steps_per_pass=reading.steps,
        )
        if mechanism.sampling.counts_in == "passes" and trainer.num_training_batches < reading.steps:
            refuse("Lightning", [PASS_CUT_SHORT])
        ledger = ledger_of(trainer, self.privacy)
        before = steps_taken(ledger, self.privacy.phase)
        if ledger is not None:
            os.makedirs(os.path.dirname(os.fspath(ledger)) or ".", exist_ok=True)
        if self.session is not None:  # of an earlier fit, whose optimizer is no longer Lightning's
            self.session.close()
        session = self.privacy.privatize(network_of(pl_module), trainer.optimizers[0], mechanism, ledger)
        try:
            private = session.batches_of(reading, max_physical_batch_size=self._max_physical_batch_size)
            assert isinstance(private, PrivateLoader)  # a stream was refused before, as it has no length
            self.lost_steps = before if self._receipt is None else session.load_state_dict(self._receipt.as_state())
            for condition in [*conditions_of(trainer), *([LOGGED] if self._may_log else [])]:
                session.trust(condition)
        except BaseException:
            session.close()
            raise
        self.session, self._loader = session, private
        self._log.watch(trainer)
        self._stop_where_spent(trainer)

    # A step ----------------------------------------------------------------------------------------------------------

    def _first_items(self) -> Iterator[Any]:
        """Yield the first item of each logical batch of a pass."""
        if self._loader is None:
            raise ProtocolError(
                "the Trainer draws from the private loader without this callback",
                where="Lightning",
                cure="Give the Trainer callbacks=[privacy]",
            )
        for batch in self._loader.logical_batches():
            self._rest = iter(batch)
            yield next(self._rest)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin a logical batch."""
        self._batch_idx = batch_idx
        self._losses = self._arrived = 0

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Refuse a loss of the module's own."""
        if not self._losses:
            raise ProtocolError("training_step returns a loss of its own", where="Lightning", cure=_CURE_LOSS)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Run the rest of the logical batch; nothing is charged before that."""
        self._end_item()
        for item in self._rest:
            loss = self._training_step(trainer, item)
            if loss is not None:
                trainer.strategy.backward(loss["loss"] if isinstance(loss, dict) else loss, optimizer)
            self._end_item()

    def _training_step(self, trainer: Trainer, item: Any) -> Any:
        """Place an item and run the module's step on it, as Lightning does with the first one."""
        module, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
        item = trainer.precision_plugin.convert_input(item)
        owner = data if data is not None and is_overridden("on_before_batch_transfer", data) else module
        item = owner.on_before_batch_transfer(item, 0)
        item = trainer.strategy.batch_to_device(item, dataloader_idx=0)
        is_told = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
        return trainer.strategy.training_step(item, *([self._batch_idx] if is_told else []))

    def _gradient_arrived(self, gradient: Tensor) -> None:
        self._arrived += 1

    def _end_item(self) -> None:
        if not self._losses or self._arrived != self._losses:
            raise ProtocolError(
                "what privacy.loss made of an item was not run backward: training_step returned something else",
                where="Lightning",
                cure=_CURE_LOSS,
            )
        self._losses = self._arrived = 0
        self._require_session().end_item()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log ε and the steps that are left, and stop where none is."""
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0 and not trainer.barebones:
            session = self._require_session()
            said: dict[str, Any] = {
                "epsilon": self.privacy.spent(session),
                "steps_left": session.steps_left,
            }
            self._log.write(pl_module, {name: float(value) for name, value in said.items() if value is not None})
        self._stop_where_spent(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop where no further pass over the data is paid for: a resume in the middle of one has begun another."""
        self._stop_where_spent(trainer, before_a_pass=True)

    def _stop_where_spent(self, trainer: Trainer, *, before_a_pass: bool = False) -> None:
        session = self._require_session()
        is_spent = session.steps_left == 0 or (before_a_pass and session.passes_left == 0)
        if is_spent and trainer.global_step < trainer.estimated_stepping_batches:
            trainer.should_stop = True

    # After training --------------------------------------------------------------------------------------------------

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the training loop its own log back."""
        self._log.release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give back an ordinary module: the cure may take the same one. What was charged stays spent."""
        if self._before_weights is not None:
            self._before_weights.remove()
        self._log.release()
        if self.session is not None:
            self.session.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the receipt, which Lightning keeps in each of its checkpoints."""
        return {} if self.session is None else self.session.state_dict()

    def _require_session(self) -> Session:
        if self.session is None:
            raise ProtocolError(
                "nothing was made private: no fit with this callback has begun",
                where="Lightning",
                cure="Give the Trainer callbacks=[privacy]; outside of training call privacy.loss under "
                "torch.no_grad()",
            )
        return self.session
