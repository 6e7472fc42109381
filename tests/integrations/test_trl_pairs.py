"""TRL's DPOTrainer trains privately on pairs of answers: each pair is one record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_transformers import is_as, weights
from test_trl import NOISY, SILENT, lora, watched
from tiny import B, N, gpt2, llama
from tiny_trl import preferences, tokenizer
from torch import nn
from torch.nn import functional as F

from hushgrad import Privacy
from hushgrad.errors import IncompatibleFrameworkError, UnsupportedModelError
from hushgrad.integrations.pair_losses import LOSSES
from hushgrad.integrations.trainer_silence import OF_TRAINING_DATA
from hushgrad.integrations.transformers import private

trl = pytest.importorskip("trl")
PrivateDPO = private(trl.DPOTrainer)
WatchedDPO = watched(PrivateDPO)
BETA = 0.1


def dpo(out: Path, model: Any, privacy: Privacy = SILENT, *, kind: Any = WatchedDPO, **settings: Any) -> Any:
    given = {name: settings.pop(name) for name in ("peft_config", "ref_model") if name in settings}
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
        "bf16": False,
    }
    args = trl.DPOConfig(**{**arguments, **settings})
    return kind(
        model=model, args=args, train_dataset=preferences(), processing_class=tokenizer(), privacy=privacy, **given
    )


def log_probability(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Written down anew, of one answer without padding."""
    ids = torch.tensor([prompt + answer])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return F.log_softmax(logits.float(), -1).gather(1, torch.tensor(answer)[:, None]).sum()


class Records:
    """The pairs as the Trainer prepared them, with what the reference says of each."""

    def __init__(self, run: Any, reference: Callable[[], Any]) -> None:
        self.rows = list(run.train_dataset)
        model = reference()
        with torch.no_grad():
            self.said = [
                [log_probability(model, row["prompt_ids"], row[f"{answer}_ids"]) for answer in ("chosen", "rejected")]
                for row in self.rows
            ]

    def __getitem__(self, place: int) -> Any:
        return {"input_ids": [place], "attention_mask": [1], "labels": [place]}  # the records' numbers alone

    def loss(self, model: Any, batch: Any) -> torch.Tensor:
        place = int(batch["labels"][0])
        row = self.rows[place]
        gains = [
            log_probability(model, row["prompt_ids"], row[f"{answer}_ids"]) - said
            for answer, said in zip(("chosen", "rejected"), self.said[place], strict=True)
        ]
        return -F.logsigmoid(BETA * (gains[0] - gains[1]))


def reference() -> nn.Module:
    """Another model than the one that is trained."""
    model = gpt2()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


PROGRAMS: dict[str, tuple[Callable[[], Any], Callable[[], Any], dict[str, Any]]] = {
    "LoRA, adapters off": (llama, llama, {"peft_config": lora}),
    "full, a model of its own": (gpt2, reference, {"ref_model": reference, "gradient_checkpointing": False}),
    "full, stored": (gpt2, gpt2, {"precompute_ref_log_probs": True}),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_update_is_the_sum_of_clipped_gradients_of_one_pair_at_a_time(name: str, tmp_path: Path) -> None:
    make, of_reference, settings = PROGRAMS[name]
    made = {key: value() if callable(value) else value for key, value in settings.items()}
    run = dpo(tmp_path, make(), learning_rate=1e-2, **made)
    run.train()
    records = Records(run, of_reference)
    assert run.items > len(run.steps.steps) == run.state.global_step == N // B
    assert max(run.steps.errors(records, records.loss)) < 1e-5
    told = {condition.name for condition in run.guarantee().conditions}
    assert told == {"hooks on the optimizer"}, "of the watching alone: nothing of a pair is read by the loop"


def test_with_the_defaults_of_trl_the_update_is_that_sum_within_the_precision_of_bf16(tmp_path: Path) -> None:
    run = dpo(tmp_path, llama(), peft_config=lora(), bf16=None, max_steps=2)
    assert run.args.bf16
    run.train()
    records = Records(run, llama)
    assert max(run.steps.errors(records, records.loss)) < 2e-2


@pytest.mark.parametrize("kind", LOSSES)
def test_each_loss_is_that_of_trl_for_one_pair(kind: str, tmp_path: Path) -> None:
    run = dpo(tmp_path, gpt2(), kind=PrivateDPO, ref_model=reference(), loss_type=[kind], label_smoothing=0.1)
    batch = run._collate(run.data_collator)([run.train_dataset[place] for place in range(3)])
    ours = run.per_example_losses(run.model.eval(), batch)
    for place in range(3):
        theirs = run.compute_loss(run.model, run.data_collator([run.train_dataset[place]]))
        assert ours[place].item() == pytest.approx(theirs.item(), rel=1e-5)


def test_nothing_of_training_data_is_in_logs_or_states(tmp_path: Path) -> None:
    run = dpo(tmp_path, llama(), NOISY, kind=PrivateDPO, peft_config=lora(), save_strategy="steps", save_steps=2)
    result = run.train()
    told = [*run.state.log_history, result.metrics]
    for state in tmp_path.glob("checkpoint-*/trainer_state.json"):
        told += json.loads(state.read_text())["log_history"]
    assert all("epsilon" in entry and not OF_TRAINING_DATA & set(entry) for entry in told)
    assert not any("/" in name for entry in told for name in entry)  # rewards/chosen, logps/rejected, ...
    assert not run._metrics["eval"]
    assert "not examined" not in str(run.guarantee()).lower()


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sorted together": ({"loss_type": ["aot"]}, {"loss_type": ["sigmoid"]}),
    "averaged together": ({"loss_type": ["sigmoid", "sft"]}, {"loss_type": ["sigmoid", "hinge"]}),
    "weighted": ({"use_weighting": True}, {"use_weighting": False}),
    "of shared lengths": ({"ld_alpha": 0.5}, {"ld_alpha": None}),
    "another divergence": ({"f_divergence_type": "forward_kl"}, {"f_divergence_type": "reverse_kl"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_losses_that_are_not_known_are_refused_and_the_cure_trains(name: str, tmp_path: Path) -> None:
    wrong, cure = REFUSED[name]
    model = gpt2()
    before = weights(model)
    with pytest.raises(IncompatibleFrameworkError) as caught:
        dpo(tmp_path, model, NOISY, kind=PrivateDPO, ref_model=gpt2(), **wrong)
    assert str(next(iter(cure.values()))).strip("[]").split(",")[0].strip("'") in caught.value.cure
    assert is_as(model, before)
    run = dpo(tmp_path, model, NOISY, kind=PrivateDPO, ref_model=gpt2(), max_steps=1, **cure)
    run.train()
    assert run.session.steps == 1


class Doubled(trl.DPOTrainer):  # type: ignore[misc]
    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        return 2 * super()._compute_loss(model, inputs, return_outputs)


class DoubledByPair(Doubled):
    def per_example_losses(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        masks = [inputs[f"{answer}_attention_mask"] for answer in ("chosen", "rejected")]
        ids = [inputs[f"{answer}_input_ids"] for answer in ("chosen", "rejected")]
        logits = [model(input_ids=one, attention_mask=mask).logits for one, mask in zip(ids, masks, strict=True)]
        scores = [(one.mean(2) * mask).sum(1) for one, mask in zip(logits, masks, strict=True)]
        return -2 * F.logsigmoid(scores[0] - scores[1])


def test_another_loss_than_trls_is_refused_with_the_weights_unmoved_and_trains_by_the_cure(tmp_path: Path) -> None:
    model = gpt2()
    before = weights(model)
    run = dpo(tmp_path, model, NOISY, kind=private(Doubled), ref_model=gpt2())
    with pytest.raises(UnsupportedModelError, match="own loss of one pair") as caught:
        run.train()
    assert "per_example_losses" in caught.value.cure
    assert is_as(model, before)
    cured = dpo(tmp_path, model, NOISY, kind=private(DoubledByPair), ref_model=gpt2(), max_steps=1)
    cured.train()
    assert cured.session.steps == 1


def test_without_arguments_it_has_those_of_its_own_kind() -> None:
    from hushgrad.integrations.trainer_arguments import Given

    given = Given(trl.DPOTrainer.__mro__, (1, 2, 3), {})
    assert given.args == 3  # after the model and the reference
    assert given.with_args(4) == ((1, 2, 4), {})
    assert Given(trl.DPOTrainer.__mro__, (1,), {"args": 5}).with_args(6) == ((1,), {"args": 6})
    assert Given(trl.SFTTrainer.__mro__, (1, 2), {}).args == 2
    assert Given(trl.SFTTrainer.__mro__, (1,), {}).args is None
