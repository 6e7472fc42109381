"""Lightning's Trainer trains privately by one callback: the update, the noise, the account, what it tells."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lit import NOISY, SILENT, STEPS, Lit, fit, loader, trainer
from tiny import B, C, N, Texts, bert, collate, gpt2, llama_with_lora
from torch import nn
from torch.utils.data import DataLoader

from hushgrad import Privacy
from hushgrad.integrations.lightning import PrivateTraining

MODELS: dict[str, tuple[Callable[[], nn.Module], int | None, dict[str, Any]]] = {
    "BERT, classes": (bert, 3, {}),
    "GPT-2, fused AdamW and workers": (gpt2, None, {"kind": torch.optim.AdamW, "workers": 1, "fused": True}),
    "GPT-2 with checkpointing": (gpt2, None, {"checkpointing": True}),
    "Llama with LoRA": (llama_with_lora, None, {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_update_is_the_sum_of_clipped_gradients_of_one_example_at_a_time(name: str, tmp_path: Path) -> None:
    make, classes, settings = MODELS[name]
    module, run, privacy = fit(tmp_path, make(), classes, SILENT, **settings)
    assert module.items > len(module.steps.steps) == run.global_step == STEPS
    assert max(module.steps.errors(Texts(classes))) < 1e-5


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_in_bf16_the_update_is_that_sum_within_the_precision(precision: Any, tmp_path: Path) -> None:
    module, _, _ = fit(tmp_path, gpt2(), None, SILENT, precision=precision, max_steps=3)
    assert max(module.steps.errors(Texts())) < 1e-2


@pytest.mark.statistical
def test_the_noise_has_the_standard_deviation_that_is_charged(tmp_path: Path) -> None:
    """More than 45,000 values: 1% is 3 standard deviations; false-alarm probability 0.3%. The key is fixed."""
    module, _, _ = fit(tmp_path, gpt2(), None, NOISY)
    noise = module.steps.noise(Texts())
    assert len(noise) >= 45_000
    assert noise.std().item() == pytest.approx(1.5 * C, rel=0.01)
