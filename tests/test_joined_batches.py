"""Batches end to end, in lists, in another order and time first: each record's gradient is the one it has alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine
from hushgrad.errors import PrivacyUnitError, ProtocolError

Record = tuple[Tensor, int]
LENGTHS = [5, 3, 7, 2, 4, 6]
NUMBERS = torch.Generator().manual_seed(4)
TEXTS = [(torch.randint(1, 9, (n,), generator=NUMBERS), i % 3) for i, n in enumerate(LENGTHS)]
NODES = [(torch.randn(n, 4, generator=NUMBERS), i % 3) for i, n in enumerate(LENGTHS)]
SQUARE = [(torch.randn(len(LENGTHS), 4, generator=NUMBERS), i % 3) for i in range(len(LENGTHS))]
CLIP = 0.05


class Kept(torch.optim.SGD):
    """Remembers the gradients it was handed."""

    seen: Tensor

    def step(self, closure: Any = None) -> Any:
        gradients = [p.grad.flatten() for g in self.param_groups for p in g["params"] if p.grad is not None]
        if gradients:  # of a whole logical batch
            self.seen = torch.cat(gradients)
        return super().step(closure)


class Of(nn.Module):
    def __init__(self, f: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.f, self.parts = f, nn.ModuleList(parts)

    def forward(self, *inputs: Any) -> Tensor:
        return self.f(self.parts, *inputs)


def targets(records: list[Record]) -> Tensor:
    return torch.tensor([y for _, y in records])


def lengths(records: list[Record]) -> Tensor:
    return torch.tensor([len(x) for x, _ in records])


def bags(records: list[Record]) -> tuple[Tensor, ...]:
    own = lengths(records)
    return torch.cat([x for x, _ in records]), own.cumsum(0) - own, targets(records)


def graphs(records: list[Record]) -> tuple[Tensor, ...]:
    own = lengths(records)
    starts = (own.cumsum(0) - own).tolist()
    edges = [torch.stack([torch.arange(n), (torch.arange(n) + 1) % n]) + at for n, at in zip(own, starts, strict=True)]
    owners = torch.arange(len(records)).repeat_interleave(own)
    return torch.cat([x for x, _ in records]), torch.cat(edges, 1), owners, targets(records)


def lists(records: list[Record]) -> tuple[Any, Tensor]:
    return [x for x, _ in records], targets(records)


def in_order(records: list[Record]) -> tuple[Tensor, ...]:
    records = sorted(records, key=lambda record: len(record[0]), reverse=True)
    return pad_sequence([x for x, _ in records], batch_first=True), lengths(records), targets(records)


def time_first(records: list[Record]) -> tuple[Tensor, ...]:
    return pad_sequence([x for x, _ in records]), targets(records)


def of_graphs(m: Any, x: Tensor, edges: Tensor, owners: Tensor) -> Tensor:
    h = m[0](x)
    h = torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]).relu()
    size = int(owners[-1]) + 1
    return m[1](torch.zeros(size, 5).index_add(0, owners, h) / torch.bincount(owners, minlength=size)[:, None])


def of_sorted(m: Any, ids: Tensor, own: Tensor) -> Tensor:
    return m[2](m[1](pack_padded_sequence(m[0](ids), own, batch_first=True))[1][-1])


@dataclass(frozen=True)
class Loop:
    make: Callable[[], nn.Module]
    records: list[Record]
    collate: Callable[[list[Record]], tuple[Any, ...]]


LOOPS = {
    "bags": Loop(lambda: Of(lambda m, x, at: m[1](m[0](x, at)), nn.EmbeddingBag(9, 4), nn.Linear(4, 3)), TEXTS, bags),
    "graphs": Loop(lambda: Of(of_graphs, nn.Linear(4, 5), nn.Linear(5, 3)), NODES, graphs),
    "lists": Loop(
        lambda: Of(lambda m, xs: m[1](torch.stack([m[0](x).mean(0) for x in xs])), nn.Linear(4, 5), nn.Linear(5, 3)),
        NODES,
        lists,
    ),
    "sorted": Loop(
        lambda: Of(of_sorted, nn.Embedding(9, 4), nn.GRU(4, 4, batch_first=True), nn.Linear(4, 3)), TEXTS, in_order
    ),
    "time first, as many times as records": Loop(
        lambda: Of(lambda m, x: m[1](m[0](x)[0][-1]), nn.LSTM(4, 4), nn.Linear(4, 3)), SQUARE, time_first
    ),
}


def losses(out: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(out, batch[-1], reduction="none")


def trained(loop: Loop, way: str, **settings: Any) -> Tensor:
    torch.manual_seed(0)
    model, engine, size = loop.make(), PrivacyEngine(), len(loop.records)
    optimizer = Kept(model.parameters(), lr=1e-9)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(loop.records, batch_size=size, collate_fn=loop.collate),  # type: ignore[arg-type]
        noise_multiplier=0.0,
        max_grad_norm=CLIP,
        **{"poisson_sampling": False, **settings},
    )
    criterion = engine.per_example(losses)
    for batch in loader:
        out = model(*batch[:-1])
        if way == "per_example":
            criterion(out, batch).backward()
        else:
            engine.session.backward(losses(out, batch))
        optimizer.step()
    engine.session.close()
    return optimizer.seen * size


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("way", ["per_example", "session"])
@pytest.mark.parametrize("name", LOOPS)
def test_the_sum_is_that_of_clipped_gradients_of_records_alone(name: str, way: str) -> None:
    loop = LOOPS[name]
    torch.manual_seed(0)
    model = loop.make()
    total = torch.zeros(sum(p.numel() for p in model.parameters()))
    for record in loop.records:
        batch = loop.collate([copy.deepcopy(record)])
        alone = torch.autograd.grad(losses(model(*batch[:-1]), batch).sum(), list(model.parameters()))
        flat = torch.cat([gradient.flatten() for gradient in alone])
        total += flat * min(1.0, CLIP / float(flat.norm()))
    assert float((trained(loop, way) - total).norm() / total.norm()) < 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_records_in_another_order_are_refused_where_padding_is_known_by_its_place() -> None:
    settings = {"constant_shapes": True, "max_physical_batch_size": 4, "loss_reduction": "sum"}
    with pytest.raises(ProtocolError, match="another order") as raised:  # two items: of four records, and of two
        trained(LOOPS["sorted"], "session", **settings)
    assert "enforce_sorted=False" in raised.value.cure


def test_nested_tensors_are_refused_with_what_works() -> None:
    def nested(records: list[Record]) -> tuple[Any, ...]:
        return torch.nested.nested_tensor([x for x, _ in records], layout=torch.jagged), targets(records)

    loop = Loop(lambda: Of(lambda m, x: m[0](x).mean(dim=1), nn.Linear(4, 3)), NODES, nested)
    with pytest.raises(PrivacyUnitError, match="nested") as raised:
        trained(loop, "session")
    assert "index_add" in raised.value.cure
