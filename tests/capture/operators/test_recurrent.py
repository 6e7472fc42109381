"""Recurrent layers of every kind, padded and packed, against one example at a time."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from measure import captured, clipped, distance, norm_of, reference
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.clipping.flat import FlatClipping
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time

LENGTHS = [3, 5, 1, 4]
PADDING = -10.0


class Recurrent(nn.Module):
    """All outputs and last states of a recurrent layer, of padded or packed input."""

    def __init__(self, layer: nn.RNNBase, packed: bool) -> None:
        super().__init__()
        self.layer, self.packed = layer, packed

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, d]` to `[B, outputs and states]`."""
        y = x if self.layer.batch_first else x.transpose(0, 1)
        if self.packed:
            lengths = (x[:, :, 0] > PADDING).sum(1)
            y = pack_padded_sequence(y, lengths, batch_first=self.layer.batch_first, enforce_sorted=False)
        out, state = self.layer(y)
        if self.packed:
            out, _ = pad_packed_sequence(out, batch_first=self.layer.batch_first, total_length=x.shape[1])
        out = out if self.layer.batch_first else out.transpose(0, 1)
        states = state if isinstance(state, tuple) else (state,)
        return torch.cat([out.flatten(1), *[part.transpose(0, 1).flatten(1) for part in states]], 1)


def losses(out: Tensor) -> Tensor:
    return (out * torch.linspace(-1, 2, out.shape[1], dtype=out.dtype)).sin().sum(1)


def sequences(size: int, packed: bool) -> Tensor:
    x = torch.randn(size, 5, 3, dtype=torch.float64)
    for row, length in enumerate(LENGTHS[:size] if packed else []):
        x[row, length:] = PADDING
    return x


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "lstm with projection": (nn.LSTM, {"proj_size": 2}),
    "gru": (nn.GRU, {}),
    "rnn tanh": (nn.RNN, {}),
    "rnn relu": (nn.RNN, {"nonlinearity": "relu"}),
}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_a_recurrent_layer_agrees_with_one_example_at_a_time(kind: str, packed: bool) -> None:
    layer, options = KINDS[kind]
    for layers, two_ways, batch_first, bias in itertools.product([1, 2], *[[False, True]] * 3):
        model = Recurrent(
            layer(3, 4, layers, bidirectional=two_ways, batch_first=batch_first, bias=bias, **options), packed
        ).double()
        for size in (1, 4):
            x = sequences(size, packed)
            per_example = reference(model, x, losses)
            limit = float(norm_of(per_example).median())
            found = clipped(captured(model, x, losses), limit)
            assert distance(found, clipped_sum_of(per_example, FlatClipping(limit))) <= 1e-10


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_dropout_between_layers_drops_what_torch_drops(kind: Any, packed: bool) -> None:
    model = Recurrent(kind(3, 4, 3, dropout=0.4, bidirectional=True, batch_first=True), packed).double()
    x, ordinary = sequences(4, packed), copy.deepcopy(model)
    torch.manual_seed(1)
    losses(ordinary(x)).sum().backward()
    torch.manual_seed(1)
    found = clipped(captured(model, x, losses), 1e9)
    assert distance(found, {name: parameter.grad for name, parameter in ordinary.named_parameters()}) <= 1e-12


def test_parts_of_a_recurrent_layer_may_be_frozen() -> None:
    model = Recurrent(nn.LSTM(3, 4, 2, batch_first=True), packed=False).double()
    model.layer.weight_ih_l0.requires_grad_(False)
    model.layer.bias_hh_l1.requires_grad_(False)
    x = sequences(4, False)
    found = clipped(captured(model, x, losses), 0.5)
    assert distance(found, clipped_sum_of(reference(model, x, losses), FlatClipping(0.5))) <= 1e-10


class LearnedStart(nn.Module):
    """An LSTM whose first states are parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(3, 4, batch_first=True)
        self.h, self.c = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Return all outputs."""
        size = x.shape[0]
        return self.layer(x, (self.h.expand(-1, size, -1), self.c.expand(-1, size, -1)))[0].flatten(1)


def test_first_states_that_are_parameters_are_covered() -> None:
    model, x = LearnedStart().double(), sequences(4, False)
    found = clipped(captured(model, x, losses), 0.5)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert distance(found, clipped_sum_of(reference(model, x, losses), FlatClipping(0.5))) <= 1e-10


class OnPacked(nn.Module):
    """Layers applied to the rows of a packed sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(3, 4), nn.LayerNorm(4)
        self.scale, self.layer, self.head = nn.Parameter(torch.randn(4)), nn.GRU(4, 4), nn.Linear(4, 2)

    def forward(self, x: PackedSequence) -> Tensor:
        """Return what the last state became."""
        rows = (self.norm(self.embed(x.data)).tanh() + 1) * self.scale
        _, h = self.layer(PackedSequence(rows, x.batch_sizes, x.sorted_indices, x.unsorted_indices))
        return self.head(h[-1])


@pytest.mark.parametrize("is_sorted", [True, False])
def test_a_packed_sequence_may_be_the_models_input(is_sorted: bool) -> None:
    lengths = sorted(LENGTHS, reverse=True) if is_sorted else LENGTHS
    x, model = sequences(4, True), OnPacked().double()

    def packed(rows: slice) -> PackedSequence:
        return pack_padded_sequence(x[rows], torch.tensor(lengths[rows]), True, enforce_sorted=is_sorted)

    alone = copy.deepcopy(model)
    runs = [lambda i=i: losses(alone(packed(slice(i, i + 1)))).sum() for i in range(4)]
    pool = UsePool()
    pool.batch_size = 4
    scope = Scope(model, pool)
    losses(model(packed(slice(0, 4)))).sum().backward()
    scope.detach()
    assert distance(clipped(pool.take(), 0.5), clipped_sum_of(one_at_a_time(alone, runs), FlatClipping(0.5))) <= 1e-10


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [1e20, torch.inf, torch.nan])
def test_a_broken_sequence_reaches_no_other_example(kind: str, packed: bool, value: float) -> None:
    layer, options = KINDS[kind]
    model = Recurrent(layer(3, 4, 2, bidirectional=True, **options), packed).float()
    x = sequences(4, packed).float()
    x[1, 2] = value
    whole = clipped(captured(model, x, losses), 0.5)
    rest = clipped(captured(model, x[[0, 2, 3]], losses), 0.5)
    assert all(part.isfinite().all() for part in whole.values())
    assert distance(whole, rest, relative=False) <= 0.5 * (1 + 1e-5)
    if value != 1e20:
        assert distance(whole, rest) <= 1e-5
