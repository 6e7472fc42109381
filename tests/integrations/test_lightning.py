"""Lightning's Trainer trains privately by one callback: the update, the noise, the account, what it tells."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy
from lit import NOISY, SILENT, STEPS, Rows, Small, fit, fit_small, small_loader, trainer
from tiny import B, C, N, Texts, bert, gpt2, llama_with_lora
from torch import nn

from hushgrad import Privacy
from hushgrad.errors import ProtocolError
from hushgrad.integrations.lightning import PrivateTraining
from hushgrad.sampling.choice import NAMES

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

MODELS: dict[str, tuple[Callable[[], nn.Module], int | None, dict[str, Any]]] = {
    "BERT, classes": (bert, 3, {"max_steps": 4}),
    "GPT-2, fused AdamW and workers": (gpt2, None, {"kind": torch.optim.AdamW, "workers": 1, "fused": True}),
    "GPT-2 with checkpointing": (gpt2, None, {"checkpointing": True}),
    "Llama with LoRA": (llama_with_lora, None, {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_update_is_the_sum_of_clipped_gradients_of_one_example_at_a_time(name: str, tmp_path: Path) -> None:
    make, classes, settings = MODELS[name]
    module, run, _ = fit(tmp_path, make(), classes, SILENT, **{"max_steps": 3, **settings})
    assert module.items > len(module.steps.steps) == run.global_step == settings.get("max_steps", 3)
    assert max(module.steps.errors(Texts(classes))) < 1e-5


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_in_bf16_the_update_is_that_sum_within_the_precision(precision: Any, tmp_path: Path) -> None:
    module, _, _ = fit(tmp_path, gpt2(), None, SILENT, precision=precision, max_steps=2)
    assert max(module.steps.errors(Texts())) < 1e-2


@pytest.mark.statistical
def test_the_noise_has_the_standard_deviation_that_is_charged(tmp_path: Path) -> None:
    """More than 45,000 values: 1% is 3 standard deviations; false-alarm probability 0.3%. The key is fixed."""
    module, _, _ = fit(tmp_path, gpt2(), None, NOISY)
    noise = module.steps.noise(Texts())
    assert len(noise) >= 45_000
    assert noise.std().item() == pytest.approx(1.5 * C, rel=0.01)


@pytest.mark.parametrize("sampling", NAMES)
def test_noise_rate_and_epsilon_are_those_of_the_plain_plan_and_schedules_count_logical_steps(
    sampling: str, tmp_path: Path
) -> None:
    privacy = Privacy(max_grad_norm=C, target_delta=1e-3, target_epsilon=3.0, test_key=1, sampling=sampling)
    module, run, callback = fit_small(tmp_path, privacy)
    plan = privacy.mechanism(batch_size=B, population=N, steps=STEPS, steps_per_pass=N // B)
    assert callback.session is not None
    assert callback.session.mechanism == plan
    assert callback.guarantee().epsilon == callback.session.epsilon(1e-3) == plan.epsilon(1e-3) <= 3.0
    assert callback.session.steps == run.global_step == STEPS
    assert len(module.rates) > STEPS
    assert sorted(set(module.rates), reverse=True) == pytest.approx([0.1 / (1 + step) for step in range(STEPS)])


def test_epochs_that_are_cut_short_are_planned_and_charged_as_they_run(tmp_path: Path) -> None:
    _, run, callback = fit_small(tmp_path, limit_train_batches=3, max_epochs=3, max_steps=8)
    assert callback.session is not None
    assert callback.session.mechanism.steps == callback.session.steps == run.global_step == 8


def test_a_data_module_keeps_its_own_hooks_and_gets_private_batches(tmp_path: Path) -> None:
    callback = PrivateTraining(SILENT, max_physical_batch_size=4)

    class Doubled(Small):
        seen: list[Any]

        def training_step(self, batch: Any) -> Any:
            records = callback.session.current_batch.indices  # type: ignore[union-attr]
            if len(records) == len(batch[0]):  # no empty draw
                wanted = torch.stack([2 * small_loader().dataset[i][0] for i in records])
                assert torch.equal(batch[0], wanted)
                self.seen.append(len(records))
            return super().training_step(batch)

    module, data = Doubled(callback), Rows()
    module.seen = []
    trainer(tmp_path, callback).fit(module, datamodule=callback.data(data))
    assert len(module.seen) > STEPS
    assert callback.session is not None
    assert callback.session.steps == STEPS
    assert type(data) is Rows


def test_an_average_of_weights_is_the_average_of_released_ones(tmp_path: Path) -> None:
    averaging = WeightAveraging(avg_fn=lambda mean, new, count: mean + (new - mean) / (count + 1))
    _, run, callback = fit_small(tmp_path, callbacks=[averaging])
    assert callback.session is not None
    assert callback.session.steps == run.global_step == STEPS


# What is told --------------------------------------------------------------------------------------------------------


def written(root: Path) -> list[dict[str, str]]:
    with next(root.rglob("metrics.csv")).open() as file:
        return list(csv.DictReader(file))


def test_epsilon_and_the_steps_left_are_logged_and_nothing_of_training_data_is(tmp_path: Path) -> None:
    callbacks = [LearningRateMonitor("step")]
    _, _, callback = fit_small(tmp_path, logger=CSVLogger(tmp_path), log_every_n_steps=2, callbacks=callbacks)
    rows = written(tmp_path)
    assert set(rows[0]) == {"epoch", "step", "lr-SGD", "epsilon", "steps_left", "val_loss"}
    assert [float(row["steps_left"]) for row in rows if row["steps_left"]] == [6, 4, 2, 0]
    assert float([row["epsilon"] for row in rows if row["epsilon"]][-1]) == pytest.approx(callback.guarantee().epsilon)


class Logging(Small):
    how: ClassVar[dict[str, Any]] = {}

    def training_step(self, batch: Any) -> Any:
        losses = self.losses(batch)
        self.log("train_loss", losses.mean(), **self.how)
        return self.privacy.loss(losses)


class ForTheEpoch(Logging):
    how: ClassVar[dict[str, Any]] = {"on_step": False, "on_epoch": True}


@pytest.mark.parametrize("kind", [Logging, ForTheEpoch])
def test_a_metric_that_training_step_logs_is_refused_before_anything_is_charged(
    kind: type[Logging], tmp_path: Path
) -> None:
    """Guarantee: a metric that `training_step` logs, and `may_log` does not name, is refused before anything is
    charged."""
    callback = PrivateTraining(NOISY)
    module = kind(callback)
    before = weights_of(module)
    with pytest.raises(ProtocolError, match="'train_loss'") as caught:
        trainer(tmp_path, callback, logger=CSVLogger(tmp_path), log_every_n_steps=1).fit(
            module, callback.batches(small_loader())
        )
    assert "may_log" in caught.value.cure
    assert callback.session is not None
    assert callback.session.steps == 0
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not list(tmp_path.rglob("metrics.csv"))


class SharedName(Small):
    """Evaluation logs under this name, too."""

    def training_step(self, batch: Any) -> Any:
        losses = self.losses(batch)
        if self.current_epoch:
            self.log("val_loss", losses.mean(), on_step=self.on_step, on_epoch=not self.on_step)
        return self.privacy.loss(losses)

    on_step = True


class SharedNameForTheEpoch(SharedName):
    on_step = False


class OurName(Small):
    def training_step(self, batch: Any) -> Any:
        losses = self.losses(batch)
        if self.current_epoch:
            self.log("epsilon", losses.mean())
        return self.privacy.loss(losses)


class AtTheLastBatch(Small):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.current_epoch and self.trainer.is_last_batch:
            self.log("val_loss", float(len(batch[0])))


class AtTheLastEnd(Small):
    def on_train_epoch_end(self) -> None:
        if self.current_epoch:
            self.log("val_loss", float(len(self.rates)))


class ByACallback(Callback):
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch:
            self.log("val_loss", float(len(pl_module.rates)))


@pytest.mark.parametrize(
    "kind", [SharedName, SharedNameForTheEpoch, OurName, AtTheLastBatch, AtTheLastEnd, ByACallback]
)
def test_what_is_logged_while_training_is_refused_before_it_is_written_by_any_hook_and_under_any_name(
    kind: type[Any], tmp_path: Path
) -> None:
    """Guarantee: what is logged while training, by any hook and under any name that was not let through, is refused
    before it is written or a callback sees it."""
    callbacks, module = ([kind()], Small) if issubclass(kind, Callback) else ([], kind)
    name = "epsilon" if kind is OurName else "val_loss"
    with pytest.raises(ProtocolError, match=f"'{name}' is logged while training"):
        fit_small(tmp_path, kind=module, logger=CSVLogger(tmp_path), log_every_n_steps=1, callbacks=callbacks)
    assert sum(bool(row["val_loss"]) for row in written(tmp_path)) <= 2  # those of evaluation, one for each epoch
    assert all((bool(row["epsilon"]), bool(row["val_loss"])) != (True, True) for row in written(tmp_path))


def test_what_callbacks_are_given_as_the_loss_of_a_step_tells_nothing_of_it(tmp_path: Path) -> None:
    """The update is the same: `test_the_update_is_the_sum_of_clipped_gradients_of_one_example_at_a_time`."""
    seen: list[float] = []

    class Told(Callback):
        def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
            seen.append(loss.item())

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            seen.append(outputs["loss"].item())

    class Overflows(Small):
        def training_step(self, batch: Any) -> Any:
            losses = self.losses(batch)
            return self.privacy.loss(losses + torch.where(losses.detach() > 1.1, float("inf"), 0.0))

    for kind in (Small, Overflows):
        _, _, callback = fit_small(tmp_path / kind.__name__, kind=kind, callbacks=[Told()])
        assert names_of(callback) == {"fixed key"}
    assert len(seen) > 4 * STEPS  # a logical batch has several items
    assert set(seen) == {0.0}


def test_after_training_the_loop_has_its_own_log_again(tmp_path: Path) -> None:
    _, run, _ = fit_small(tmp_path, max_steps=1)
    assert "log" not in vars(run.fit_loop.epoch_loop._results)


def test_a_metric_that_was_asked_for_is_logged_and_told(tmp_path: Path) -> None:
    _, _, callback = fit_small(
        tmp_path, kind=Logging, may_log=["train_loss"], logger=CSVLogger(tmp_path), log_every_n_steps=1
    )
    assert any(row["train_loss"] for row in written(tmp_path))
    assert "training metrics logged" in names_of(callback)


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def names_of(callback: PrivateTraining) -> set[str]:
    return {condition.name for condition in callback.guarantee().conditions}


@pytest.mark.parametrize(
    "callbacks",
    [lambda root: [EarlyStopping("val_loss", patience=9)], lambda root: [ModelCheckpoint(root, monitor="val_loss")]],
)
def test_a_choice_by_evaluation_data_is_told(callbacks: Any, tmp_path: Path) -> None:
    _, _, callback = fit_small(tmp_path, max_epochs=1, callbacks=callbacks(tmp_path))
    assert "selection by evaluation" in names_of(callback)


def test_a_run_without_choices_and_times_tells_of_none(tmp_path: Path) -> None:
    _, _, callback = fit_small(tmp_path, logger=CSVLogger(tmp_path), callbacks=[ModelCheckpoint(tmp_path)])
    assert names_of(callback) == {"fixed key"}


@pytest.mark.parametrize("settings", [{"profiler": "simple"}, {"logger": True}])
def test_what_writes_down_times_is_told(settings: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    _, _, callback = fit_small(tmp_path, max_steps=1, **settings)
    assert "times of log entries" in names_of(callback)


def without_weights(found: Any) -> Any:
    """What a checkpoint holds beside weights and the ledger's own random name."""
    found.pop("state_dict")
    found.pop("optimizer_states")
    for state in found["callbacks"].values():
        state.pop("run", None)
        state.pop("anchor", None)
        for name in [name for name in state if "path" in name or name in ("dirpath", "best_k_models")]:
            state.pop(name)
    return found


def test_two_runs_that_differ_in_the_sizes_of_draws_alone_write_equal_files_but_for_weights(tmp_path: Path) -> None:
    files, sizes = [], []
    for key in (1, 2):
        root = tmp_path / str(key)
        privacy = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.5, test_key=key)
        module, _, _ = fit_small(
            root, privacy, logger=CSVLogger(root), log_every_n_steps=1, limit_val_batches=0,
            callbacks=[ModelCheckpoint(root, save_last=True)],
        )  # fmt: skip
        sizes.append(len(module.rates))
        checkpoint = torch.load(root / "last.ckpt", weights_only=True)
        files.append((written(root), without_weights(checkpoint), sorted(p.name for p in root.rglob("*"))))
    assert sizes[0] != sizes[1]
    assert files[0] == files[1]


# What of Lightning is relied on --------------------------------------------------------------------------------------

HOOKS = {
    "setup": ["trainer", "pl_module", "stage"],
    "on_fit_start": ["trainer", "pl_module"],
    "on_train_start": ["trainer", "pl_module"],
    "on_train_batch_start": ["trainer", "pl_module", "batch", "batch_idx"],
    "on_before_backward": ["trainer", "pl_module", "loss"],
    "on_before_optimizer_step": ["trainer", "pl_module", "optimizer"],
    "on_train_batch_end": ["trainer", "pl_module", "outputs", "batch", "batch_idx"],
    "on_train_epoch_end": ["trainer", "pl_module"],
    "teardown": ["trainer", "pl_module", "stage"],
    "on_exception": ["trainer", "pl_module", "exception"],
    "state_dict": [],
}


@pytest.mark.parametrize("name", HOOKS)
def test_the_hooks_that_are_overridden_are_still_lightnings(name: str) -> None:
    """A canary: a newer Lightning that no longer calls one of these would train past it."""
    theirs = list(inspect.signature(getattr(Callback, name)).parameters)[1:]
    assert theirs == HOOKS[name]
    assert name in vars(PrivateTraining)


def test_no_other_hook_is_overridden_and_what_is_called_is_still_there() -> None:
    ours = {name for name in vars(PrivateTraining) if hasattr(Callback, name) and not name.startswith("_")}
    assert ours == set(HOOKS)
    assert list(inspect.signature(Strategy.training_step).parameters) == ["self", "args", "kwargs"]
    assert list(inspect.signature(Strategy.backward).parameters)[:3] == ["self", "closure_loss", "optimizer"]
    assert "dataloader_idx" in inspect.signature(Strategy.batch_to_device).parameters
    assert "weights_only" in inspect.signature(Strategy.load_checkpoint).parameters
    assert "convert_input" in vars(L.pytorch.plugins.Precision) or hasattr(L.pytorch.plugins.Precision, "convert_input")
    assert issubclass(SingleDeviceStrategy, Strategy)
    for name in (
        "estimated_stepping_batches", "train_dataloader", "ckpt_path", "precision", "world_size", "global_step",
        "lr_scheduler_configs", "loggers", "optimizers", "precision_plugin",
    ):  # fmt: skip
        assert isinstance(inspect.getattr_static(L.Trainer, name), property), name


def test_the_hooks_come_in_the_order_that_is_relied_on(tmp_path: Path) -> None:
    """The rest of a logical batch runs inside of the optimizer's closure, before anything is charged."""
    order: list[str] = []

    class Told(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            order.append(f"before {trainer.callbacks[0].session.steps}")

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            order.append(f"after {trainer.callbacks[0].session.steps}")

    fit_small(tmp_path, callbacks=[Told()], max_steps=2)
    assert order == ["before 0", "after 1", "before 1", "after 2"]
