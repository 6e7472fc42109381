"""Stages of one training in five frameworks are phases of one account, whose ε counts them all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lit import Lit, loader
from lit import trainer as lightning_trainer
from tiny import B, C, N, Texts, collate, gpt2
from torch import nn
from torch.utils.data import DataLoader

from hushgrad import Privacy
from hushgrad.accounting import epsilon, read_ledger
from hushgrad.accounting.guarantee import Guarantee
from hushgrad.errors import ContractChangedError, InvalidArgumentError, ProtocolError
from hushgrad.integrations.lightning import PrivateTraining
from hushgrad.integrations.model_losses import of_examples

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def arguments(kind: Any, folder: Path) -> Any:
    return kind(
        output_dir=str(folder), per_device_train_batch_size=B, num_train_epochs=1, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True, bf16=False, optim="sgd", learning_rate=0.1,
    )  # fmt: skip


def by_trainer(folder: Path, model: nn.Module, privacy: Privacy) -> Guarantee:
    from transformers import Trainer, TrainingArguments

    from hushgrad.integrations.transformers import private

    run = private(Trainer)(
        model=model, args=arguments(TrainingArguments, folder), train_dataset=Texts(), data_collator=collate,
        privacy=privacy,
    )  # fmt: skip
    run.train()
    run.session.close()
    return run.guarantee()


def by_trl(folder: Path, model: nn.Module, privacy: Privacy) -> Guarantee:
    from tiny_trl import texts, tokenizer
    from trl import SFTConfig, SFTTrainer

    from hushgrad.integrations.transformers import private

    run = private(SFTTrainer)(
        model=model, args=arguments(SFTConfig, folder), train_dataset=texts(), processing_class=tokenizer(),
        privacy=privacy,
    )  # fmt: skip
    run.train()
    run.session.close()
    return run.guarantee()


def by_loop(prepare: Any, framework: Any, model: Any, privacy: Privacy) -> Guarantee:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = DataLoader(Texts(), batch_size=B, collate_fn=collate)
    _, stepped, batches, session = prepare(framework, model, optimizer, data, privacy=privacy, epochs=1)
    for batch in batches:
        for item in batch:
            session.backward(of_examples(model, model, dict(item), None))
            session.end_item()
        stepped.step()
    session.close()
    return session.guarantee(privacy.target_delta)


def by_accelerate(folder: Path, model: nn.Module, privacy: Privacy) -> Guarantee:
    from accelerate import Accelerator

    from hushgrad.integrations.accelerate import prepare

    return by_loop(prepare, Accelerator(cpu=True), model, privacy)


def by_fabric(folder: Path, model: nn.Module, privacy: Privacy) -> Guarantee:
    from lightning.fabric import Fabric

    from hushgrad.integrations.fabric import prepare

    return by_loop(prepare, Fabric(accelerator="cpu", devices=1), model, privacy)


def by_lightning(folder: Path, model: nn.Module, privacy: Privacy) -> Guarantee:
    callback = PrivateTraining(privacy)
    lightning_trainer(folder, callback, max_epochs=1).fit(Lit(model, callback), callback.batches(loader()))
    assert callback.session is not None
    callback.session.close()
    return callback.guarantee()


STAGES: dict[str, Callable[[Path, nn.Module, Privacy], Guarantee]] = {
    "trainer": by_trainer,
    "accelerate": by_accelerate,
    "trl": by_trl,
    "lightning": by_lightning,
    "fabric": by_fabric,
}


def of_phase(folder: Path, name: str | None, target: float | None = None) -> Privacy:
    """A phase that keeps the account to a target; without one, its noise is 2."""
    noise = 2.0 if target is None else None
    ledger = folder / "ledger.jsonl"
    return Privacy(
        max_grad_norm=C, target_delta=1e-3, target_epsilon=target, noise_multiplier=noise, ledger=ledger, phase=name
    )


def test_stages_in_five_frameworks_are_one_account_whose_epsilon_each_stage_keeps_to(tmp_path: Path) -> None:
    model = gpt2()
    for place, (name, train) in enumerate(STAGES.items(), start=1):
        target = float(place)
        guarantee = train(tmp_path / name, model, of_phase(tmp_path, name, target))
        assert 0.98 * target < guarantee.epsilon <= target, "the noise is the smallest that keeps to the account's ε"
        assert "phases fixed beforehand" in {condition.name for condition in guarantee.conditions} or place == 1
        assert "uncounted steps" not in {condition.name for condition in guarantee.conditions}
    view = read_ledger(tmp_path / "ledger.jsonl")
    assert [phase.name for phase in view.phases] == list(STAGES)
    assert [phase.begins for phase in view.phases] == [place * N // B for place in range(len(STAGES))]
    assert epsilon(view.events, 1e-3) == guarantee.epsilon


@pytest.mark.parametrize("name", STAGES)
def test_a_phase_that_has_ended_and_an_account_of_phases_without_a_name_are_refused(name: str, tmp_path: Path) -> None:
    for phase in ("one", "two"):
        by_fabric(tmp_path, gpt2(), of_phase(tmp_path, phase))
    for phase in ("one", None):
        model = gpt2()
        before = [value.clone() for value in model.parameters()]
        with pytest.raises((ContractChangedError, ProtocolError)):
            STAGES[name](tmp_path / name, model, of_phase(tmp_path, phase))
        assert all(map(torch.equal, model.parameters(), before))
    assert read_ledger(tmp_path / "ledger.jsonl").steps == 2 * N // B


@pytest.mark.parametrize("name", ["trainer", "trl", "lightning"])
def test_a_phase_that_has_begun_is_gone_on_with_and_not_begun_again(name: str, tmp_path: Path) -> None:
    STAGES[name](tmp_path / name, gpt2(), of_phase(tmp_path, "one"))
    with pytest.raises(ProtocolError, match=r"holds 4 steps of the phase 'one'.* a phase of its own"):
        STAGES[name](tmp_path / name, gpt2(), of_phase(tmp_path, "one"))
    STAGES[name](tmp_path / f"{name}-2", gpt2(), of_phase(tmp_path, "two"))  # the cure


def test_a_phase_takes_a_ledger_and_a_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no ledger is named"):
        Privacy(max_grad_norm=C, target_delta=1e-3, target_epsilon=1.0, phase="one")
    with pytest.raises(InvalidArgumentError, match="phase"):
        of_phase(tmp_path, " ", 1.0)
