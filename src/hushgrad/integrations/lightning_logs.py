"""What a Lightning module or callback logs while it trains, refused at the line that logs it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from hushgrad.errors import ProtocolError


class TrainingLog:
    """Watches the training loop's own log, which is another one than that of evaluation.

    Guarantee: what is logged while training, by any hook and under any name that was not let through, is refused
    before it is written or a callback sees it.

    Args:
        may_log: names that are let through.
    """

    def __init__(self, may_log: Collection[str]) -> None:
        self._may_log = frozenset(may_log)
        self._results: Any = None
        self._is_ours = False

    def watch(self, trainer: Any) -> None:
        """Begin. Each `self.log` comes to the results of the loop that runs; Lightning has no public way to them."""
        self.release()
        results = trainer.fit_loop.epoch_loop._results
        write = results.log

        def log(fx: str, name: str, *args: Any, **settings: Any) -> None:
            if not self._is_ours and name not in self._may_log:
                raise ProtocolError(
                    f"{name!r} is logged while training, by {fx}: what is computed from training data has no noise",
                    where="Lightning",
                    cure="Log metrics in validation_step alone (where it shares code with training_step, only if "
                    "self.trainer.validating). PrivateTraining(may_log=...) lets names through, and the guarantee "
                    "then says that they are not covered",
                )
            write(fx, name, *args, **settings)

        results.log = log
        self._results = results

    def release(self) -> None:
        """Give the loop its own log back."""
        if self._results is not None:
            del self._results.log
            self._results = None

    def write(self, module: Any, values: Mapping[str, float]) -> None:
        """Log what the account says, which no record decides."""
        self._is_ours = True
        try:
            module.log_dict(values)
        finally:
            self._is_ours = False
