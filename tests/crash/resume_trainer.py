"""Kills a Trainer's training with SIGKILL at named points, and lets another process go on from its checkpoint.

Run as a program: `resume_trainer.py FOLDER KIND STEPS STEP POINT [POINT ...]`, where KIND is trainer or sft; prints a
list of JSON objects, one for each point, as `resume_loop.py` prints one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "integrations")]

import torch  # noqa: E402
from resume_loop import EVERY, Fuse, Witnessed  # noqa: E402
from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: E402

from hushgrad import Privacy  # noqa: E402
from hushgrad.accounting import read_ledger  # noqa: E402
from hushgrad.accounting.ledger.ledger import Ledger  # noqa: E402
from hushgrad.integrations import trainer_life  # noqa: E402
from hushgrad.integrations.transformers import private  # noqa: E402
from hushgrad.session.session import Session  # noqa: E402
from hushgrad.session.update import Update  # noqa: E402

POINTS: dict[str, Callable[[Fuse], None]] = {
    "before the backward": lambda fuse: fuse.before(Session, "backward"),
    "after the backward": lambda fuse: fuse.after(Session, "backward"),
    "before the charge": lambda fuse: fuse.before(Ledger, "charge"),
    "after the charge": lambda fuse: fuse.after(Ledger, "charge"),
    "before the noise": lambda fuse: fuse.before(Update, "write"),
    "after the noise": lambda fuse: fuse.after(Update, "write"),
    "before the optimizer's update": lambda fuse: fuse.before(Witnessed, "update_weights"),
    "after the optimizer's update": lambda fuse: fuse.after(Witnessed, "update_weights"),
    "before the checkpoint is written": lambda fuse: fuse.before(Trainer, "_save_checkpoint"),
    "before the checkpoint's receipt": lambda fuse: fuse.before(trainer_life, "write_receipt"),
    "after the checkpoint's receipt": lambda fuse: fuse.after(trainer_life, "write_receipt"),
    "while a checkpoint is loaded": lambda fuse: fuse.before(Trainer, "_load_from_checkpoint"),
}
OF_CHECKPOINTS = [name for name in POINTS if "checkpoint" in name]
LOADED = "while a checkpoint is loaded"


class Lighter(TrainerCallback):  # type: ignore[misc]
    """Lights the fuse in one step, or in the checkpoint after it."""

    def __init__(self, fuse: Fuse, dies_in: int | None, point: str | None) -> None:
        self.fuse, self.dies_in, self.point = fuse, dies_in, point

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.fuse.is_lit = state.global_step == self.dies_in and self.point not in OF_CHECKPOINTS

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.fuse.is_lit = state.global_step - 1 == self.dies_in and self.point in OF_CHECKPOINTS


def trainer_of(kind: str, steps: int, folder: Path, lighter: Lighter) -> Any:
    from tiny import N, Texts, bert, collate, gpt2
    from tiny_trl import texts, tokenizer

    settings: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 10, "max_steps": steps, "save_strategy": "steps",
        "save_steps": EVERY, "save_total_limit": 2, "report_to": [], "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    model = bert() if kind == "trainer" else gpt2()
    optimizer = Witnessed(model.parameters(), lr=0.01)
    optimizer.witness = os.open(folder / "witness", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    named: dict[str, Any] = {
        "model": model, "optimizers": (optimizer, None), "callbacks": [lighter],
        "privacy": Privacy(max_grad_norm=1.0, target_epsilon=5.0, target_delta=1 / (2 * N), spare_steps=steps),
    }  # fmt: skip
    if kind == "trainer":
        args = TrainingArguments(**settings)
        return private(Trainer)(args=args, train_dataset=Texts(3), data_collator=collate, **named)
    import trl

    args = trl.SFTConfig(**settings, bf16=False)
    return private(trl.SFTTrainer)(args=args, train_dataset=texts(), processing_class=tokenizer(), **named)


def train(kind: str, steps: int, folder: Path, dies_in: int | None, point: str | None) -> None:
    """Train from where the folder says to the planned end, or to the point of step `dies_in`."""
    fuse = Fuse()
    if point is not None:
        POINTS[point](fuse)
    run = trainer_of(kind, steps, folder, Lighter(fuse, dies_in, point))
    is_begun = (folder / "ledger.jsonl").exists() and read_ledger(folder / "ledger.jsonl").steps > 0
    fuse.is_lit = point == LOADED and is_begun
    run.train(resume_from_checkpoint=is_begun)
    run.session.close()
    end = {"done": run.state.global_step, "lost": run.lost_steps, "charged": run.session.steps}
    (folder / "end").write_text(json.dumps(end))


def forked(*given: Any) -> int:
    child = os.fork()
    if child == 0:
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            train(*given)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path, kind: str, steps: int, step: int, points: list[str]) -> None:
    """For each point kill one process, let the next one go on, and print what was found."""
    torch.set_num_threads(1)
    found = []
    for number, point in enumerate(points):
        place = folder / str(number)
        place.mkdir()
        if point == LOADED:
            forked(kind, steps, place, step, "after the checkpoint's receipt")
        killed = forked(kind, steps, place, step, point)
        charged = read_ledger(place / "ledger.jsonl").steps
        at = {"killed": killed == -signal.SIGKILL, "charged_at_death": charged}
        at["released_at_death"] = (place / "witness").stat().st_size
        finished = forked(kind, steps, place, None, None)
        end = json.loads((place / "end").read_text()) if finished == 0 else {}
        found.append({**at, **end, "finished": finished == 0, "released": (place / "witness").stat().st_size})
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
