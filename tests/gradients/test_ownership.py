"""A write after a backward has no effect on its gradients, and memory that nobody else can reach is not copied."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.clipping.flat import FlatClipping
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.gradients.contribution import Contribution
from hushgrad.gradients.convolution import Convolution
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.outer import OuterProducts
from hushgrad.gradients.ownership import own
from hushgrad.gradients.places import Places
from hushgrad.gradients.rows import Rows

B = 6


def through_a_view(x: Tensor) -> Callable[[], None]:
    view = x.view(-1)
    return lambda: view.zero_()  # type: ignore[return-value]


def through_data(x: Tensor) -> Callable[[], None]:
    return lambda: x.data.mul_(100)  # type: ignore[return-value]


def through_numpy(x: Tensor) -> Callable[[], None]:
    array = x.numpy()
    return lambda: array.fill(7)


def through_its_storage(x: Tensor) -> Callable[[], None]:
    storage = x.untyped_storage()
    return lambda: storage.fill_(1)  # type: ignore[return-value]


def through_dlpack(x: Tensor) -> Callable[[], None]:
    other = torch.from_dlpack(x)  # type: ignore[attr-defined]
    return lambda: other.zero_()


WRITES: dict[str, Callable[[Tensor], Callable[[], None]]] = {
    "x -= x.mean(0)": lambda x: lambda: x.sub_(x.mean(0)),  # type: ignore[return-value]
    "x.copy_(x.mean(0) * 50)": lambda x: lambda: x.copy_(x.mean(0) * 50),  # type: ignore[return-value]
    "a view": through_a_view,
    "x.data": through_data,
    "NumPy": through_numpy,
    "its storage": through_its_storage,
    "DLPack": through_dlpack,
}


class Net(nn.Module):
    """Returns an activation beside its output, keeps one, and uses the batch in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 5), nn.Linear(4, 5, bias=False), nn.Linear(5, 2)
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.first(x) + self.second(x))
        self.kept = [hidden[:, :2]]
        return self.head(hidden), hidden


def sums(model: nn.Module, x: Any, run: Callable[[nn.Module, Any, UsePool], None]) -> dict[str, Tensor]:
    pool = UsePool()
    pool.batch_size = B
    scope = Scope(model, pool)
    run(model, x, pool)
    found = clipped_sums(pool.take(), clip=FlatClipping(0.5))
    scope.detach()
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_after_a_backward_has_no_effect_on_its_gradients(write: Callable[[Tensor], Callable[[], None]]) -> None:
    """Guarantee: a write to a batch, or to anything else that a loop can reach, after a backward has no effect on its
    gradients."""
    model, x = Net(), torch.randn(B, 4)

    def calm(model: nn.Module, x: Tensor, pool: UsePool) -> None:
        model(x)[0].square().sum().backward()

    def dirty(model: nn.Module, x: Tensor, pool: UsePool) -> None:
        change = write(x)
        model(x)[0].square().sum().backward()
        change()

    assert_same(sums(model, x.clone(), dirty), sums(model, x.clone(), calm))


def test_a_write_to_an_activation_or_a_gradient_that_the_loop_holds_has_no_effect() -> None:
    model, x, held = Net(), torch.randn(B, 4), list[Tensor]()

    def calm(model: nn.Module, x: Tensor, pool: UsePool) -> None:
        model(x)[0].square().sum().backward()

    def dirty(model: nn.Module, x: Tensor, pool: UsePool) -> None:
        out, hidden = model(x)
        out.register_hook(held.append)
        hidden.register_hook(held.append)
        out.square().sum().backward()
        with torch.no_grad():
            for tensor in (*held, hidden, *model.kept):
                tensor.detach().fill_(3)
        assert len(held) == 2

    assert_same(sums(model, x, dirty), sums(model, x, calm))


@pytest.mark.parametrize("retain_graph", [False, True])
def test_a_write_between_two_backwards_has_no_effect_on_the_first(retain_graph: bool) -> None:
    model, x = Net(), torch.randn(B, 4)

    def calm(model: nn.Module, x: Tensor, pool: UsePool) -> None:
        for batch in (x, 2 * x):
            model(batch)[0].square().sum().backward()

    def dirty(model: nn.Module, x: Tensor, pool: UsePool) -> None:
        loss = model(x)[0].square().sum()
        loss.backward(retain_graph=retain_graph)
        x.mul_(2)
        model(x)[0].square().sum().backward()

    assert_same(sums(model, x.clone(), dirty), sums(model, x.clone(), calm))


def test_a_staging_buffer_of_numpy_that_is_filled_again_has_no_effect() -> None:
    model, buffer = Net(), np.random.default_rng(0).normal(size=(B, 4)).astype(np.float32)
    x = torch.from_numpy(buffer.copy())

    def calm(model: nn.Module, x: Tensor, pool: UsePool) -> None:
        model(x)[0].square().sum().backward()

    def staged(model: nn.Module, x: Any, pool: UsePool) -> None:
        model(torch.from_numpy(buffer))[0].square().sum().backward()  # no tensor of the buffer is left
        buffer[:] = 9

    expected = sums(model, x, calm)
    assert_same(sums(model, None, staged), expected)


class Pictures(nn.Module):
    """A convolution, positions looked up by ids, a scale and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.convolution = nn.Embedding(9, 4), nn.Conv1d(4, 6, 3)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 2)

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.convolution(self.table(ids).mT)
        return self.head(self.norm(hidden.mean(2)))  # type: ignore[no-any-return]


def test_ids_that_are_overwritten_have_no_effect() -> None:
    model, ids = Pictures(), torch.randint(0, 9, (B, 7))

    def calm(model: nn.Module, ids: Tensor, pool: UsePool) -> None:
        model(ids).square().sum().backward()

    def dirty(model: nn.Module, ids: Tensor, pool: UsePool) -> None:
        calm(model, ids, pool)
        ids.zero_()

    assert_same(sums(model, ids.clone(), dirty), sums(model, ids.clone(), calm))


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_checkpointing_a_write_has_no_effect(reentrant: bool) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(B, 4)

    def run(model: nn.Module, x: Tensor, pool: UsePool) -> None:
        y = x.clone().requires_grad_()
        checkpoint(model, y, use_reentrant=reentrant).square().sum().backward()  # type: ignore[union-attr]

    def dirty(model: nn.Module, x: Tensor, pool: UsePool) -> None:
        y = x.clone().requires_grad_()
        checkpoint(model, y, use_reentrant=reentrant).square().sum().backward()  # type: ignore[union-attr]
        with torch.no_grad():
            y.zero_()

    assert_same(sums(model, x, dirty), sums(model, x, run))


def memory(parts: list[Contribution]) -> list[int]:
    return [operand.data_ptr() for part in parts for operand in part.operands]


def products(right: Tensor) -> OuterProducts:
    return OuterProducts(torch.randn(B, 1, 3), right)


def test_memory_that_nobody_else_holds_is_not_copied() -> None:
    shared = torch.randn(B, 1, 4)
    parts: list[Contribution] = [
        products(torch.randn(B, 1, 4)),
        products(torch.randn(B, 4).unsqueeze(1)),  # a view of what nobody holds
        products(shared),
        products(shared),  # as three projections share their input
        products(shared[:, :, 1:]),
        Dense(torch.randn(B, 3)),
        Rows(torch.zeros(B, 2, dtype=torch.long), torch.randn(B, 2, 3), 5),
        Places(Rows(torch.zeros(B, 2, dtype=torch.long), torch.randn(B, 2, 3), 5), (3, 5), (1,)),
    ]
    del shared
    before = memory(parts)
    own([parts[:0]])
    own([parts])
    assert memory(parts) == before


def test_memory_that_somebody_else_holds_is_copied_once_for_all_that_share_it() -> None:
    held = torch.randn(B, 1, 4)
    values = held.clone()
    parts: list[Contribution] = [products(held), products(held), products(held.view(B, 1, 4))]
    own([parts[:1], parts[1:]])  # these lists are of their own
    own([parts])
    held.fill_(0)
    rights = [part.operands[1] for part in parts]
    assert all(torch.equal(right, values) for right in rights)
    assert rights[0] is rights[1]


def test_each_kind_of_contribution_names_all_of_its_operands() -> None:
    """A tensor that `operands` left out would be looked after by nobody."""
    pictures = Pictures()
    pool = UsePool()
    pool.batch_size = B
    scope = Scope(pictures, pool)
    pictures(torch.randint(0, 9, (B, 7))).square().sum().backward()
    scope.detach()
    kinds = set()
    for part in (part for parts in pool.take().values() for part in parts):
        seen: list[int] = []
        part.map_examples(lambda operand: (seen.append(id(operand)), operand)[1])  # noqa: B023
        assert sorted(seen) == sorted(id(operand) for operand in part.operands)
        kinds.add(type(part))
    assert kinds >= {Rows, OuterProducts, Dense} and kinds & {Convolution, Dense}  # noqa: PT018


def test_a_weak_reference_to_an_activation_reaches_nothing_after_the_backward() -> None:
    weak: list[weakref.ref[Tensor]] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.tanh(self.first(x))
            weak.append(weakref.ref(hidden))
            return self.second(hidden)  # type: ignore[no-any-return]

    model, x = Watched(), torch.randn(B, 4)

    def calm(model: nn.Module, x: Tensor, pool: UsePool) -> None:
        model(x).square().sum().backward()

    def dirty(model: nn.Module, x: Tensor, pool: UsePool) -> None:
        calm(model, x, pool)
        hidden = weak[-1]()
        if hidden is not None:
            hidden.data.fill_(1e3)

    assert_same(sums(model, x, dirty), sums(model, x, calm))
