"""Random numbers whose law follows the batch are refused, whatever hides it; honest noise trains."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from first_forwards import BATCH, CLASSES, WIDTH, attached
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hushgrad.errors import CrossSampleLeakError, HushgradError
from hushgrad.guards.probing.deterministic_mode import DeterministicMode
from hushgrad.guards.probing.laws import Law, what_follows


class Noisy(nn.Module):
    def __init__(self, noise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.noise = noise
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.noise(self.layer(self.noise(x.float())).tanh()))


def train(noise: Callable[[Tensor], Tensor], *, on_ids: bool = False) -> int:
    x = torch.randint(1, 90, (2 * BATCH, WIDTH)) if on_ids else torch.rand(2 * BATCH, WIDTH)
    model = Noisy(noise)
    engine, optimizer, loader = attached(model, TensorDataset(x, torch.arange(2 * BATCH) % CLASSES))
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for features, labels in loader:
        criterion(model(features), labels).backward()
        optimizer.step()
    return engine.session.steps


def large(x: Tensor) -> bool:
    return bool((x > 50).any())


def normalised(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def seeded(x: Tensor, seed: Callable[[int], Any]) -> Tensor:
    seed(int(x.abs().sum() * 1000) % 2**31)
    return F.dropout(x, 0.5) * random.random() * float(np.random.rand())


def forked(x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        return seeded(x, torch.manual_seed)


LEAKY: dict[str, Callable[[Tensor], Tensor]] = {
    "noise by a guarded deviation": lambda x: x + torch.randn_like(x) * max(0.0, float(x.std())),
    "noise in symmetry by a deviation": lambda x: x + (torch.rand_like(x) - 0.5) * max(0.0, float(x.std())),
    "a clamped deviation": lambda x: x + torch.normal(0.0, min(9.0, max(0.1, float(x.std()))), x.shape),
    "noise by the number of rows, behind a normalisation": lambda x: normalised(x + torch.randn_like(x) * 5 / len(x)),
    "uniform noise by it": lambda x: normalised(x + torch.rand(x.shape) * 5 / len(x)),
    "noise by a count": lambda x: x + torch.randn_like(x) * int((x > 0.5).sum()),
    "a rate of dropout by any": lambda x: F.dropout(x, 0.1 if large(x) else 0.8),
    "a mask by any": lambda x: x * (torch.rand_like(x) < (0.9 if large(x) else 0.4)),
    "drawn chances by any": lambda x: x * torch.bernoulli(torch.full_like(x, 0.9 if large(x) else 0.2)),
    "a slope by any": lambda x: F.rrelu(-x, 0.1, 0.9 if large(x) else 0.2, True),
    "a seed by a sum": lambda x: seeded(x, torch.manual_seed),
    "a seed of Python by a sum": lambda x: seeded(x, random.seed),
    "a seed of NumPy by a sum": lambda x: seeded(x, np.random.seed),
    "a seed that is taken back": forked,
    "a generator of its own": lambda x: x + torch.randn(
        x.shape, generator=torch.Generator().manual_seed(int(x.abs().sum() * 1000))
    ),
    "a NumPy generator of its own": lambda x: x * float(np.random.default_rng(int(x.abs().sum() * 1000)).random()),
    "a seed for what comes later": lambda x: (x.clone(), torch.manual_seed(int(x.abs().sum() * 1000)))[0],
    "a seed of Python for what comes later": lambda x: (x.clone(), random.seed(int(x.abs().sum() * 1000)))[0],
}  # fmt: skip

HONEST: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "noise of a fixed scale, behind a normalisation": lambda x: normalised(x + 0.5 * torch.randn_like(x)),
    "noise drawn with the examples in columns": lambda x: normalised((x.T + torch.randn(x.T.shape)).T),
    "noise": lambda x: x + 0.1 * torch.randn_like(x),
    "noise by each example's deviation": lambda x: x + torch.randn_like(x) * x.std(1, keepdim=True),
    "reparametrisation": lambda x: x + torch.randn_like(x) * (0.5 * x).exp(),
    "drop path": lambda x: x * torch.floor(0.9 + torch.rand(len(x), 1)) / 0.9,
    "drop path in place": lambda x: x * x.new_empty(len(x), 1).bernoulli_(0.8) / 0.8,
    "Gumbel noise": lambda x: F.gumbel_softmax(x, 1.0),
    "hidden tokens": lambda x: x.masked_fill(torch.bernoulli(torch.full(x.shape, 0.15)).bool(), 0.0),
    "a seed that is a constant": lambda x: (torch.manual_seed(3), F.dropout(x, 0.5))[1],
    "a generator of a constant seed": lambda x: x + torch.randn(WIDTH, generator=torch.Generator().manual_seed(3)),
    "slopes": lambda x: F.rrelu(x - 0.5, 0.1, 0.3, True),
    "jitter of gates": lambda x: x * (x * torch.empty_like(x).uniform_(0.9, 1.1)).softmax(1),
    "experts": lambda x: torch.where((x[:, :1] > 0.5), F.dropout(x, 0.3), 0.5 * x + 0.1 * torch.randn_like(x)),
}


@pytest.mark.parametrize("on_ids", [False, True], ids=["values", "ids"])
@pytest.mark.parametrize("name", LEAKY)
def test_random_numbers_whose_law_follows_the_batch_are_refused(name: str, on_ids: bool) -> None:
    """Guarantee: scales, rates and seeds of random numbers that the first batch moves are refused, guarded or not."""
    if "any" in name and on_ids:
        pytest.skip("ids are not carried out of their range")
    with pytest.raises(HushgradError, match=r"^DP30\d"):
        train(LEAKY[name], on_ids=on_ids)


@pytest.mark.parametrize("on_ids", [False, True], ids=["values", "ids"])
@pytest.mark.parametrize("name", HONEST)
def test_random_numbers_of_a_fixed_law_or_of_each_example_train(name: str, on_ids: bool) -> None:
    assert train(HONEST[name], on_ids=on_ids) == 2


def test_a_seed_from_the_batch_is_refused_by_name_with_the_cure() -> None:
    with pytest.raises(
        CrossSampleLeakError, match=r"computes the seed of a random generator.*Seed generators by const"
    ):
        train(LEAKY["a seed for what comes later"])


def laws(draw: Callable[[], Any]) -> list[Law]:
    mode = DeterministicMode()
    with mode:
        draw()
    return mode.laws


def test_a_law_holds_the_rate_the_scale_and_the_seed() -> None:
    torch.manual_seed(5)
    (rate,) = laws(lambda: F.dropout(torch.ones(3), 0.25))
    assert (rate.operator, rate.numbers, rate.seed) == ("bernoulli_", (0.75,), 5)
    (scale,) = laws(lambda: torch.empty(3).normal_(1.0, 2.0, generator=torch.Generator().manual_seed(9)))
    assert (scale.numbers, scale.seed) == ((1.0, 2.0), 9)
    (fused,) = laws(lambda: torch.native_dropout(torch.ones(3), 0.5, True))
    assert fused.numbers == (0.5,)


def test_a_loop_over_examples_may_draw_by_a_law_for_each() -> None:
    base = [Law("normal", (0.0, float(row)), 1, False) for row in range(4)]
    changed = [law._replace(numbers=(0.0, 9.0)) if row in (1, 3) else law for row, law in enumerate(base)]
    assert what_follows(base, changed, [1, 3], 4) is None
    assert what_follows(base, changed, [1, 2], 4) is not None
    assert what_follows(base[:1], changed[1:2], [1], 4) is not None
    assert what_follows(base, base[:2], [1], 4) is None  # other numbers were drawn, by the same laws


def test_another_seed_is_told_however_many_are_drawn() -> None:
    one, two = Law("randn", (), 1, False), Law("randn", (), 2, False)
    assert what_follows([one], [two, two], [0], 4) == "the seed of a random generator"
