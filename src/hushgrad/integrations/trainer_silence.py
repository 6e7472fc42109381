"""What a Trainer writes down that shows training data, or how many records were drawn: it stays out."""

from __future__ import annotations

import os
import time
from typing import Any

from hushgrad.accounting.conditions import Condition
from hushgrad.extras import needs_extra

with needs_extra("hf", "hushgrad.integrations.transformers"):
    from transformers.integrations.integration_utils import TensorBoardCallback, default_logdir

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

TIMED = Condition(
    "times of log entries",
    "its trackers write down when each entry was logged: how long the steps between took, which goes with the number "
    "of records that were drawn, is not covered",
)


def silence(logs: dict[str, float]) -> None:
    """Take what is training data's out of a dictionary of logs: the caller's own, which becomes the result of train."""
    for name in [name for name in logs if name in OF_TRAINING_DATA or name.startswith(OF_MEMORY)]:
        del logs[name]


def stop_clocks(callbacks: list[Any], output_dir: str) -> None:
    """Give TensorBoard's callback a writer that stamps every entry with the time of the start."""
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is None:
            callback.tb_writer = _writer(callback.logging_dir or os.path.join(output_dir, default_logdir()))


def _writer(folder: str) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    class AtTheStart(SummaryWriter):
        """A writer without a clock: how far apart two entries are is the time that the steps between took."""

        start = time.time()

        def add_scalar(self, tag: Any, scalar_value: Any, global_step: Any = None, *_: Any, **__: Any) -> None:
            super().add_scalar(tag, scalar_value, global_step, walltime=self.start)

        def add_text(self, tag: Any, text_string: Any, global_step: Any = None, *_: Any, **__: Any) -> None:
            super().add_text(tag, text_string, global_step, walltime=self.start)

    return AtTheStart(log_dir=folder)
