"""Models of several kinds, with the same weights in every process, and data for each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

N = 96
CLASSES = 5


class Tied(nn.Module):
    """An embedding that is also the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        return self.layer(self.embedding(ids)).mean(1) @ self.embedding.weight[:CLASSES].T


class Last(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 12, batch_first=True), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 300), nn.ReLU(), nn.Linear(300, 300), nn.LayerNorm(300), nn.Linear(300, CLASSES))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, CLASSES)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "MLP": (mlp, lambda: torch.randn(N, 20)),
    "CNN": (cnn, lambda: torch.randn(N, 2, 6, 6)),
    "tied transformer": (Tied, lambda: torch.randint(0, 40, (N, 7))),
    "LSTM": (Last, lambda: torch.randn(N, 5, 6)),
}


def model_of(name: str) -> nn.Module:
    torch.manual_seed(3)
    return MODELS[name][0]()


def data_of(name: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return MODELS[name][1](), torch.randint(0, CLASSES, (N,))
