"""What Lightning would do past private training is refused before anything moves or is charged; each cure works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    DeviceStatsMonitor,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ThroughputMonitor,
    Timer,
)
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from lit import (
    NOISY,
    STEPS,
    CrashError,
    Small,
    StopAt,
    fit_small,
    is_as,
    small_loader,
    trainer,
    weights,
)
from tiny import B, C
from torch import nn

from hushgrad import Privacy
from hushgrad.accounting import read_ledger
from hushgrad.errors import (
    CheckpointError,
    HushgradError,
    IncompatibleFrameworkError,
    InvalidArgumentError,
    LedgerError,
    LossShapeError,
    ProtocolError,
)
from hushgrad.integrations.lightning import PrivateTraining
from hushgrad.integrations.lightning_checks import problems_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def require_refused(
    root: Path,
    kind: type[HushgradError],
    word: str,
    *,
    module: type[Small] = Small,
    batches: Callable[[PrivateTraining], Any] = lambda callback: callback.batches(small_loader()),
    is_given: bool = True,
    **settings: Any,
) -> HushgradError:
    """Fit, and require a refusal with its cure, weights as they were, and nothing charged."""
    callback = PrivateTraining(NOISY)
    model = module(callback)
    before = weights(model)
    run = trainer(root, callback, **settings)
    if not is_given:
        run.callbacks.remove(callback)
    with pytest.raises(kind, match=word) as caught:
        run.fit(model, batches(callback))
    assert caught.value.cure
    assert is_as(model, before)
    assert callback.session is None or callback.session.steps == 0
    ledger = root / "ledger.jsonl"
    assert not ledger.exists() or read_ledger(ledger).steps == 0
    return caught.value


SETTINGS: dict[str, tuple[Callable[[Path], dict[str, Any]], str, dict[str, Any]]] = {
    "accumulation": (lambda root: {"accumulate_grad_batches": 2}, "max_physical_batch_size", {}),
    "a schedule of accumulation": (
        lambda root: {"callbacks": [GradientAccumulationScheduler({1: 2})]}, "max_physical_batch_size", {},
    ),
    "clipping": (lambda root: {"gradient_clip_val": 1.0}, "max_grad_norm", {}),
    "float16": (
        lambda root: {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]},
        "bf16-mixed",
        {"precision": "bf16-mixed"},
    ),
    "overfitting": (lambda root: {"overfit_batches": 2}, "limit_train_batches", {"limit_train_batches": 2}),
    "reloading": (lambda root: {"reload_dataloaders_every_n_epochs": 1}, "reload_dataloaders", {}),
    "the clock": (lambda root: {"callbacks": [Timer("00:01:00:00")]}, "max_steps", {"max_steps": 2}),
    "validation by the clock": (
        lambda root: {"val_check_interval": "00:00:01:00"}, "number of batches", {"val_check_interval": 2},
    ),
    "a finder of rates": (lambda root: {"callbacks": [LearningRateFinder()]}, "Finder", {}),
    "a monitor of memory": (lambda root: {"callbacks": [DeviceStatsMonitor()]}, "Leave DeviceStatsMonitor", {}),
    "a monitor of time": (
        lambda root: {"callbacks": [ThroughputMonitor(lambda batch: 1)]}, "ThroughputMonitor out", {},
    ),
    "another machine": (lambda root: {"default_root_dir": "memory://runs"}, "local folder", {}),
    "no end": (lambda root: {"max_epochs": -1}, "max_steps", {"max_steps": 2, "max_epochs": -1}),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_private_training_cannot_bear_are_refused_and_the_cure_trains(name: str, tmp_path: Path) -> None:
    settings, cure, cured = SETTINGS[name]
    error = require_refused(tmp_path, IncompatibleFrameworkError, "", **settings(tmp_path))
    assert cure in error.cure
    _, run, callback = fit_small(tmp_path, **{"max_epochs": 1, **cured})
    assert callback.session is not None
    assert callback.session.steps == run.global_step > 0


class OwnStrategy(DDPStrategy):
    """A subclass may reduce gradients in a way of its own."""


def test_strategies_that_are_not_known_are_refused_with_their_cure(tmp_path: Path) -> None:
    """By the check alone: Lightning begins processes before it asks any callback."""
    callback = PrivateTraining(NOISY)
    [(what, cure)] = problems_of(trainer(tmp_path, callback, strategy=OwnStrategy(), devices=2), Small(callback))
    assert "its strategy splits the model" in what
    for settings in ({"devices": 1, "strategy": "auto"}, {"devices": 2, "strategy": "ddp"}, {"num_nodes": 2}):
        assert problems_of(trainer(tmp_path, callback, **settings), Small(callback)) == []
    assert "strategy='ddp'" in cure
    assert "devices=1, strategy='auto'" in cure


def test_a_finder_of_batch_sizes_is_refused(tmp_path: Path) -> None:
    """By the check alone: Lightning asks the finder first, which needs a module that says its batch size."""
    callback = PrivateTraining(NOISY)
    [(what, cure)] = problems_of(trainer(tmp_path, callback, callbacks=[BatchSizeFinder()]), Small(callback))
    assert "finder" in what
    assert "max_physical_batch_size" in cure


class Manual(Small):
    automatic_optimization = False


class OwnClipping(Small):
    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        pass


class TwoOptimizers(Small):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net[0], self.net[2])]


class OwnIterator(Small):
    def training_step(self, dataloader_iter: Any) -> Any:
        raise AssertionError


@pytest.mark.parametrize(
    ("module", "word"),
    [(Manual, "automatic_optimization"), (OwnClipping, "max_grad_norm"), (OwnIterator, "training_step")],
)
def test_a_module_whose_loop_is_its_own_is_refused(module: type[Small], word: str, tmp_path: Path) -> None:
    error = require_refused(tmp_path, IncompatibleFrameworkError, "", module=module)
    assert word in error.cure


def test_several_optimizers_are_refused(tmp_path: Path) -> None:
    callback = PrivateTraining(NOISY)
    with pytest.raises((RuntimeError, IncompatibleFrameworkError), match="optimizers"):  # Lightning may be first
        trainer(tmp_path, callback).fit(TwoOptimizers(callback), callback.batches(small_loader()))
    assert callback.session is None


class MeanLoss(Small):
    def training_step(self, batch: Any) -> Any:
        return self.losses(batch).mean()


class OtherLoss(Small):
    def training_step(self, batch: Any) -> Any:
        losses = self.losses(batch)
        self.privacy.loss(losses)
        return losses.mean()


class Scaled(Small):
    def training_step(self, batch: Any) -> Any:
        return 0.5 * self.privacy.loss(self.losses(batch))


class Skipping(Small):
    def training_step(self, batch: Any) -> Any:
        return None


class OfTheBatch(Small):
    def training_step(self, batch: Any) -> Any:
        return self.privacy.loss(self.losses(batch).mean())


LOSSES: dict[str, tuple[type[Small], type[HushgradError], str]] = {
    "a mean": (MeanLoss, ProtocolError, "a loss of its own"),
    "another than was made": (OtherLoss, ProtocolError, "something else"),
    "scaled": (Scaled, ProtocolError, "another gradient than 1"),
    "none": (Skipping, ProtocolError, "something else"),
    "one for the batch": (OfTheBatch, LossShapeError, "one number per example"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_is_not_the_examples_own_is_refused_and_the_same_module_trains_by_the_cure(
    name: str, tmp_path: Path
) -> None:
    module, kind, word = LOSSES[name]
    callback = PrivateTraining(NOISY, max_physical_batch_size=4)
    model = module(callback)
    before = weights(model)
    with pytest.raises(kind, match=word):
        trainer(tmp_path, callback).fit(model, callback.batches(small_loader()))
    assert is_as(model, before)
    assert callback.session is not None
    assert callback.session.steps == 0
    model.__class__ = Small
    trainer(tmp_path, callback, max_epochs=1).fit(model, callback.batches(small_loader()))
    assert callback.session.steps == STEPS // 2


def test_a_constant_factor_is_declared(tmp_path: Path) -> None:
    class Declared(Small):
        def training_step(self, batch: Any) -> Any:
            return 0.5 * self.privacy.loss(self.losses(batch), scale=0.5)

    silent = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.0, test_key=1)
    half, _, _ = fit_small(tmp_path / "half", silent, Declared, max_epochs=1)
    whole, _, _ = fit_small(tmp_path / "whole", silent, max_epochs=1)
    for one, two in zip(half.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_an_ordinary_loader_is_refused(tmp_path: Path) -> None:
    error = require_refused(tmp_path, ProtocolError, "another loader", batches=lambda callback: small_loader())
    assert "privacy.batches(train_loader)" in error.cure
    error = require_refused(
        tmp_path, ProtocolError, "another loader", batches=lambda callback: [callback.batches(small_loader()), [1]]
    )


def test_a_trainer_without_the_callback_is_refused(tmp_path: Path) -> None:
    error = require_refused(tmp_path, ProtocolError, "without this callback", is_given=False)
    assert "callbacks=[privacy]" in error.cure
    require_refused(
        tmp_path, ProtocolError, "nothing was made private", is_given=False, batches=lambda callback: small_loader()
    )


def test_what_is_no_privacy_no_loader_and_no_names_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="must be a Privacy"):
        PrivateTraining({"epsilon": 3})  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="must be names"):
        PrivateTraining(NOISY, may_log="train_loss")
    with pytest.raises(InvalidArgumentError, match="DataLoader"):
        PrivateTraining(NOISY).batches([1, 2])
    with pytest.raises(ProtocolError, match="nothing was made private"):
        PrivateTraining(NOISY).guarantee()


# Coming back ---------------------------------------------------------------------------------------------------------


def stopped(root: Path, privacy: Privacy = NOISY) -> Path:
    """Train 5 steps with a checkpoint at 3, and crash."""
    saving = ModelCheckpoint(root, filename="at", every_n_train_steps=3, save_on_train_epoch_end=False)
    with pytest.raises(CrashError):
        fit_small(root, privacy, callbacks=[saving, StopAt(5)], limit_val_batches=0)
    return root / "at.ckpt"


@pytest.mark.parametrize("spare_steps", [0, 2])
def test_a_crash_and_a_resume_keep_the_account_and_spare_steps_reach_the_end(tmp_path: Path, spare_steps: int) -> None:
    privacy = Privacy(max_grad_norm=C, target_delta=1e-3, target_epsilon=3.0, spare_steps=spare_steps)
    checkpoint = stopped(tmp_path, privacy)
    module, run, callback = fit_small(tmp_path, privacy, ckpt_path=checkpoint)
    assert callback.session is not None
    assert callback.lost_steps == 2
    assert run.global_step == STEPS - 2 + spare_steps
    assert callback.session.steps == STEPS + spare_steps
    assert callback.guarantee().epsilon <= 3.0
    assert module.rates[0] == pytest.approx(0.1 / 4)  # after three logical steps


def test_a_pass_that_a_crash_broke_off_stays_charged_and_training_ends_with_those_that_are_left(tmp_path: Path) -> None:
    """Of two passes of four steps both were begun, so none is left; of three the last one ends where Lightning has it.

    Lightning goes on with the epoch of the checkpoint, step 3, for one step, and a pass is drawn anew for it.
    """
    for passes, last in ((3, 4), (4, 8)):
        privacy = Privacy(max_grad_norm=C, target_delta=1e-3, target_epsilon=3.0, sampling="balls-in-bins")
        root = tmp_path / str(passes)
        saving = ModelCheckpoint(root, filename="at", every_n_train_steps=3, save_on_train_epoch_end=False)
        with pytest.raises(CrashError):
            fit_small(root, privacy, callbacks=[saving, StopAt(5)], limit_val_batches=0, max_epochs=passes)
        _, run, callback = fit_small(root, privacy, ckpt_path=root / "at.ckpt", max_epochs=passes)
        assert callback.session is not None
        assert (callback.lost_steps, run.global_step) == (2, last)
        assert callback.session.passes_left == 0
        assert callback.guarantee().epsilon <= 3.0


def test_epochs_that_are_cut_short_are_refused_where_passes_are_charged_whole(tmp_path: Path) -> None:
    privacy = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.0, sampling="balls-in-bins")
    with pytest.raises(IncompatibleFrameworkError, match="limit_train_batches"):
        fit_small(tmp_path, privacy, limit_train_batches=3)


RESUMES: dict[str, tuple[Callable[[Path], object], bool, type[HushgradError]]] = {
    "again without resume": (lambda root: None, False, ProtocolError),
    "without its ledger": (lambda root: (root / "ledger.jsonl").unlink(), True, LedgerError),
    "with a ledger that was cut": (lambda root: cut(root / "ledger.jsonl"), True, HushgradError),
    "with another run's ledger": (lambda root: another(root), True, LedgerError),
    "of ordinary training": (lambda root: without_receipt(root / "at.ckpt"), True, CheckpointError),
}


def cut(ledger: Path) -> None:
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:2]))


def another(root: Path) -> None:
    fit_small(root / "other", max_steps=4)
    (root / "ledger.jsonl").write_bytes((root / "other" / "ledger.jsonl").read_bytes())


def without_receipt(path: Path) -> None:
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["callbacks"]["PrivateTraining"]
    torch.save(checkpoint, path)


@pytest.mark.parametrize("name", RESUMES)
def test_what_cannot_be_continued_is_refused_with_the_weights_unmoved(name: str, tmp_path: Path) -> None:
    spoil, resumes, kind = RESUMES[name]
    checkpoint = stopped(tmp_path)
    spoil(tmp_path)
    callback = PrivateTraining(NOISY, max_physical_batch_size=4)
    module = Small(callback)
    with torch.no_grad():
        module.net[0].bias += 1
    before = weights(module)
    with pytest.raises(kind) as caught:
        trainer(tmp_path, callback).fit(
            module, callback.batches(small_loader()), ckpt_path=checkpoint if resumes else None
        )
    assert caught.value.cure
    assert is_as(module, before)
    assert callback.session is None
    module.load_state_dict(before)  # nothing of ours is left on it


def test_a_run_of_a_path_of_its_own_is_the_cure_of_a_used_folder(tmp_path: Path) -> None:
    stopped(tmp_path)
    privacy = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.0, ledger=tmp_path / "new" / "ledger")
    _, _, callback = fit_small(tmp_path, privacy, max_epochs=1)
    assert callback.session is not None
    assert callback.session.steps == STEPS // 2


def test_fit_again_with_the_same_callback_goes_on_from_a_checkpoint_and_is_refused_without(tmp_path: Path) -> None:
    privacy = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.0)
    callback = PrivateTraining(privacy, max_physical_batch_size=4)
    module = Small(callback)
    saving = ModelCheckpoint(tmp_path, filename="at", every_n_train_steps=3, save_on_train_epoch_end=False)
    run = trainer(tmp_path, callback, callbacks=[saving, StopAt(5)])
    with pytest.raises(CrashError):
        run.fit(module, callback.batches(small_loader()))
    assert callback.session is not None
    assert callback.session.is_closed
    with pytest.raises(ProtocolError, match="5 steps of an earlier run"):
        trainer(tmp_path, callback).fit(module, callback.batches(small_loader()))
    run = trainer(tmp_path, callback)
    run.fit(module, callback.batches(small_loader()), ckpt_path=tmp_path / "at.ckpt")
    assert callback.session.steps == STEPS
    assert callback.lost_steps == 2


def test_a_run_that_ended_before_its_first_checkpoint_may_begin_anew_and_tells_what_was_lost(tmp_path: Path) -> None:
    privacy = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.0)
    first = PrivateTraining(privacy, max_physical_batch_size=4)
    with pytest.raises(CrashError):
        trainer(tmp_path, first, callbacks=[StopAt(2)]).fit(Small(first), first.batches(small_loader()))
    refused = PrivateTraining(privacy, max_physical_batch_size=4)
    with pytest.raises(ProtocolError, match="2 steps of an earlier run") as caught:
        trainer(tmp_path, refused).fit(Small(refused), refused.batches(small_loader()))
    assert "may_restart=True" in caught.value.cure
    again = PrivateTraining(
        Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.0, spare_steps=2),
        max_physical_batch_size=4,
        may_restart=True,
    )
    run = trainer(tmp_path, again)
    run.fit(Small(again), again.batches(small_loader()), ckpt_path="last")
    assert again.session is not None
    assert (run.global_step, again.lost_steps, again.session.steps) == (STEPS, 2, STEPS + 2)


def test_a_quick_run_leaves_no_ledger_behind(tmp_path: Path) -> None:
    _, _, callback = fit_small(tmp_path, fast_dev_run=True)
    assert not (tmp_path / "ledger.jsonl").exists()
    assert "no ledger path" in {condition.name for condition in callback.guarantee().conditions}


def test_a_budget_that_is_reached_in_an_epoch_ends_training_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    five = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.0).mechanism(
        batch_size=B, population=40, steps=5
    )
    privacy = Privacy(
        max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.0, target_epsilon=five.epsilon(1e-3) + 1e-6
    )
    saving = ModelCheckpoint(tmp_path, filename="at", every_n_train_steps=1, save_on_train_epoch_end=False)
    _, run, callback = fit_small(tmp_path, privacy, callbacks=[saving])
    assert callback.session is not None
    assert callback.session.steps == run.global_step == 5
    assert torch.load(tmp_path / "at.ckpt", weights_only=True)["global_step"] == 5


def test_a_module_of_several_parts_trains_and_the_guarantee_tells_what_was_not_seen(tmp_path: Path) -> None:
    class Parts(Small):
        def __init__(self, privacy: PrivateTraining) -> None:
            super().__init__(privacy)
            self.head, self.net = nn.Linear(8, 3), nn.Sequential(nn.Linear(5, 8), nn.Tanh())

        def losses(self, batch: Any) -> Any:
            return nn.functional.cross_entropy(self.head(self.net(batch[0])), batch[1], reduction="none")

    _, _, callback = fit_small(tmp_path, kind=Parts, max_steps=2, limit_val_batches=0)
    assert "outside of the model's call" in {condition.name for condition in callback.guarantee().conditions}


def test_a_record_that_influences_others_is_found(tmp_path: Path) -> None:
    class Mixing(nn.Module):
        def forward(self, x: Any) -> Any:
            return x - x.mean(0)

    class Mixed(Small):
        def __init__(self, privacy: PrivateTraining) -> None:
            super().__init__(privacy)
            self.net.insert(1, Mixing())

    error = require_refused(tmp_path, HushgradError, "", module=Mixed)
    assert error.code in ("DP301", "DP304")
