"""What a private Trainer refuses, each followed by its cure, which trains; nothing moved and nothing was charged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_transformers import NOISY, PrivateTrainer, is_as, trainer, weights
from tiny import Texts, bert, gpt2
from torch.nn import functional as F

from hushgrad.accounting import read_ledger
from hushgrad.errors import (
    CheckpointError,
    HushgradError,
    IncompatibleFrameworkError,
    InvalidArgumentError,
    UnsupportedModelError,
)

Settings = dict[str, Any]


def smoothed(outputs: Any, labels: Any) -> torch.Tensor:
    return F.cross_entropy(outputs.logits, labels, label_smoothing=0.1, reduction="none")


CASES: dict[str, tuple[Settings, str, Settings]] = {
    "fp16": ({"fp16": True}, "bf16=True", {"bf16": True}),
    "auto_find_batch_size": (
        {"auto_find_batch_size": True},
        "gradient_accumulation_steps",
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 5},
    ),
    "label smoothing": ({"label_smoothing_factor": 0.1}, "compute_loss_func", {"compute_loss_func": smoothed}),
    "records by length": (
        {"train_sampling_strategy": "group_by_length"},
        "'random'",
        {"train_sampling_strategy": "random"},
    ),
    "reentrant checkpointing": (
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        "{'use_reentrant': False}",
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    ),
    "liger kernels": ({"use_liger_kernel": True}, "Leave use_liger_kernel out", {}),
    "a batch larger than the data": (
        {"per_device_train_batch_size": 64},
        "at most 40",
        {"per_device_train_batch_size": 20},
    ),
    "accumulation said elsewhere": (
        {
            "gradient_accumulation_steps": 1,
            "accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}},
        },
        "set gradient_accumulation_steps",
        {"gradient_accumulation_steps": 2},
    ),
}


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("name", CASES)
def test_a_setting_is_refused_with_nothing_moved_or_charged_and_its_cure_trains(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import TrainingArguments

    monkeypatch.setattr(TrainingArguments, "_validate_args", lambda self: None)  # fp16 asks for a GPU
    wrong, word, cure = CASES[name]
    model = bert()
    before = weights(model)
    with pytest.raises(HushgradError) as caught:
        trainer(tmp_path, model, Texts(3), NOISY, kind=PrivateTrainer, **wrong).train()
    assert isinstance(caught.value, IncompatibleFrameworkError | InvalidArgumentError)
    assert word in caught.value.cure
    assert is_as(model, before)
    assert not (tmp_path / "ledger.jsonl").exists()
    run = trainer(tmp_path, model, Texts(3), NOISY, kind=PrivateTrainer, max_steps=1, **cure)
    run.train()
    assert run.session.steps == 1


def test_several_devices_without_a_launch_are_refused_and_one_trains(tmp_path: Path) -> None:
    run = trainer(tmp_path, bert(), Texts(3), NOISY, kind=PrivateTrainer, max_steps=1)
    two = run.args
    two._n_gpu = 2
    with pytest.raises(IncompatibleFrameworkError, match="replicas of it in one process") as caught:
        PrivateTrainer(model=bert(), args=two, train_dataset=Texts(3), privacy=NOISY)
    assert "one device" in caught.value.cure
    two._n_gpu = 1
    run.train()
    assert run.session.steps == 1


def test_a_search_for_hyperparameters_is_refused_with_nothing_charged(tmp_path: Path) -> None:
    run = trainer(tmp_path, bert(), Texts(3), NOISY, kind=PrivateTrainer, max_steps=1)
    before = weights(run.model)
    with pytest.raises(IncompatibleFrameworkError, match="several models"):
        run.hyperparameter_search()
    assert is_as(run.model, before)
    assert run.session is None
    run.train()
    assert run.session.steps == 1


def test_a_run_into_a_used_folder_is_refused_and_both_cures_train(tmp_path: Path) -> None:
    first = trainer(
        tmp_path, bert(), Texts(3), NOISY, kind=PrivateTrainer, max_steps=2, save_strategy="steps", save_steps=1
    )
    first.train()
    first.session.close()
    again = trainer(tmp_path, bert(), Texts(3), NOISY, kind=PrivateTrainer, max_steps=2)
    before = weights(again.model)
    with pytest.raises(HushgradError, match="2 steps of an earlier run") as caught:
        again.train()
    assert is_as(again.model, before)
    assert read_ledger(tmp_path / "ledger.jsonl").steps == 2
    assert "resume_from_checkpoint=True" in caught.value.cure
    elsewhere = trainer(tmp_path / "other", bert(), Texts(3), NOISY, kind=PrivateTrainer, max_steps=1)
    elsewhere.train()
    assert elsewhere.session.steps == 1
    resumed = trainer(tmp_path, bert(), Texts(3), NOISY, kind=PrivateTrainer, max_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.session.steps == resumed.state.global_step == 2


def test_a_run_that_ended_before_its_first_checkpoint_begins_anew_and_tells_what_was_lost(tmp_path: Path) -> None:
    first = trainer(tmp_path, bert(), Texts(3), NOISY, kind=PrivateTrainer, max_steps=2, save_strategy="no")
    first.train()
    with pytest.raises(CheckpointError, match="no checkpoint of private training"):
        first.train(resume_from_checkpoint=True)  # it is the one that is open
    first.session.close()
    again = trainer(tmp_path, bert(), Texts(3), replace(NOISY, spare_steps=2), kind=PrivateTrainer, max_steps=2)
    again.train(resume_from_checkpoint=True)
    assert (again.state.global_step, again.lost_steps, again.session.steps) == (2, 2, 4)
    unused = trainer(tmp_path / "unused", bert(), Texts(3), NOISY, kind=PrivateTrainer, max_steps=1)
    with pytest.raises(CheckpointError, match="no checkpoint of private training") as caught:
        unused.train(resume_from_checkpoint=True)
    assert "Call train() without" in caught.value.cure
    unused.train()
    assert unused.session.steps == 1


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model_is_trained_as_it_is(backend: str, tmp_path: Path) -> None:
    data = Texts()
    run = trainer(tmp_path, gpt2(), data, torch_compile=True, torch_compile_backend=backend, max_steps=2)
    run.train()
    assert max(run.steps.errors(data)) < 1e-5


def test_a_model_whose_own_loss_counts_other_labels_is_refused_and_trains_by_the_cure(tmp_path: Path) -> None:
    made: Any = bert()

    class Weighted(type(made)):  # type: ignore[misc]
        """Its own loss weighs classes, which the name of its kind does not say."""

        def forward(self, *args: Any, labels: Any = None, **named: Any) -> Any:
            outputs = super().forward(*args, **named)
            if labels is not None:
                outputs.loss = F.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 2.0, 3.0])) * 2
            return outputs

    model = Weighted(made.config)
    before = weights(model)
    with pytest.raises(UnsupportedModelError, match="own loss of one example") as caught:
        trainer(tmp_path, model, Texts(3), NOISY, kind=PrivateTrainer, remove_unused_columns=False).train()
    assert "compute_loss_func" in caught.value.cure
    assert is_as(model, before)
    assert not (tmp_path / "ledger.jsonl").exists() or read_ledger(tmp_path / "ledger.jsonl").steps == 0
    run = trainer(
        tmp_path, model, Texts(3), NOISY, kind=PrivateTrainer, max_steps=1, remove_unused_columns=False,
        compute_loss_func=lambda outputs, labels: F.cross_entropy(
            outputs.logits, labels, weight=torch.tensor([1.0, 2.0, 3.0]), reduction="none"
        ),
    )  # fmt: skip
    run.train()
    assert run.session.steps == 1
