"""The clean zoo in several processes: one update of each model beside that of one process, and 20 steps of Adam."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from process_worker import RANK, WORLD, keeping_to
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.parallel.replicas import digest

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))

from clean_models import CLEAN, Clean, call, losses

N = 6
ROWS = {"ResNet-18 with group norm": 1}
"""The most rows in an item, where twenty convolutions of one and of two rows round otherwise; 2 elsewhere."""


def zoo(folder: str, names: list[str], steps: int) -> dict[str, Any]:
    """For each model how far its update is from the one that one process left in the folder, and its weights after."""
    warnings.simplefilter("ignore")
    return {name: _one(name, CLEAN[name], Path(folder, f"{number}.pt"), steps) for number, name in enumerate(names)}


def _one(name: str, entry: Clean, path: Path, steps: int) -> dict[str, Any]:
    torch.manual_seed(5)
    model, inputs = without_dropout(entry.make()), entry.inputs(N)
    update = _update(model, entry, inputs, ROWS.get(name, 2))
    if WORLD == 1:
        torch.save(update, path)
        return {}
    wanted = torch.load(path)
    torch.manual_seed(RANK)  # the same weights all the same: DistributedDataParallel sends those of rank 0
    return {
        "error": ((update - wanted).norm() / wanted.norm()).item(),
        "weights": _trained(without_dropout(entry.make()), entry, inputs, steps) if steps else "",
    }


def without_dropout(model: nn.Module) -> nn.Module:
    """Return the model in training, without numbers that its layers would draw."""
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, nn.MultiheadAttention | nn.RNNBase):
            part.dropout = 0.0
    return model


def _engine(model: nn.Module, optimizer: torch.optim.Optimizer, data: Any, rows: int, **options: Any) -> Any:
    engine = PrivacyEngine(test_key=3)
    _, _, loader = engine.make_private(
        module=model, optimizer=optimizer, data_loader=data, max_grad_norm=0.5, max_physical_batch_size=rows, **options
    )
    return engine, loader


def _loader(inputs: Any, batch_size: int) -> tuple[DataLoader[Any], Any]:
    names = list(inputs) if isinstance(inputs, dict) else None
    values = list(inputs.values()) if names else inputs if isinstance(inputs, tuple) else (inputs,)

    def given(batch: Any) -> Any:
        return dict(zip(names, batch, strict=True)) if names else tuple(batch)

    return DataLoader(TensorDataset(*values), batch_size=batch_size), given


def _update(model: nn.Module, entry: Clean, inputs: Any, rows: int) -> Tensor:
    """Return the first update, without noise, of all records."""
    run = DistributedDataParallel(model) if WORLD > 1 else model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    data, given = _loader(inputs, N)
    engine, loader = _engine(run, optimizer, data, rows, noise_multiplier=0.0, poisson_sampling=False)
    seen: list[Tensor] = []
    optimizer.register_step_pre_hook(keeping_to(engine, model, seen))
    for batch in loader:
        engine.session.backward(losses(entry.take(call(run, given(batch)))))
        optimizer.step()
    engine.session.close()
    return seen[0]


def _trained(model: nn.Module, entry: Clean, inputs: Any, steps: int) -> str:
    run = DistributedDataParallel(model)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    data, given = _loader(inputs, N // 2)
    engine, loader = _engine(run, optimizer, data, 2, noise_multiplier=1.0)
    session = engine.session
    while session.steps < steps:
        for batch in loader:
            session.backward(losses(entry.take(call(run, given(batch)))))
            optimizer.step()
            if session.steps == steps:
                break
    session.close()
    return digest(model.parameters())
