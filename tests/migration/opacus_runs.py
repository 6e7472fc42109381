"""Runs of Opacus itself, and the same models written with torch's own layers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import opacus
import torch
from opacus.layers import DPGRU, DPLSTM, DPRNN, DPMultiheadAttention
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

N, B, C, SIGMA = 40, 10, 1.0, 1.5
FIXTURES = Path(__file__).parent / "fixtures"

SAID: dict[str, Any] = {
    "poisson_sampling": True,
    "batch_size": B,
    "population": N,
    "max_grad_norm": C,
    "clipping": "flat",
}
"""What is to be said of these runs."""
SHUFFLED: dict[str, Any] = {**SAID, "poisson_sampling": False, "passes": 2}


class Recurrent(nn.Module):
    """A recurrent layer of two layers and both directions, and a head; x: `[B, 5, 3]`."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.lstm = kind(3, 2, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x)[0][:, -1])
        return out


class Attending(nn.Module):
    """Attention and a head, time first: x `[5, B, 4]`."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.attention = kind(4, 2, **options)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        mean_over = 1 if getattr(self.attention, "batch_first", False) else 0
        out: Tensor = self.head(self.attention(x, x, x)[0]).mean(mean_over)
        return out


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


RECURRENT = {"LSTM": (DPLSTM, nn.LSTM), "GRU": (DPGRU, nn.GRU), "RNN": (DPRNN, nn.RNN)}
ATTENTION = (DPMultiheadAttention, nn.MultiheadAttention)


def data(*shape: int) -> TensorDataset:
    """Return 40 records of a shape, with labels 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(N, *shape, generator=generator), torch.randint(2, (N,), generator=generator))


def probe_of(*shape: int) -> Tensor:
    """Return two records on which outputs are compared; those of `fixtures/make.py`."""
    numbers = 2 * int(torch.tensor(shape).prod())
    return torch.linspace(-1, 1, numbers).reshape(2, *shape)


class OpacusRun:
    """Seven steps of Opacus, by default Poisson sampled; `engine`, `module` and `optimizer` are Opacus' own."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...], **options: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            self.engine = opacus.PrivacyEngine(accountant=options.pop("accountant", "rdp"))
            settings = {"noise_multiplier": SIGMA, "max_grad_norm": C, **options}
            settings.pop("schedule", None)
            batch_size = settings.pop("batch_size", B)
            self.module, self.optimizer, loader = self.engine.make_private(
                module=model,
                optimizer=torch.optim.Adam(model.parameters(), lr=0.1),
                data_loader=DataLoader(data(*shape), batch_size=batch_size, shuffle=True),
                **settings,
            )
            self.schedule = options["schedule"](self.optimizer) if "schedule" in options else None
            taken = 0
            while taken < 7:
                for x, y in loader:
                    self.optimizer.zero_grad()
                    nn.functional.cross_entropy(self.module(x), y).backward()
                    self.optimizer.step()
                    if self.schedule is not None:
                        self.schedule.step()
                    taken += 1
                    if taken == 7:
                        break

    def save(self, path: Path, **options: Any) -> Path:
        """Write Opacus' checkpoint."""
        self.engine.save_checkpoint(path=path, module=self.module, optimizer=self.optimizer, **options)
        return path

    def output(self, *shape: int) -> Tensor:
        """Return what the trained model gives for the probe."""
        self.module.eval()
        with torch.no_grad():
            found: Tensor = self.module(probe_of(*shape))
        return found
