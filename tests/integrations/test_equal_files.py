"""Two runs that differ in the sizes of their draws alone leave equal files, but for weights and times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_transformers import Watched, trainer
from test_trl import WatchedSFT, sft
from tiny import C, Texts, bert
from tiny_trl import texts

from hushgrad import Privacy

FRESH = {"hash", "previous", "run", "anchor", "standard_errors"}
"""What a ledger chains its entries by, and what its monitor says of the noise: new in every run."""


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items() if name not in FRESH}
    return [plain(part) for part in value] if isinstance(value, list) else value


def shapes(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape) if value.numel() > 1 else value.item()
    if isinstance(value, dict):
        return {name: shapes(part) for name, part in value.items()}
    return [shapes(part) for part in value] if isinstance(value, list | tuple) else value


def events(path: Path) -> Any:
    """Return what TensorBoard was told, and how many moments it was told at, but for that of the file's first line."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = list(EventFileLoader(str(path)).Load())
    told = [(event.step, value.tag, list(value.tensor.float_val)) for event in found for value in event.summary.value]
    assert len(told) > 4
    return told, len({event.wall_time for event in found[1:]})


def left_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if "tfevents" in name:
            found["events"] = events(path)
        elif path.name in ("ledger.jsonl", "hushgrad.json", "trainer_state.json"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            found[name] = [plain(json.loads(line)) for line in lines]
        elif path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                found[name] = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        elif path.name in ("optimizer.pt", "scheduler.pt"):
            found[name] = shapes(torch.load(path))
        elif path.name == "training_args.bin":
            found[name] = torch.load(path, weights_only=False).to_dict()
        else:
            found[name] = path.read_bytes()
    return found


def of_trainer(out: Path, privacy: Privacy) -> Any:
    model = bert()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1  # so that generators go as far as records were drawn
    return trainer(
        out, model, Texts(3), privacy, kind=Watched, save_strategy="steps", save_steps=2, logging_steps=1,
        report_to=["tensorboard"], per_device_train_batch_size=2, gradient_accumulation_steps=5,
    )  # fmt: skip


def of_sft(out: Path, privacy: Privacy) -> Any:
    from tiny import gpt2

    return sft(
        out, gpt2(), texts(), privacy, kind=WatchedSFT, save_strategy="steps", save_steps=2,
        report_to=["tensorboard"], per_device_train_batch_size=2, gradient_accumulation_steps=5,
    )  # fmt: skip


@pytest.mark.parametrize("made", [of_trainer, of_sft])
def test_two_runs_that_differ_in_their_draws_alone_leave_equal_files(
    made: Callable[[Path, Privacy], Any], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    found, items = [], []
    for key in (1, 2):
        out = tmp_path / "run"
        run = made(out, Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.0, test_key=key))
        run.train()
        run.create_model_card()
        run.session.close()
        assert "times of log entries" not in {condition.name for condition in run.guarantee().conditions}
        items.append(run.items)
        found.append(left_in(out))
        out.rename(tmp_path / str(key))
    one, other = found
    assert items[0] != items[1]
    assert {"events", "ledger.jsonl", "README.md", "checkpoint-2/hushgrad.json"} <= set(one)
    assert not any("rng_state" in name for name in one)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == other[name], name
    assert one["events"][1] == 1
