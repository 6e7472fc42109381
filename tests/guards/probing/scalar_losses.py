"""Loops with a loss of their own, and data for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine

COUNT, CLASSES, WORDS, LENGTH = 60, 5, 11, 6
GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(COUNT, 6, generator=GENERATOR)
LABELS = torch.randint(0, CLASSES, (COUNT,), generator=GENERATOR)
NUMBERS = torch.randn(COUNT, 1, generator=GENERATOR)
IDS = torch.randint(0, WORDS, (COUNT, LENGTH), generator=GENERATOR)
NEXT = IDS.roll(-1, 1)
LENGTHS = torch.randint(2, LENGTH + 1, (COUNT,), generator=GENERATOR)
CUT = NEXT.masked_fill(torch.arange(LENGTH) >= LENGTHS[:, None], -100)
"""Targets of which the examples have different numbers."""
LATE = NEXT.clone()
LATE[:, 0] = -100
"""Targets of which every example has the same number."""
RARE = LABELS.masked_fill(torch.arange(COUNT) % 3 == 0, -100)
WEIGHTS = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2])
SENTENCES = [ids[:length] + 1 for ids, length in zip(IDS, LENGTHS.tolist(), strict=True)]
Loss = Callable[[Any, Tensor], Tensor]
Calling = Callable[[nn.Module, Tensor], Any]


def classifier(outputs: int = CLASSES) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs))


def speaker() -> nn.Module:
    return nn.Sequential(nn.Embedding(WORDS + 2, 8), nn.Linear(8, WORDS))


def padded(records: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    ids = pad_sequence(list(records), batch_first=True)
    return ids, (ids - 1).masked_fill(ids == 0, -100).clamp(max=WORDS - 1)


def trained(
    model: nn.Module,
    data: Any,
    loss: Loss,
    *,
    batch_size: int = 12,
    steps: int = 4,
    call: Calling = lambda model, inputs: model(inputs),
    collate: Any = None,
    seed: int = 1,
    **settings: Any,
) -> PrivacyEngine:
    """Train some steps with a plain scalar loss, on batches drawn at random."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    engine = PrivacyEngine(test_key=seed)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=batch_size, collate_fn=collate),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        **settings,
    )
    while engine.session.steps < steps:
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss(call(model, inputs), targets).backward()
            optimizer.step()
            if engine.session.steps == steps:
                break
    return engine


def conditions(engine: PrivacyEngine) -> set[str]:
    """Return the names of what was taken on trust; the guarantee says them too, and takes a while to compute."""
    return {condition.name for condition in engine.session._parts.probe.conditions}


CLASSIFIED = TensorDataset(FEATURES, LABELS)
MEASURED = TensorDataset(FEATURES, NUMBERS)
FLAT = TensorDataset(FEATURES, NUMBERS[:, 0])
SPOKEN, SPOKEN_CUT, SPOKEN_LATE = (TensorDataset(IDS, targets) for targets in (NEXT, CUT, LATE))


def rows(logits: Tensor, targets: Tensor, **settings: Any) -> Tensor:
    return F.cross_entropy(logits.reshape(-1, WORDS), targets.reshape(-1), **settings)


def each(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.transpose(1, 2), targets.clamp(min=0), reduction="none")


def private_loop(model: nn.Module, data: Any, **settings: Any) -> tuple[PrivacyEngine, torch.optim.Optimizer, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    engine = PrivacyEngine(test_key=1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=12),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        **settings,
    )
    return engine, optimizer, loader
