"""Tensors that were declared public: constants of a model's inputs, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine
from hushgrad.capture.public import PublicTensors
from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import (
    ContractChangedError,
    HushgradError,
    InvalidArgumentError,
    PrivacyUnitError,
    ProtocolError,
)
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time

B, T, D = 6, 5, 4
C = 0.5
DECLARED = "declared public"


class Masked(nn.Module):
    """The classic encoder, called with its mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(D, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.layer(x, mask)  # type: ignore[no-any-return]


class Classes(nn.Module):
    """Similarities with features of classes, `[C, d]`, or outputs times weights of classes, `[C]`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, 3)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        out = self.layer(x)
        return out * features if features.ndim == 1 else out @ features.T  # type: ignore[no-any-return]


def causal(length: int) -> Tensor:
    return torch.triu(torch.full((length, length), -torch.inf), 1)


def losses(out: Tensor) -> Tensor:
    return out.square().flatten(1).sum(1)


class Loop:
    """A private model with its loader, B records of which one batch is made."""

    def __init__(self, model: nn.Module, records: Tensor) -> None:
        self.model, self.engine = model, PrivacyEngine()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        _, _, self.loader = self.engine.make_private(
            module=model,
            optimizer=self.optimizer,
            data_loader=DataLoader(records, batch_size=B),  # type: ignore[arg-type]
            noise_multiplier=0.0,
            max_grad_norm=C,
            poisson_sampling=False,
        )
        self.session = self.engine.session

    def run(self, call: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Run over all records; return by how much the sum of the last update moved each parameter."""
        for batch in self.loader:
            before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
            self.session.backward(losses(call(batch)))
            self.optimizer.step()
        return {name: (before[name] - p.detach()) * B for name, p in self.model.named_parameters()}

    @property
    def told(self) -> set[str]:
        return {condition.name for condition in self.engine.guarantee(1e-5).conditions}


def made(kind: type[nn.Module], *shape: int, batches: int = 1) -> Loop:
    torch.manual_seed(0)
    return Loop(kind(), torch.randn(B * batches, *shape))


@pytest.mark.parametrize(
    ("kind", "shape", "constant"),
    [
        (Masked, (T, D), causal(T)),
        (Masked, (B, D), causal(B)),
        (Classes, (D,), torch.randn(7, 3)),
        (Classes, (D,), torch.randn(B, 3)),
        (Classes, (D,), torch.rand(3)),
    ],
    ids=["mask", "as many positions as records", "features", "as many classes as records", "weights"],
)
def test_a_declared_tensor_is_a_constant_and_the_gradients_are_exact(
    kind: type[nn.Module], shape: tuple[int, ...], constant: Tensor
) -> None:
    loop = made(kind, *shape)
    records = torch.stack([loop.loader.dataset[i] for i in range(B)])
    torch.manual_seed(0)
    ordinary = kind()
    alone = [(lambda i=i: losses(ordinary(records[i : i + 1], constant)).sum()) for i in range(B)]
    expected = clipped_sum_of(one_at_a_time(ordinary, alone), FlatClipping(C))
    declared = loop.session.public(constant)
    assert declared is constant
    found = loop.run(lambda x: loop.model(x, declared))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
    assert DECLARED in loop.told


def test_a_criterion_may_be_given_a_declared_tensor() -> None:
    loop = made(Classes, D)
    weights, features = loop.session.public(torch.rand(7)), loop.session.public(torch.randn(7, 3))
    criterion = loop.engine.per_example(lambda out, target, scale: (out * scale - target).square().sum(1))
    for batch in loop.loader:
        criterion(loop.model(batch, features), torch.zeros(B, 7), weights).backward()
        loop.optimizer.step()
    assert DECLARED in loop.told


@pytest.mark.parametrize("constant", [causal(T), torch.zeros(T, T)], ids=["a mask", "zeros"])
def test_what_is_not_declared_is_refused_with_the_line_that_declares_it(constant: Tensor) -> None:
    loop = made(Masked, T, D)
    with pytest.raises(PrivacyUnitError, match=r"engine\.session\.public"):
        loop.run(lambda x: loop.model(x, constant))


def test_a_view_or_a_copy_of_a_declared_tensor_is_not_declared() -> None:
    loop = made(Masked, T, D)
    mask = loop.session.public(causal(T))
    for part in (mask[:T, :T], mask.clone(), mask.view(T, T)):
        with pytest.raises(PrivacyUnitError, match="no part or copy of it"):
            loop.run(partial(_with, loop.model, part))
        loop.session.discard()


def _with(model: nn.Module, constant: Tensor, x: Tensor) -> Tensor:
    return model(x, constant)  # type: ignore[no-any-return]


def test_nothing_is_declared_once_a_batch_was_handed_out() -> None:
    """Guarantee: what is taken for a constant is a tensor that was declared before the first batch was handed out, with
    the values that it had then.
    """
    loop = made(Classes, D)
    known = loop.session.public(torch.rand(3))
    for batch in loop.loader:
        with pytest.raises(ProtocolError, match="after the first batch"):
            loop.session.public(batch.mean(0)[:3])
        assert loop.session.public(known) is known  # declared before, and unchanged
        loop.session.backward(losses(loop.model(batch, known)))
        loop.optimizer.step()
    with pytest.raises(ProtocolError, match="after the first batch"):
        loop.session.public(torch.rand(3))


def _by_operator(x: Tensor, constant: Tensor) -> None:
    constant.copy_(x.mean(0)[:3])


def _by_data(x: Tensor, constant: Tensor) -> None:
    constant.data.copy_(x.mean(0)[:3])


def _by_numpy(x: Tensor, constant: Tensor) -> None:
    constant.numpy()[:] = x.mean(0)[:3].numpy()


WRITES = [
    (write, when) for write in (_by_operator, _by_data, _by_numpy) for when in ("before", "after", "between steps")
]


# Torch itself refuses what it counts and has kept for its own backward.
@pytest.mark.parametrize(("write", "when"), [pair for pair in WRITES if pair != (_by_operator, "after")])
def test_a_declared_tensor_that_is_written_to_is_refused(write: Callable[[Tensor, Tensor], None], when: str) -> None:
    loop = made(Classes, D, batches=2)
    constant = loop.session.public(torch.rand(3))

    def call(x: Tensor) -> Tensor:
        if when == "before":
            write(x, constant)
        out = loop.model(x, constant)
        if when == "after":
            write(x, constant)
        return out  # type: ignore[no-any-return]

    def train() -> None:
        for batch in loop.loader:
            loop.session.backward(losses(call(batch)))
            loop.optimizer.step()
            if when == "between steps":
                write(batch, constant)

    with pytest.raises(ContractChangedError, match="written to"):
        train()


def test_a_value_for_each_place_of_the_batch_is_refused_although_it_was_declared() -> None:
    class Placed(Classes):
        def forward(self, x: Tensor, features: Tensor) -> Tensor:
            return self.layer(x) * features[: len(x)]  # type: ignore[no-any-return]

    loop = made(Placed, D)
    places = loop.session.public(torch.rand(B, 1))
    with pytest.raises(HushgradError, match="DP301"):
        loop.run(lambda x: loop.model(x, places))


@pytest.mark.parametrize(
    "value",
    [3.0, [1, 2], nn.Parameter(torch.ones(2)), torch.eye(2).to_sparse(), torch.empty(2, device="meta")],
    ids=["a number", "a list", "a parameter", "sparse", "meta"],
)
def test_only_an_ordinary_tensor_without_gradients_is_declared(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"session\.public"):
        PublicTensors().declare(value)


def test_nan_and_infinity_are_equal_to_themselves_and_to_no_number() -> None:
    public, tensor = PublicTensors(), torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0])
    public.declare(tensor)
    assert public.met(tensor)
    tensor[3] = torch.nan
    with pytest.raises(ContractChangedError):
        public.require_unchanged()
