"""A record's loss is computed alike in every batch, or the run says so."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.accounting.conditions import LOSSES_CHANGE
from hushgrad.errors import TakenOnTrustError

D, K, V, RECORDS, STEPS = 4, 3, 9, 24, 10
GENERATOR = torch.Generator().manual_seed(3)
INPUTS, TARGETS = torch.randn(RECORDS, D, generator=GENERATOR), torch.arange(RECORDS) % K

ALWAYS = {"fixed key", "no ledger path"}


def ce(output: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(output, targets, reduction="none")


class Loop:
    """One run of a loop: what it has, and the number of the step."""

    def __init__(self, model: nn.Module, engine: PrivacyEngine) -> None:
        self.model, self.engine, self.step, self.last = model, engine, 0, 0
        self.scale = 1.0
        self.criterion = engine.per_example(ce)
        self.scaled = engine.per_example(lambda output, targets: ce(output, targets) * self.scale)

    def rows(self, losses: Tensor) -> None:
        self.engine.session.backward(losses)

    def by_attribute(self, scale: float, inputs: Tensor, targets: Tensor) -> None:
        self.scale = scale
        self.scaled(self.model(inputs), targets).backward()

    def with_modes(self, is_training: bool, inputs: Tensor, targets: Tensor) -> None:
        self.model.train(is_training)
        self.criterion(self.model(inputs), targets).backward()

    def with_scale(self, scale: float, inputs: Tensor, targets: Tensor) -> None:
        self.model.scale = scale  # type: ignore[assignment]
        self.criterion(self.model(inputs), targets).backward()

    def with_frozen(self, is_frozen: bool, inputs: Tensor, targets: Tensor) -> None:
        self.model.layer.requires_grad_(not is_frozen)  # type: ignore[operator]
        self.criterion(self.model(inputs), targets).backward()


class Model(nn.Module):
    """Takes a number, and has another."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head, self.scale, self.calls = nn.Linear(D, 5), nn.Linear(5, K), 1.0, 0
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs: Tensor, factor: float = 1.0, *, flag: bool = False) -> Tensor:
        self.calls += 1  # by each forward, whatever its batch
        return self.head(self.dropout(self.layer(inputs).tanh())) * self.scale * factor * (0.5 if flag else 1)


Step = Callable[[Loop, Tensor, Tensor], Any]
TABLE = [0.1 + 0.9 * (n % 2) for n in range(RECORDS + 1)]


def odd(values: Tensor) -> int:
    return len(values) % 2


FOLLOWING: dict[str, Step] = {
    "a weight": lambda a, x, y: a.rows(ce(a.model(x), y) * (0.05 if odd(y) else 1.0)),
    "a table": lambda a, x, y: a.rows(ce(a.model(x), y) * TABLE[len(y)]),
    "inputs": lambda a, x, y: a.criterion(a.model(x * 0.05 if odd(x) else x), y).backward(),
    "a threshold": lambda a, x, y: a.criterion(a.model(x) * (0.05 if len(x) > RECORDS // 2 else 1), y).backward(),
    "targets": lambda a, x, y: a.criterion(a.model(x), (y + len(y)) % K).backward(),
    "smoothing": lambda a, x, y: a.rows(
        F.cross_entropy(a.model(x), y, reduction="none", label_smoothing=0.9 if odd(x) else 0.0)
    ),
    "a number given to the model": lambda a, x, y: a.criterion(a.model(x, odd(x) + 1), y).backward(),
    "a flag given to the model": lambda a, x, y: a.criterion(a.model(x, flag=odd(x) == 1), y).backward(),
    "an attribute of the model": lambda a, x, y: a.with_scale(odd(x) + 1, x, y),
    "an attribute that a criterion reads": lambda a, x, y: a.by_attribute(odd(x) + 1, x, y),
    "modes": lambda a, x, y: a.with_modes(odd(x) == 1, x, y),
    "what is trained": lambda a, x, y: a.with_frozen(odd(x) == 1, x, y),
    "a scalar loss": lambda a, x, y: (F.cross_entropy(a.model(x), y) * (0.05 if odd(y) else 1.0)).backward(),
    "the number of an earlier batch": lambda a, x, y: a.rows(ce(a.model(x), y) * TABLE[a.last]),
    "the rate of dropout": lambda a, x, y: a.criterion(a.model(F.dropout(x, 0.8 if odd(x) else 0.1)), y).backward(),
    "the scale of noise": lambda a, x, y: a.criterion(a.model(x + torch.randn(D) * (odd(x) + 3)), y).backward(),
    "a seed": lambda a, x, y: (torch.manual_seed(odd(x)), a.criterion(a.model(x + torch.randn(D)), y).backward()),
    "a generator's seed": lambda a, x, y: a.criterion(
        a.model(x + torch.randn(D, generator=torch.Generator().manual_seed(odd(x)))), y
    ).backward(),
    "how many forwards": lambda a, x, y: a.rows(ce(a.model(x), y) + (ce(a.model(x), y) if odd(x) else 0)),
    "a schedule of steps, which nobody can tell from them": lambda a, x, y: a.rows(ce(a.model(x), y) / (1 + a.step)),
}

SAME: dict[str, Step] = {
    "a constant weight": lambda a, x, y: a.rows(ce(a.model(x), y) * 0.05),
    "an entry of a table": lambda a, x, y: a.rows(ce(a.model(x), y) * TABLE[3]),
    "targets by the record": lambda a, x, y: a.criterion(a.model(x), (y + (x[:, 0] > 0)) % K).backward(),
    "smoothing": lambda a, x, y: a.rows(F.cross_entropy(a.model(x), y, reduction="none", label_smoothing=0.1)),
    "a number given to the model": lambda a, x, y: a.criterion(a.model(x, 2.0, flag=True), y).backward(),
    "a scalar loss": lambda a, x, y: F.cross_entropy(a.model(x), y).backward(),
    "a scalar sum, divided": lambda a, x, y: (ce(a.model(x), y).sum() / len(y)).backward(),
    "modes that are set": lambda a, x, y: a.with_modes(True, x, y),
    "noise": lambda a, x, y: a.criterion(a.model(x + 0.1 * torch.randn(x.shape)), y).backward(),
    "noise of the batch's shape": lambda a, x, y: a.criterion(a.model(x + 0.1 * torch.randn_like(x)), y).backward(),
    "noise of one number": lambda a, x, y: a.criterion(a.model(x * torch.rand(())), y).backward(),
    "dropout": lambda a, x, y: a.criterion(a.model(F.dropout(x, 0.3)), y).backward(),
    "two forwards": lambda a, x, y: a.rows(ce(a.model(x), y) + ce(a.model(x * 0.9), y)),
    "a penalty of released parameters": lambda a, x, y: a.rows(
        ce(a.model(x) + a.model.head.bias.detach(), y)  # type: ignore[union-attr, operator]
    ),
    "a check of the batch": lambda a, x, y: a.rows(ce(a.model(x), y) if len(x) == len(y) else ce(x, y)),
}


def conditions(step: Step, model: nn.Module, data: Any, collate: Any = None, **settings: Any) -> set[str]:
    """Train some steps on batches that are drawn; return what was taken on trust."""
    torch.manual_seed(0)
    random.seed(0)
    engine = PrivacyEngine(test_key=4, **settings)
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=RECORDS // 2, collate_fn=collate),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    loop = Loop(model, engine)
    while loop.step < STEPS:
        for inputs, targets in loader:
            optimizer.zero_grad()
            step(loop, inputs, targets)
            optimizer.step()
            loop.step, loop.last = loop.step + 1, len(inputs)
    return {condition.name for condition in engine.guarantee(1e-5).conditions} - ALWAYS


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", FOLLOWING)
def test_what_a_loop_does_otherwise_in_batches_of_other_sizes_is_said(name: str) -> None:
    """The key is fixed: among the first ten draws some that are looked at have odd sizes, and some have even ones."""
    assert LOSSES_CHANGE.name in conditions(FOLLOWING[name], Model(), TensorDataset(INPUTS, TARGETS))


@pytest.mark.parametrize("name", SAME)
def test_a_loop_that_does_the_same_in_every_batch_takes_nothing_on_trust(name: str) -> None:
    found = conditions(SAME[name], Model(), TensorDataset(INPUTS, TARGETS))
    assert found == ({"own scalar loss"} if name.startswith("a scalar") else set())


def test_strict_refuses_what_changes_between_batches() -> None:
    with pytest.raises(TakenOnTrustError, match=LOSSES_CHANGE.name):
        conditions(FOLLOWING["a weight"], Model(), TensorDataset(INPUTS, TARGETS), strict=True)


# Records of several lengths ------------------------------------------------------------------------------------------

LONG = 21
TEXTS = [(torch.arange(n % 5 + 2) % (V - 1) + 1, torch.tensor(n % K)) for n in range(RECORDS - 2)]
TEXTS += [(torch.arange(LONG + n) % (V - 1) + 1, torch.tensor(0)) for n in range(2)]


def padded(records: Sequence[tuple[Tensor, Tensor]], *, left: bool = False) -> tuple[Tensor, Tensor]:
    width = max(len(record) for record, _ in records)
    ends = [torch.zeros(width - len(record), dtype=torch.long) for record, _ in records]
    rows = [torch.cat([end, row] if left else [row, end]) for end, (row, _) in zip(ends, records, strict=True)]
    return torch.stack(rows), torch.stack([target for _, target in records])


class Reader(nn.Module):
    """Takes means over what is no padding; gives logits for each record, or for each position."""

    def __init__(self, *, is_tagger: bool = False) -> None:
        super().__init__()
        self.embedding, self.head, self.is_tagger = nn.Embedding(V, 5), nn.Linear(5, V if is_tagger else K), is_tagger

    def forward(self, ids: Tensor) -> Tensor:
        if self.is_tagger:
            return self.head(self.embedding(ids))
        mask = (ids != 0).float()[..., None]
        return self.head((self.embedding(ids) * mask).sum(1) / mask.sum(1))


def of_tokens(a: Loop, x: Tensor, y: Tensor) -> None:
    mask = (x != 0).float()
    a.rows((ce(a.model(x).transpose(1, 2), x) * mask).sum(1) / mask.sum(1))


def of_shifted(a: Loop, x: Tensor, y: Tensor) -> None:
    mask = (x[:, 1:] != 0).float()
    losses = F.cross_entropy(a.model(x[:, :-1]).transpose(1, 2), x[:, 1:], reduction="none")
    a.rows((losses * mask).sum(1) / mask.sum(1).clamp(min=1))


WIDTHS: dict[str, Step] = {
    "logits": lambda a, x, y: a.criterion(a.model(x) * (0.05 if x.shape[1] > LONG - 2 else 1), y).backward(),
    "targets": lambda a, x, y: a.criterion(a.model(x), y if x.shape[1] < LONG - 2 else y * 0).backward(),
    "inputs": lambda a, x, y: a.criterion(a.model(x if x.shape[1] < LONG - 2 else x.clamp(max=1)), y).backward(),
}


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("name", WIDTHS)
def test_what_a_loop_does_otherwise_in_longer_batches_is_said(name: str, left: bool) -> None:
    found = conditions(WIDTHS[name], Reader(), TEXTS, lambda records: padded(records, left=left))
    assert LOSSES_CHANGE.name in found


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(
    ("step", "is_tagger"),
    [
        (lambda a, x, y: a.criterion(a.model(x), y).backward(), False),
        (lambda a, x, y: a.criterion(a.model(x[:, : max(1, int((x != 0).sum(1).max()))]), y).backward(), False),
        (of_tokens, True),
        (of_shifted, True),
    ],
    ids=["records", "cut", "tokens", "shifted tokens"],
)
def test_losses_of_a_records_own_positions_are_the_same_in_longer_batches(
    step: Step, is_tagger: bool, left: bool
) -> None:
    found = conditions(step, Reader(is_tagger=is_tagger), TEXTS, lambda records: padded(records, left=left))
    assert LOSSES_CHANGE.name not in found
