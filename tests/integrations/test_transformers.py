"""The Trainer trains privately by the same lines: the update, the noise, the account, what it tells, coming back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import B, C, N, Steps, Texts, bert, collate, gpt2, llama_with_lora
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from hushgrad import Privacy
from hushgrad.errors import (
    CheckpointError,
    HushgradError,
    IncompatibleFrameworkError,
    InvalidArgumentError,
    LedgerError,
    LossShapeError,
    ProtocolError,
    UnsupportedModelError,
)
from hushgrad.integrations.receipt_file import RECEIPT
from hushgrad.integrations.trainer_silence import OF_TRAINING_DATA
from hushgrad.integrations.transformers import private
from hushgrad.sampling.choice import NAMES

SILENT = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=0.0)
NOISY = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.5, test_key=1)
STEPS = 2 * N // B

PrivateTrainer = private(Trainer)


class Watched(PrivateTrainer):  # type: ignore[misc, valid-type]
    """A private Trainer whose steps are watched."""

    def get_train_dataloader(self) -> Any:
        is_new = self.session is None
        batches = super().get_train_dataloader()
        if is_new:
            self.steps = Steps(self.model)
            self.steps.watch(self.session, self.optimizer)
            self.items = 0
        return batches

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Any:
        return super().training_step(model, self._seen(inputs), num_items_in_batch)

    def _seen(self, inputs: Any) -> Iterator[Any]:
        for item in inputs:
            self.items += 1
            self.steps.saw()
            yield item


def trainer(
    out: Path, model: nn.Module, data: Any, privacy: Privacy = SILENT, *, kind: Any = Watched, **settings: Any
) -> Any:
    own = ("compute_loss_func", "optimizers", "callbacks", "eval_dataset", "data_collator")
    given = {"data_collator": collate} | {name: settings.pop(name) for name in own if name in settings}
    arguments: dict[str, Any] = {
        "output_dir": str(out),
        "per_device_train_batch_size": B // 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "logging_steps": 2,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return kind(
        model=model,
        args=TrainingArguments(**{**arguments, **settings}),
        train_dataset=data,
        privacy=privacy,
        **given,
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], int | None, dict[str, Any]]] = {
    "BERT, classes": (bert, 3, {}),
    "GPT-2, causal": (gpt2, None, {}),
    "Llama with LoRA, causal": (llama_with_lora, None, {}),
    "GPT-2 with checkpointing": (gpt2, None, {"gradient_checkpointing": True, "dataloader_num_workers": 1}),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_update_is_the_sum_of_clipped_gradients_of_one_example_at_a_time(name: str, tmp_path: Path) -> None:
    make, classes, settings = MODELS[name]
    data = Texts(classes)
    run = trainer(tmp_path, make(), data, **settings)
    run.train()
    assert run.items > len(run.steps.steps) == run.state.global_step == STEPS
    assert max(run.steps.errors(data)) < 1e-5


def test_in_bf16_the_update_is_that_sum_within_the_precision(tmp_path: Path) -> None:
    data = Texts()
    run = trainer(tmp_path, gpt2(), data, bf16=True, max_steps=3)
    run.train()
    assert max(run.steps.errors(data)) < 1e-2


@pytest.mark.statistical
def test_the_noise_has_the_standard_deviation_that_is_charged(tmp_path: Path) -> None:
    """More than 45,000 values: 1% is 3 standard deviations; false-alarm probability 0.3%. The key is fixed."""
    data = Texts()
    run = trainer(tmp_path, gpt2(), data, NOISY, optimizers=(None, None))
    run.train()
    noise = run.steps.noise(data)
    assert len(noise) >= 45_000
    assert noise.std().item() == pytest.approx(1.5 * C, rel=0.01)


@pytest.mark.parametrize("sampling", NAMES)
def test_noise_rate_and_epsilon_are_those_of_the_plain_plan_and_schedules_count_logical_steps(
    sampling: str, tmp_path: Path
) -> None:
    privacy = Privacy(max_grad_norm=C, target_delta=1e-3, target_epsilon=3.0, test_key=1, sampling=sampling)
    run = trainer(tmp_path, bert(), Texts(3), privacy, learning_rate=1e-2)
    run.train()
    plan = privacy.mechanism(batch_size=B, population=N, steps=STEPS, steps_per_pass=N // B)
    assert run.session.mechanism == plan
    assert run.session.epsilon(1e-3) == plan.epsilon(1e-3) <= 3.0
    assert [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry] == pytest.approx(
        [1e-2 * (1 - (step - 1) / STEPS) for step in range(2, STEPS + 1, 2)]
    )


def test_nothing_of_training_data_is_logged_or_saved_and_epsilon_is(tmp_path: Path) -> None:
    """Guarantee: no loss, accuracy, gradient norm, count of tokens or duration of training data is logged or saved."""
    run = trainer(tmp_path, bert(), Texts(3), NOISY, save_strategy="steps", save_steps=4)
    result = run.train()
    assert not OF_TRAINING_DATA & set(result.metrics)
    for entry in run.state.log_history:
        assert not OF_TRAINING_DATA & set(entry)
    assert [entry["steps_left"] for entry in run.state.log_history if "steps_left" in entry][:3] == [6, 4, 2]
    for state in tmp_path.glob("checkpoint-*/trainer_state.json"):
        said = json.loads(state.read_text())
        assert said["total_flos"] == said["num_input_tokens_seen"] == 0
        assert all(not OF_TRAINING_DATA & set(entry) for entry in said["log_history"])
    assert run.guarantee().epsilon == pytest.approx(run.state.log_history[-1]["epsilon"])


class Stop(TrainerCallback):
    """Ends the process's training without a word to anybody, as a crash would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def stopped(out: Path, privacy: Privacy, **settings: Any) -> Any:
    settings |= {"save_strategy": "steps", "save_steps": 3, "callbacks": [Stop(5)]}
    run = trainer(out, bert(), Texts(3), privacy, kind=PrivateTrainer, **settings)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    run.session.close()
    return run


@pytest.mark.parametrize("spare_steps", [0, 2])
def test_a_crash_and_a_resume_keep_the_account_and_spare_steps_reach_the_end(tmp_path: Path, spare_steps: int) -> None:
    privacy = Privacy(max_grad_norm=C, target_delta=1e-3, target_epsilon=3.0, spare_steps=spare_steps)
    stopped(tmp_path, privacy)
    run = trainer(tmp_path, bert(), Texts(3), privacy, kind=PrivateTrainer, save_strategy="no")
    run.train(resume_from_checkpoint=True)
    assert run.lost_steps == 2
    assert run.state.global_step == STEPS - 2 + spare_steps
    assert run.session.steps == STEPS + spare_steps
    assert run.guarantee().epsilon <= 3.0


def test_a_pass_that_a_crash_broke_off_stays_charged_and_training_ends_with_those_that_are_left(tmp_path: Path) -> None:
    """Of three passes of four steps two were begun; the third one goes from step 3, that of the checkpoint, to 7."""
    privacy = Privacy(max_grad_norm=C, target_delta=1e-3, target_epsilon=3.0, sampling="balls-in-bins")
    stopped(tmp_path, privacy, num_train_epochs=3)
    settings = {"kind": PrivateTrainer, "save_strategy": "no", "num_train_epochs": 3}
    run = trainer(tmp_path, bert(), Texts(3), privacy, **settings)
    run.train(resume_from_checkpoint=True)
    assert (run.lost_steps, run.state.global_step, run.session.steps) == (2, 7, 9)
    assert run.session.passes_left == run.session.steps_left == 0
    assert 2.9 < run.guarantee().epsilon <= 3.0


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def is_as(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def say_of(out: Path, file: str, *names_and_value: Any) -> None:
    """Change one entry of a file of the checkpoint."""
    path = out / "checkpoint-3" / file
    said = entry = json.loads(path.read_text())
    *names, last, value = names_and_value
    for name in names:
        entry = entry[name]
    entry[last] = value
    path.write_text(json.dumps(said))


RESUMES: dict[str, tuple[Callable[[Path], object], Any, type[HushgradError]]] = {
    "again without resume": (lambda out: None, None, ProtocolError),
    "without its ledger": (lambda out: (out / "ledger.jsonl").unlink(), True, LedgerError),
    "of ordinary training": (lambda out: (out / "checkpoint-3" / RECEIPT).unlink(), "checkpoint-3", CheckpointError),
    "with the state of another step": (
        lambda out: say_of(out, "trainer_state.json", "global_step", 4),
        True,
        CheckpointError,
    ),
    "with fewer steps in its receipt": (lambda out: say_of(out, RECEIPT, "receipt", "steps", 2), True, CheckpointError),
}


@pytest.mark.parametrize("name", RESUMES)
def test_what_cannot_be_continued_is_refused_with_the_weights_unmoved(name: str, tmp_path: Path) -> None:
    spoil, resume, kind = RESUMES[name]
    stopped(tmp_path, NOISY)
    spoil(tmp_path)
    run = trainer(tmp_path, bert(), Texts(3), NOISY, kind=PrivateTrainer)
    before = weights(run.model)
    with pytest.raises(kind):
        run.train(resume_from_checkpoint=str(tmp_path / resume) if isinstance(resume, str) else resume)
    assert is_as(run.model, before)
    assert run.session is None


SETTINGS: dict[str, dict[str, Any]] = {
    "auto_find_batch_size": {"auto_find_batch_size": True},
    "label_smoothing_factor": {"label_smoothing_factor": 0.1},
    "group_by_length": {"train_sampling_strategy": "group_by_length"},
    "lomo": {"optim": "lomo"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_private_training_cannot_bear_are_refused_at_once(name: str, tmp_path: Path) -> None:
    model = bert()
    before = weights(model)
    with pytest.raises(IncompatibleFrameworkError) as caught:
        trainer(tmp_path, model, Texts(3), NOISY, **SETTINGS[name])
    assert caught.value.cure
    assert is_as(model, before)
    assert not (tmp_path / "ledger.jsonl").exists()


def test_label_smoothing_goes_by_its_cure(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        bert(),
        Texts(3),
        NOISY,
        max_steps=1,
        compute_loss_func=lambda outputs, labels: torch.nn.functional.cross_entropy(
            outputs.logits, labels, label_smoothing=0.1, reduction="none"
        ),
    )
    run.train()
    assert run.session.steps == 1


def test_a_loss_of_the_batch_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, bert(), Texts(3), NOISY, compute_loss_func=lambda outputs, labels: outputs.logits.mean())
    before = weights(run.model)
    with pytest.raises(LossShapeError, match="one loss per example"):
        run.train()
    assert is_as(run.model, before)
    assert run.session.steps == 0


def test_a_model_whose_own_loss_has_a_second_term_is_refused(tmp_path: Path) -> None:
    model: Any = bert()

    class Penalized(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **named: Any) -> Any:
            outputs = super().forward(*args, **named)
            if outputs.loss is not None:
                outputs.loss = outputs.loss + 0.01
            return outputs

    penalized = Penalized(model.config)
    run = trainer(tmp_path, penalized, Texts(3), NOISY, remove_unused_columns=False)
    before = weights(penalized)
    with pytest.raises(UnsupportedModelError, match="its own loss of one example"):
        run.train()
    assert is_as(penalized, before)


SELECTING: dict[str, dict[str, Any]] = {
    "load_best_model_at_end": {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1},
    "save_strategy=best": {"save_strategy": "best", "metric_for_best_model": "loss"},
    "metric_for_best_model": {"save_strategy": "steps", "save_steps": 1, "metric_for_best_model": "loss"},
    "reduce_lr_on_plateau": {"lr_scheduler_type": "reduce_lr_on_plateau", "save_strategy": "no"},
    "greedy": {"lr_scheduler_type": "greedy", "save_strategy": "no"},
}


@pytest.mark.parametrize("name", SELECTING)
def test_a_choice_by_evaluation_data_is_told(name: str, tmp_path: Path) -> None:
    run = trainer(
        tmp_path, bert(), Texts(3), NOISY, kind=PrivateTrainer, max_steps=1, eval_strategy="steps", eval_steps=1,
        eval_dataset=Texts(3), **SELECTING[name],
    )  # fmt: skip
    run.train()
    assert "selection by evaluation" in {condition.name for condition in run.guarantee().conditions}


def test_evaluation_that_chooses_nothing_is_not_told_as_a_choice(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, bert(), Texts(3), NOISY, kind=PrivateTrainer, max_steps=1, eval_strategy="steps", eval_steps=1,
        eval_dataset=Texts(3), save_strategy="steps", save_steps=1,
    )  # fmt: skip
    run.train()
    assert "selection by evaluation" not in {condition.name for condition in run.guarantee().conditions}


def test_a_choice_by_a_callback_that_came_late_is_told(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, bert(), Texts(3), NOISY, kind=PrivateTrainer, eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, eval_dataset=Texts(3), metric_for_best_model="loss",
    )  # fmt: skip
    run.get_train_dataloader()
    run.add_callback(EarlyStoppingCallback(1, early_stopping_threshold=10.0))
    run.train()
    assert "selection by evaluation" in {condition.name for condition in run.guarantee().conditions}


def test_a_tracker_that_stamps_entries_with_the_time_is_told(tmp_path: Path) -> None:
    run = trainer(tmp_path, bert(), Texts(3), NOISY, kind=PrivateTrainer, max_steps=1)
    run.args.report_to = ["a tracker"]
    run.train()
    assert "times of log entries" in {condition.name for condition in run.guarantee().conditions}


@pytest.mark.parametrize(
    "optim",
    [
        "adamw_torch_fused",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("adamw_torch", "sgd", "adafactor")),
    ],
)
def test_a_warm_up_that_begins_at_a_rate_of_zero_is_trained(optim: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, bert(), Texts(3), NOISY, kind=PrivateTrainer, warmup_steps=2, optim=optim, logging_steps=1)
    before = weights(run.model)
    run.train()
    assert run.session.steps == STEPS
    assert run.state.log_history[0]["learning_rate"] == 0.0
    assert not is_as(run.model, before)


def test_a_loss_of_two_arguments_trains_and_evaluates_and_the_result_says_epsilon(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, bert(), Texts(3), NOISY, kind=PrivateTrainer, max_steps=1, eval_dataset=Texts(3),
        eval_strategy="no", skip_memory_metrics=False,
        compute_loss_func=lambda outputs, labels: torch.nn.functional.cross_entropy(
            outputs.logits, labels, reduction="none"
        ),
    )  # fmt: skip
    result = run.train()
    assert set(result.metrics) == {"epsilon", "steps_left", "epoch"}
    assert "eval_loss" in run.evaluate()


def test_prompt_tuning_is_the_sum_of_clipped_gradients(tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(gpt2(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    run = trainer(tmp_path, model, Texts(), max_steps=2)
    run.train()
    assert max(run.steps.errors(Texts())) < 1e-5


class PlainModel(nn.Module):
    """A model that is none of transformers'."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(50, 4), nn.Linear(4, 3)

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> dict[str, Any]:
        logits = self.out((self.table(input_ids) * attention_mask[..., None]).sum(1))
        return {"logits": logits} | (
            {} if labels is None else {"loss": torch.nn.functional.cross_entropy(logits, labels)}
        )


def test_a_model_of_an_unknown_loss_is_refused_and_the_same_model_trains_by_the_cure(tmp_path: Path) -> None:
    model = PlainModel()
    before = weights(model)
    run = trainer(tmp_path, model, Texts(3), NOISY, kind=PrivateTrainer)
    with pytest.raises(UnsupportedModelError, match="compute_loss_func"):
        run.train()
    assert is_as(model, before)
    cured = trainer(
        tmp_path, model, Texts(3), NOISY, kind=PrivateTrainer, max_steps=2,
        compute_loss_func=lambda outputs, labels: torch.nn.functional.cross_entropy(
            outputs["logits"], labels, reduction="none"
        ),
    )  # fmt: skip
    cured.train()
    assert cured.session.steps == 2


def test_a_trainer_that_was_interrupted_goes_on_from_its_checkpoint_and_says_what_was_lost(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, bert(), Texts(3), NOISY, kind=PrivateTrainer, save_strategy="steps", save_steps=3, callbacks=[Stop(5)]
    )
    with pytest.raises(KeyboardInterrupt):
        run.train()
    run.pop_callback(Stop)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-best" / RECEIPT).write_text("{}")
    run.train(resume_from_checkpoint=True)
    assert (run.lost_steps, run.session.steps) == (2, STEPS)


def test_what_is_no_trainer_and_no_privacy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="class of Trainers"):
        private(nn.Linear)
    with pytest.raises(InvalidArgumentError, match="must be a Privacy"):
        trainer(tmp_path, bert(), Texts(3), {"epsilon": 3})  # type: ignore[arg-type]


def test_the_methods_that_are_overridden_are_still_the_trainers() -> None:
    """A canary: a newer Trainer that no longer calls one of these would train past it."""
    import inspect

    for name in ("get_train_dataloader", "create_optimizer", "training_step", "train", "log", "floating_point_ops"):
        assert name in vars(Trainer), name
    assert list(inspect.signature(Trainer.training_step).parameters)[:3] == ["self", "model", "inputs"]
    loop = inspect.getsource(Trainer)
    for call in (
        "self.get_train_dataloader()",
        "self.training_step(",
        "self.set_initial_training_values(",
        "self.log(",
    ):
        assert call in loop, call
