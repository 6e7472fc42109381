"""Loops and Trainers of other packages in several processes, as torchrun launches them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from parallel_models import data_of, model_of
from process_worker import RANK, WORLD, B, C
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad.parallel.replicas import digest

sys.path.insert(0, str(Path(__file__).parents[1] / "integrations"))


def launched(**variables: str) -> None:
    """Set what torchrun sets."""
    os.environ |= {
        "LOCAL_RANK": str(RANK), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "GROUP_RANK": "0",
        "LOCAL_WORLD_SIZE": str(WORLD), "TORCHELASTIC_RUN_ID": "run", **variables,
    }  # fmt: skip


def accelerate(state: str) -> dict[str, Any]:
    """A loop of Accelerate: two steps, a saved state, and two more from it."""
    launched(ACCELERATE_USE_CPU="1")
    from accelerate import Accelerator

    from hushgrad import Privacy
    from hushgrad.integrations.accelerate import prepare

    model = model_of("MLP")
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    loader = DataLoader(TensorDataset(*data_of("MLP")), batch_size=B // WORLD)
    accelerator = Accelerator(cpu=True)
    privacy = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.0, ledger=f"{state}.ledger")
    prepared, stepped, batches, session = prepare(
        accelerator, model, optimizer, loader, privacy=privacy, epochs=4, max_physical_batch_size=3
    )
    items = 0
    for number, batch in enumerate(batches):
        for x, y in batch:
            items += 1
            losses = nn.functional.cross_entropy(prepared(x), y, reduction="none")
            session.backward(losses)
            session.end_item()
        stepped.step()
        if number == 1:
            accelerator.save_state(state)
        if number == 3:
            break
    accelerator.load_state(state)
    return {
        "processes": accelerator.num_processes, "form": type(prepared).__name__, "mechanism": repr(session.mechanism),
        "steps": session.steps, "length": len(batches), "items": items, "epsilon": session.epsilon(1e-3),
        "weights": digest(model.parameters()),
    }  # fmt: skip


def trainer(out: str) -> dict[str, Any]:
    """Hugging Face's Trainer: four steps, and four more after a restart from its checkpoint."""
    launched(HF_HUB_OFFLINE="1")
    from tiny import Texts, bert, collate
    from transformers import Trainer, TrainingArguments

    from hushgrad import Privacy
    from hushgrad.integrations.transformers import private

    told: dict[str, Any] = {}
    for name, resumes in (("first", False), ("again", True)):
        arguments = TrainingArguments(
            out, per_device_train_batch_size=4 // WORLD, gradient_accumulation_steps=2, num_train_epochs=2,
            use_cpu=True, ddp_backend="gloo" if WORLD > 1 else None, report_to=[], logging_steps=1, save_steps=4,
            learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", disable_tqdm=True,
        )  # fmt: skip
        privacy = Privacy(max_grad_norm=0.5, target_delta=1e-3, target_epsilon=4.0, spare_steps=6)
        run = private(Trainer)(
            model=bert(), args=arguments, train_dataset=Texts(classes=3), data_collator=collate, privacy=privacy
        )
        run.train(resume_from_checkpoint=f"{out}/checkpoint-4" if resumes else None)
        assert run.session is not None
        told[name] = {
            "processes": run.args.world_size, "mechanism": repr(run.session.mechanism), "steps": run.session.steps,
            "global step": run.state.global_step, "lost": run.lost_steps, "weights": digest(run.model.parameters()),
            "epsilon": run.session.epsilon(1e-3),
        }  # fmt: skip
        run.session.close()
    return told


def sft(out: str) -> dict[str, Any]:
    """TRL's Trainer of texts, with LoRA: one pass."""
    launched(HF_HUB_OFFLINE="1")
    import trl
    from peft import LoraConfig
    from tiny import llama
    from tiny_trl import completions, tokenizer

    from hushgrad import Privacy
    from hushgrad.integrations.transformers import private

    torch.manual_seed(0)
    arguments = trl.SFTConfig(
        out, per_device_train_batch_size=4 // WORLD, gradient_accumulation_steps=2, num_train_epochs=1, use_cpu=True,
        ddp_backend="gloo" if WORLD > 1 else None, report_to=[], save_strategy="no", learning_rate=0.1, optim="sgd",
        lr_scheduler_type="constant", disable_tqdm=True, bf16=False, logging_steps=1,
    )  # fmt: skip
    adapters = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["q_proj"], task_type="CAUSAL_LM")
    run = private(trl.SFTTrainer)(
        model=llama(), args=arguments, train_dataset=completions(), processing_class=tokenizer(), peft_config=adapters,
        privacy=Privacy(max_grad_norm=0.5, target_delta=1e-3, noise_multiplier=0.0, test_key=1),
    )  # fmt: skip
    run.train()
    assert run.session is not None
    return {
        "processes": run.args.world_size, "mechanism": repr(run.session.mechanism), "steps": run.session.steps,
        "global step": run.state.global_step, "weights": digest(run.model.parameters()),
        "moved": _norms(run.model),
    }  # fmt: skip


def fabric(state: str) -> dict[str, Any]:
    """A loop of Fabric: two steps, a saved state, and two more from it."""
    launched()
    from lightning.fabric import Fabric

    from hushgrad import Privacy
    from hushgrad.integrations.fabric import load, prepare, save

    model = model_of("MLP")
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    loader = DataLoader(TensorDataset(*data_of("MLP")), batch_size=B // WORLD)
    runner = Fabric(accelerator="cpu", devices=WORLD, strategy="ddp" if WORLD > 1 else "auto")
    runner.launch()
    privacy = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=0.0, ledger=f"{state}.ledger", test_key=1)
    prepared, stepped, batches, session = prepare(
        runner, model, optimizer, loader, privacy=privacy, epochs=4, max_physical_batch_size=3
    )
    parts = {"model": prepared, "optimizer": stepped}
    for number, batch in enumerate(batches):
        for x, y in batch:
            session.backward(nn.functional.cross_entropy(prepared(x), y, reduction="none"))
            session.end_item()
        stepped.step()
        if number == 1:
            save(runner, state, parts, session)
            moved = _norms(model)
        if number == 3:
            break
    lost = load(runner, state, parts, session)
    return {
        "processes": runner.world_size, "mechanism": repr(session.mechanism), "steps": session.steps, "lost": lost,
        "length": len(batches), "weights": digest(model.parameters()), "moved": moved, "again": _norms(model),
    }  # fmt: skip


def lightning(root: str) -> dict[str, Any]:
    """Lightning's Trainer: two passes, and one more after a restart from its checkpoint."""
    launched()
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lit import Small, trainer

    from hushgrad import Privacy
    from hushgrad.integrations.lightning import PrivateTraining

    told: dict[str, Any] = {}
    torch.manual_seed(1)
    x, y = torch.randn(48, 5), torch.randint(3, (48,))
    for name, epochs, path in (("first", 2, None), ("again", 3, f"{root}/last.ckpt")):
        privacy = PrivateTraining(
            Privacy(max_grad_norm=0.5, target_delta=1e-3, noise_multiplier=0.0, test_key=1), max_physical_batch_size=3
        )
        module = Small(privacy)
        run = trainer(
            Path(root), privacy, max_epochs=epochs, devices=WORLD, strategy="ddp" if WORLD > 1 else "auto",
            callbacks=[ModelCheckpoint(root, save_last=True, save_top_k=0)],
        )  # fmt: skip
        run.fit(module, privacy.batches(DataLoader(TensorDataset(x, y), batch_size=8 // WORLD)), ckpt_path=path)
        session = privacy.session
        assert session is not None
        told[name] = {
            "processes": run.world_size, "mechanism": repr(session.mechanism), "steps": session.steps,
            "global step": run.global_step, "lost": privacy.lost_steps, "weights": digest(module.parameters()),
            "moved": _norms(module),
        }  # fmt: skip
        session.close()
    return told


def _norms(model: nn.Module) -> list[float]:
    """Return the norms of what is trained: close on one process and several, where noise is 0."""
    return [p.detach().double().norm().item() for p in model.parameters() if p.requires_grad]
