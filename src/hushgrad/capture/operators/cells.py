"""One time step of an LSTM, a GRU and a plain RNN, and its derivative.

A cell takes what the input and the state contribute to its gates, `[N, G·H]` each, and the state `h`, `c` `[N, H]`.
The derivatives by both contributions are all that per-example weight gradients need.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """What a step returns: the new state before a projection, and the tensors that its derivative needs."""

    h: Tensor
    c: Tensor
    kept: tuple[Tensor, ...]


class Slopes(NamedTuple):
    """Derivatives of the loss by the gates' input and state contributions, and by the state of the step before."""

    from_input: Tensor
    from_state: Tensor
    h: Tensor | None
    c: Tensor


class Cell(ABC):
    """The arithmetic of one kind of recurrent layer."""

    @abstractmethod
    def step(self, from_input: Tensor, from_state: Tensor, h: Tensor, c: Tensor) -> Step:
        """Return the state after one time step."""

    @abstractmethod
    def back(self, kept: tuple[Tensor, ...], dh: Tensor, dc: Tensor) -> Slopes:
        """Return the derivatives by a step's arguments, given those by its new state."""


class LSTMCell(Cell):
    """Gates in the order input, forget, cell, output."""

    def step(self, from_input: Tensor, from_state: Tensor, h: Tensor, c: Tensor) -> Step:
        """Return the state after one time step."""
        i, f, g, o = (from_input + from_state).chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        new = f * c + i * g
        squashed = new.tanh()
        return Step(o * squashed, new, (i, f, g, o, c, squashed))

    def back(self, kept: tuple[Tensor, ...], dh: Tensor, dc: Tensor) -> Slopes:
        """Return the derivatives by a step's arguments, given those by its new state."""
        i, f, g, o, c, squashed = kept
        dc = dc + dh * o * (1 - squashed * squashed)
        gates = torch.cat(
            [dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), dh * squashed * o * (1 - o)], 1
        )
        return Slopes(gates, gates, None, dc * f)


class GRUCell(Cell):
    """Gates in the order reset, update, new; the reset gate acts behind the state's product."""

    def step(self, from_input: Tensor, from_state: Tensor, h: Tensor, c: Tensor) -> Step:
        """Return the state after one time step."""
        xr, xz, xn = from_input.chunk(3, 1)
        hr, hz, hn = from_state.chunk(3, 1)
        r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
        n = (xn + r * hn).tanh()
        return Step(n + z * (h - n), c, (r, z, n, hn, h))

    def back(self, kept: tuple[Tensor, ...], dh: Tensor, dc: Tensor) -> Slopes:
        """Return the derivatives by a step's arguments, given those by its new state."""
        r, z, n, hn, h = kept
        dn = dh * (1 - z) * (1 - n * n)
        dr, dz = dn * hn * r * (1 - r), dh * (h - n) * z * (1 - z)
        return Slopes(torch.cat([dr, dz, dn], 1), torch.cat([dr, dz, dn * r], 1), dh * z, dc)


class TanhCell(Cell):
    """One gate, squashed by tanh."""

    def step(self, from_input: Tensor, from_state: Tensor, h: Tensor, c: Tensor) -> Step:
        """Return the state after one time step."""
        new = (from_input + from_state).tanh()
        return Step(new, c, (new,))

    def back(self, kept: tuple[Tensor, ...], dh: Tensor, dc: Tensor) -> Slopes:
        """Return the derivatives by a step's arguments, given those by its new state."""
        gates = dh * (1 - kept[0] * kept[0])
        return Slopes(gates, gates, None, dc)


class ReluCell(Cell):
    """One gate, cut off at 0."""

    def step(self, from_input: Tensor, from_state: Tensor, h: Tensor, c: Tensor) -> Step:
        """Return the state after one time step."""
        new = (from_input + from_state).relu()
        return Step(new, c, (new,))

    def back(self, kept: tuple[Tensor, ...], dh: Tensor, dc: Tensor) -> Slopes:
        """Return the derivatives by a step's arguments, given those by its new state."""
        gates = dh.masked_fill(kept[0] <= 0, 0)
        return Slopes(gates, gates, None, dc)
