"""What Lightning's Trainer, its callbacks or its module do that private training cannot bear, and what is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hushgrad.accounting.conditions import Condition
from hushgrad.extras import needs_extra
from hushgrad.integrations.incompatible import WIDE_ENOUGH
from hushgrad.torch_internals import Criterion

with needs_extra("lightning", "hushgrad.integrations.lightning"):
    from lightning.pytorch import LightningModule
    from lightning.pytorch.callbacks import (
        BatchSizeFinder,
        DeviceStatsMonitor,
        EarlyStopping,
        GradientAccumulationScheduler,
        LearningRateFinder,
        ModelCheckpoint,
        ThroughputMonitor,
        Timer,
    )
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.profilers import PassThroughProfiler
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

_Wrong = Callable[[Any, Any], bool]

SELECTED = Condition(
    "selection by evaluation",
    "which of its checkpoints the Trainer kept, when it stopped, or its learning rate was decided by its evaluation "
    "data: what that choice tells of those records is not counted",
)

TIMED = Condition(
    "times of log entries",
    "its loggers or its profiler write down when each entry was made, or how long it took: how long steps took, which "
    "goes with the number of records that were drawn, is not covered",
)

LOGGED = Condition(
    "training metrics logged",
    "what may_log names was logged of the training data, without noise: it is not covered",
)


PASS_CUT_SHORT = (
    "limit_train_batches cuts every epoch short, and its sampling charges each pass over the data whole",
    "Leave limit_train_batches out, or sampling at 'poisson'",
)


def _has(*kinds: type[Any]) -> _Wrong:
    return lambda trainer, module: any(isinstance(callback, kinds) for callback in trainer.callbacks)


def _overrides(name: str) -> _Wrong:
    return lambda trainer, module: getattr(type(module), name) is not getattr(LightningModule, name)


_CHECKS: tuple[tuple[_Wrong, str, str], ...] = (
    (
        lambda trainer, module: not module.automatic_optimization,
        "automatic_optimization is off, so the loop is the module's own",
        "Leave automatic_optimization on, or write the loop with hushgrad.PrivacyEngine",
    ),
    (
        lambda trainer, module: trainer.accumulate_grad_batches != 1 or _has(GradientAccumulationScheduler)(trainer, 0),
        "accumulate_grad_batches divides losses, and a logical batch is one batch of the loader",
        "Give the DataLoader the whole batch size, and PrivateTraining max_physical_batch_size",
    ),
    (
        lambda trainer, module: (
            trainer.gradient_clip_val is not None or _overrides("configure_gradient_clipping")(trainer, module)
        ),
        "gradient_clip_val clips the gradient of the batch",
        "Leave gradient clipping out: Privacy(max_grad_norm=...) clips each example's",
    ),
    (
        lambda trainer, module: str(trainer.precision) not in WIDE_ENOUGH,
        "its precision scales losses and skips steps by looking at gradients without noise, or is not known",
        "Use precision='bf16-mixed', 'bf16-true' or '32-true'",
    ),
    (
        lambda trainer, module: (
            type(trainer.strategy) is not DDPStrategy and not isinstance(trainer.strategy, SingleDeviceStrategy)
        ),
        "its strategy splits the model, or trains it in a way of its own",
        "Use strategy='ddp' for several processes, or Trainer(devices=1, strategy='auto')",
    ),
    (
        lambda trainer, module: bool(trainer.overfit_batches),
        "overfit_batches trains on the same batches again",
        "Leave overfit_batches out, and use limit_train_batches for a short run",
    ),
    (
        lambda trainer, module: bool(trainer.reload_dataloaders_every_n_epochs),
        "reload_dataloaders_every_n_epochs changes the records between epochs",
        "Leave reload_dataloaders_every_n_epochs out",
    ),
    (
        _has(Timer),
        "max_time ends training by the clock, and how long a step takes goes with the records that were drawn",
        "Use max_steps or max_epochs",
    ),
    (
        lambda trainer, module: not isinstance(getattr(trainer, "val_check_interval", None), int | float),
        "val_check_interval is a time, and how long a step takes goes with the records that were drawn",
        "Give val_check_interval a number of batches",
    ),
    (
        _has(BatchSizeFinder, LearningRateFinder),
        "a finder trains on the records and sets the weights back",
        "Leave BatchSizeFinder and LearningRateFinder out: max_physical_batch_size is what fits into memory",
    ),
    (
        _has(DeviceStatsMonitor, ThroughputMonitor),
        "a monitor writes down memory or time of each step, which go with the number of records that were drawn",
        "Leave DeviceStatsMonitor and ThroughputMonitor out",
    ),
    (
        lambda trainer, module: "://" in str(trainer.default_root_dir),
        "its default_root_dir is no folder of this machine, so the ledger cannot be kept there",
        "Set default_root_dir to a local folder",
    ),
)


def problems_of(trainer: Any, module: Any) -> list[tuple[str, str]]:
    """Return what of a Trainer and a module does not go with private training, each with its cure."""
    return [(what, cure) for is_wrong, what, cure in _CHECKS if is_wrong(trainer, module)]


def network_of(module: Any) -> Any:
    """Return the one part of a module that holds all there is of a network (`self.net`), or the module itself.

    What is called is then the model, and not a part of it; and the Trainer, which a module holds, is none of its state.
    """
    children = [child for child in module.children() if not isinstance(child, Criterion)]
    has_own = any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
    return module if has_own or len(children) != 1 else children[0]


def conditions_of(trainer: Any) -> list[Condition]:
    """Return what of a Trainer's settings the guarantee has to tell."""
    found = []
    selects = any(
        isinstance(callback, EarlyStopping) or (isinstance(callback, ModelCheckpoint) and callback.monitor is not None)
        for callback in trainer.callbacks
    )
    if selects or any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs):
        found.append(SELECTED)
    writes_times = any(not isinstance(logger, CSVLogger) for logger in trainer.loggers)
    if writes_times or not isinstance(trainer.profiler, PassThroughProfiler):
        found.append(TIMED)
    return found
