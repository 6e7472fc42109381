"""TRL's SFTTrainer trains privately by the same lines, with its own defaults, datasets and collate function."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_transformers import C, Stop, is_as, weights
from tiny import B, N, Steps, gpt2, llama
from tiny_trl import completions, masked, texts, tokenizer
from torch.nn import functional as F
from transformers import Trainer

from hushgrad import Privacy
from hushgrad.errors import IncompatibleFrameworkError
from hushgrad.integrations.trainer_checks import problems_of_class
from hushgrad.integrations.trainer_silence import OF_TRAINING_DATA
from hushgrad.integrations.transformers import private

trl = pytest.importorskip("trl")
SILENT = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=0.0)
NOISY = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.5, test_key=1)
PrivateSFT = private(trl.SFTTrainer)


def watched(kind: type[Any]) -> type[Any]:
    """A private class of Trainers whose steps are watched."""

    class Watched(kind):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            batches = super().get_train_dataloader()
            if not hasattr(self, "steps"):
                self.steps = Steps(self.model)
                self.steps.watch(self.session, self.optimizer)
                self.items = 0
            return batches

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            return super().training_step(model, self._seen(inputs), num_items_in_batch)

        def _seen(self, inputs: Any) -> Any:
            for item in inputs:
                self.items += 1
                self.steps.saw()
                yield item

    return Watched


WatchedSFT = watched(PrivateSFT)


def sft(out: Path, model: Any, data: Any, privacy: Privacy = SILENT, *, kind: Any = WatchedSFT, **settings: Any) -> Any:
    given = {name: settings.pop(name) for name in ("peft_config", "compute_loss_func", "callbacks") if name in settings}
    arguments: dict[str, Any] = {
        "output_dir": str(out),
        "per_device_train_batch_size": B // 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = trl.SFTConfig(**{**arguments, **settings})
    return kind(model=model, args=args, train_dataset=data, processing_class=tokenizer(), privacy=privacy, **given)


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM",
        init_lora_weights=False,
    )  # fmt: skip


def of_rows(run: Any) -> list[Any]:
    """The records as the Trainer prepared them, with labels and masks."""
    return [
        {
            "input_ids": row["input_ids"],
            "attention_mask": [1] * len(row["input_ids"]),
            "labels": row.get("labels", row["input_ids"]),
        }
        for row in run.train_dataset
    ]


PROGRAMS: dict[str, tuple[Callable[[], Any], Callable[[], Any], dict[str, Any]]] = {
    "full, texts": (gpt2, texts, {}),
    "LoRA, completions": (llama, completions, {"peft_config": lora}),
    "full, what an assistant said": (llama, masked, {"gradient_checkpointing": False}),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_update_is_the_sum_of_clipped_gradients_of_one_example_at_a_time(name: str, tmp_path: Path) -> None:
    make, data, settings = PROGRAMS[name]
    made = {key: value() if callable(value) else value for key, value in settings.items()}
    run = sft(tmp_path, make(), data(), bf16=False, **made)
    run.train()
    rows = of_rows(run)
    assert run.items > len(run.steps.steps) == run.state.global_step == N // B
    assert max(run.steps.errors(rows)) < 1e-5
    assert all(-100 in row["labels"] for row in rows) == (data is not texts)


def test_with_the_defaults_of_trl_the_update_is_that_sum_within_the_precision_of_bf16(tmp_path: Path) -> None:
    """Root mean square over steps: of one step alone, whose records are drawn by a secret key, it is up to 0.011."""
    run = sft(tmp_path, llama(), completions(), peft_config=lora(), max_steps=4)
    assert run.args.bf16
    assert run.args.gradient_checkpointing
    run.train()
    errors = run.steps.errors(of_rows(run))
    assert (sum(error**2 for error in errors) / len(errors)) ** 0.5 < 1e-2


def test_nothing_of_training_data_is_in_logs_states_or_model_cards(tmp_path: Path) -> None:
    run = sft(tmp_path, gpt2(), texts(), NOISY, kind=PrivateSFT, save_strategy="steps", save_steps=2)
    result = run.train()
    told = [*run.state.log_history, result.metrics]
    for state in tmp_path.glob("checkpoint-*/trainer_state.json"):
        told += json.loads(state.read_text())["log_history"]
    assert len(told) > 6
    assert all(not OF_TRAINING_DATA & set(entry) for entry in told)
    assert all("epsilon" in entry for entry in told)
    run.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert not any(word in card for word in ("loss:", "accuracy", "epoch", "w24"))


def test_what_evaluation_says_is_the_evaluation_datas(tmp_path: Path) -> None:
    run = sft(tmp_path, gpt2(), texts(), NOISY, kind=PrivateSFT, max_steps=2)
    run.train()
    evaluated = run.evaluate(texts())
    assert evaluated["eval_loss"] > 0
    assert evaluated["eval_num_tokens"] == 0


def test_a_crash_and_a_resume_keep_the_account(tmp_path: Path) -> None:
    privacy = Privacy(max_grad_norm=C, target_delta=1e-3, target_epsilon=3.0, spare_steps=1)
    first = sft(tmp_path, gpt2(), texts(), privacy, kind=PrivateSFT, save_strategy="steps", save_steps=2,
                callbacks=[Stop(3)])  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        first.train()
    first.session.close()
    run = sft(tmp_path, gpt2(), texts(), privacy, kind=PrivateSFT)
    run.train(resume_from_checkpoint=True)
    assert (run.lost_steps, run.state.global_step, run.session.steps) == (1, N // B, N // B + 1)


def dft(outputs: Any, labels: Any) -> torch.Tensor:
    """A loss of `loss_type='dft'`, of each example: a token's loss times its probability."""
    losses = F.cross_entropy(outputs.logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    return (losses * (-losses).exp().detach()).sum(1) / (labels[:, 1:] != -100).sum(1).clamp(min=1)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "packing, bfd": ({"packing": True, "max_length": 16}, {"packing": False}),
    "packing, wrapped": ({"packing": True, "packing_strategy": "wrapped", "max_length": 16}, {"packing": False}),
    "padding_free": ({"padding_free": True, "max_length": None}, {"padding_free": False}),
    "dft": ({"loss_type": "dft"}, {"compute_loss_func": dft}),
    "label smoothing": ({"label_smoothing_factor": 0.1}, {"compute_loss_func": dft}),
    "reentrant": (
        {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
    ),
    "offloading": ({"activation_offloading": True}, {"gradient_checkpointing": True}),
}


@pytest.mark.filterwarnings("ignore:`(compute_loss_func|label_smoothing_factor)` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_settings_of_trl_that_cannot_be_followed_are_refused_and_train_by_their_cure(name: str, tmp_path: Path) -> None:
    wrong, cure = REFUSED[name]
    model = gpt2()
    before = weights(model)
    with pytest.raises(IncompatibleFrameworkError) as caught:
        sft(tmp_path, model, texts(), NOISY, kind=PrivateSFT, bf16=False, **wrong)
    assert caught.value.cure
    assert is_as(model, before)
    assert not (tmp_path / "ledger.jsonl").exists()
    run = sft(tmp_path, model, texts(), NOISY, kind=PrivateSFT, bf16=False, max_steps=1, **cure)
    run.train()
    assert run.session.steps == 1


def mixture() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=32,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, router_aux_loss_coef=0.1,
        )
    )  # fmt: skip


def test_a_router_s_loss_over_the_batch_is_refused_and_the_model_trains_without_it(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleFrameworkError, match="router") as caught:
        sft(tmp_path, mixture(), texts(), NOISY, kind=PrivateSFT)
    assert "router_aux_loss_coef=0.0" in caught.value.cure
    run = sft(tmp_path, mixture(), texts(), NOISY, kind=PrivateSFT, bf16=False, router_aux_loss_coef=0.0, max_steps=1)
    run.train()
    assert run.session.steps == 1


def trainers_of_trl() -> dict[str, Any]:
    """Every class of Trainers that TRL brings, its experimental ones included, by name."""
    import importlib
    import pkgutil

    import trl.experimental

    places = [trl, *(f"trl.experimental.{one.name}" for one in pkgutil.iter_modules(trl.experimental.__path__))]
    modules = [importlib.import_module(place) if isinstance(place, str) else place for place in places]
    return {name: getattr(one, name) for one in modules for name in dir(one) if re.fullmatch("[A-Z].*Trainer", name)}


def test_every_trainer_of_trl_trains_records_of_its_own_or_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GRPO, RLOO, online DPO, distillation: a text that was generated is no record's. (PPO is in TRL no more.)"""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    said: dict[str, str] = {}
    for name, kind in trainers_of_trl().items():
        try:
            made = private(kind)
        except IncompatibleFrameworkError as error:
            said[name] = "generates" if "its own model generates" in error.what else "other records"
        else:  # one with a loss of its own is refused with its arguments
            said[name] = "own loss" if problems_of_class(made) else "trains"
    assert {name for name, verdict in said.items() if verdict == "trains"} == {"SFTTrainer", "DPOTrainer"}
    assert {name for name, verdict in said.items() if verdict == "other records"} == {"KTOTrainer"}
    own = {name for name, verdict in said.items() if verdict == "own loss"}
    assert own == {"RewardTrainer", "CPOTrainer", "ORPOTrainer", "TPOTrainer"}
    online = {name for name, verdict in said.items() if verdict == "generates"}
    assert {"GRPOTrainer", "RLOOTrainer", "OnlineDPOTrainer", "GKDTrainer", "DistillationTrainer"} <= online


def test_a_trainer_whose_loss_of_a_record_depends_on_others_is_refused() -> None:
    with pytest.raises(IncompatibleFrameworkError, match="other records") as caught:
        private(trl.KTOTrainer)
    assert "DPOTrainer" in caught.value.cure


def test_what_is_overridden_is_still_trls() -> None:
    """A canary: what private training takes the place of, and what it calls."""
    import inspect

    assert issubclass(trl.SFTTrainer, Trainer)
    assert issubclass(trl.DPOTrainer, Trainer)
    for kind in (trl.SFTTrainer, trl.DPOTrainer):
        assert {"compute_loss", "training_step", "log"} <= set(vars(kind))
        assert "args" in inspect.signature(kind.__init__).parameters
    source = inspect.getsource(trl.DPOTrainer)
    for used in ("beta", "label_smoothing", "loss_types", "loss_weights", "precompute_ref_logps", "ref_model"):
        assert f"self.{used} = " in source, used
    assert {"packing", "padding_free", "loss_type", "activation_offloading"} <= set(trl.SFTConfig.__dataclass_fields__)
    from trl.trainer.utils import use_adapter

    assert list(inspect.signature(use_adapter).parameters) == ["model", "adapter_name"]
