"""Gaussian noise from a keyed stream, on all threads: one word, one look-up and one multiplication for each value.

Each value is made from a random word of its own (32 bits for float32, 64 for float64) by the strips of
`hushgrad.noise.strips`: value = middle + slope · word. The few words that pick the remainder get their values from
candidates of their own (`hushgrad.noise.chunks`).

On a CUDA device the noise of an update is drawn on the device (`hushgrad.noise.cuda.definition`): other values, with
the same distribution.

Rounding. In float32 a value is within two units in the last place of its exact mixture, and the positions in a strip
are spaced by 2**-16 of its width: below 2e-9 for `abs(z)` < 1 and below 7e-7 everywhere. In float64, 2**-48 of its
width.

Guarantee: values beyond `abs(z)` = 8 occur with their true probability; the largest possible `abs(z)` is 10.1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hushgrad.arguments import non_negative_number, positive_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.noise.backends import ArrayBackend, Backend, Bits, Floats, Places
from hushgrad.noise.chunks import Workers, remainders, run_chunks
from hushgrad.noise.compiled import CompiledBackend, fastest_backend
from hushgrad.noise.cuda import dispatch
from hushgrad.noise.cuda.chacha import CipherKey
from hushgrad.noise.strips import Float64s, accept_reject, pick_table
from hushgrad.randomness import Address, KeyStream

_WORDS: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype(np.int32), torch.float64: np.dtype(np.int64)}


@cache
def backend() -> type[CompiledBackend] | type[ArrayBackend]:
    """Return what draws noise on this machine, chosen at the first call: an import alone waits for no compiler.

    A session asks for it when it is set up, before anything is charged.
    """
    return fastest_backend()


def standard_normal(
    shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | str, stream: KeyStream, address: Address
) -> Tensor:
    """Return independent standard normal values.

    Args:
        shape: the shape of the result.
        dtype: `torch.float32` or `torch.float64`; noise in 16 bits would round the tail and the sum.
        device: where the result lies. Values are drawn on the CPU and copied, so they are the same on every device.
        stream: the source of bits. The global generators are neither read nor advanced.
        address: where in the stream the draw lies. One address serves one draw: the same address gives the same
            values again, and noise used twice cancels.

    Guarantee: the values depend on the key, the address, the number of values and the dtype only.
    """
    _require_wide(dtype, "dtype")
    values = torch.empty(torch.Size(shape), dtype=dtype, device="cpu")
    _run([_Draw(values.view(-1).numpy(), address)], stream)
    return values.to(device)


def noisy_update(
    total: Tensor,
    *,
    noise_std: float,
    divisor: float,
    stream: KeyStream,
    address: Address,
    overwrite: bool = False,
) -> Tensor:
    """Return `(total + noise_std · z) / divisor`, z standard normal: the sum, then noise, then the division.

    Args:
        total: the clipped sum, float32 or float64, any shape; it is not modified unless `overwrite` says so.
        noise_std: standard deviation of the noise on the sum, in units of the gradient (noise_multiplier times the
            sensitivity). 0 draws and adds nothing.
        divisor: a public constant, 1 for the sum itself. Never the number of examples that happened to be drawn.
        stream: the source of bits.
        address: where in the stream the noise lies; one address serves one call.
        overwrite: write the result into the memory of `total`, which must be contiguous and have no other reader.

    Returns:
        A contiguous tensor of the shape, dtype and device of `total`; a new one unless `overwrite`.

    Guarantee: the noise of the result has standard deviation noise_std / divisor.
    """
    part = Noised(total, address, overwrite)
    return noisy_updates([part], noise_std=noise_std, divisor=divisor, stream=stream)[0]


@dataclass(frozen=True, slots=True, eq=False)
class Noised:
    """One of several totals that get noise together: what `noisy_update` says of `total`, `address`, `overwrite`."""

    total: Tensor
    address: Address
    overwrite: bool = False


def noisy_updates(parts: Sequence[Noised], *, noise_std: float, divisor: float, stream: KeyStream) -> list[Tensor]:
    """Return the `noisy_update` of each total; all are drawn at once, so that threads do not wait for one another."""
    std = non_negative_number("noise_std", noise_std)
    denominator = positive_number("divisor", divisor)
    updates: list[Tensor] = []
    draws: list[_Draw] = []
    key: CipherKey | None = None
    for part in parts:
        total = part.total.detach()
        _require_wide(total.dtype, "total")
        if part.overwrite and not total.is_contiguous():
            raise InvalidArgumentError(
                "a total that is overwritten must be contiguous", where="total", cure="Pass total.contiguous()"
            )
        if std == 0:
            updates.append(total.div_(denominator) if part.overwrite else (total / denominator).contiguous())
        elif dispatch.draws_noise(total):
            key = key or CipherKey.of(stream)
            noised = dispatch.noisy_update(
                total, noise_std=std, divisor=denominator, key=key, address=part.address, overwrite=part.overwrite
            )
            updates.append(noised)
        elif total.device.type != "cpu":
            noise = standard_normal(
                total.shape, dtype=total.dtype, device=total.device, stream=stream, address=part.address
            )
            noise = noise.mul_(std).add_(total).div_(denominator)
            updates.append(total.copy_(noise) if part.overwrite else noise)
        else:
            updates.append(total if part.overwrite else torch.empty(total.shape, dtype=total.dtype, device="cpu"))
            into = updates[-1].view(-1).numpy()
            summed = None if part.overwrite else total.reshape(-1).numpy()
            draws.append(_Draw(into, part.address, summed, std, denominator))
    _run(draws, stream)
    return updates


def _run(draws: Sequence[_Draw], stream: KeyStream) -> None:
    for word in {draw.word for draw in draws}:
        pick_table(8 * word.itemsize)  # made once, before the threads ask for it
    kind = backend()
    parts = run_chunks(draws, stream, Workers(kind, _idle, kind.size, kind.worth_a_thread))
    found = [np.concatenate([np.empty(0, np.intp), *places]) for places in parts]
    counts, addresses = [len(places) for places in found], [draw.address for draw in draws]
    values = remainders(counts, addresses, stream, accept_reject, words=3)
    for draw, places, further in zip(draws, found, values, strict=True):
        draw.complete(places, further)


def _require_wide(dtype: torch.dtype, name: str) -> None:
    if dtype not in _WORDS:
        raise InvalidArgumentError(
            f"must be float32 or float64, got {dtype}",
            where=name,
            cure="Sum and add noise in float32, then cast the result",
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Draw:
    """Values at an address: written into `into` as they are, or as (total + std · z) / divisor if a std is given.

    Without a total, `into` holds it. All arrays are flat.
    """

    into: Floats
    address: Address
    total: Floats | None = None
    std: float | None = None
    divisor: float = 1.0

    @property
    def word(self) -> np.dtype[Any]:
        return np.dtype(f"i{self.into.itemsize}")

    def chunk(self, start: int, stop: int, backend: Backend, stream: KeyStream) -> Places:
        """Write the values in [start, stop) and return which of them the remainder stands for."""
        bits, into = Bits(stream, self.address, start), self.into[start:stop]
        if self.std is None:
            return start + backend.normal(bits, into)
        total = None if self.total is None else self.total[start:stop]
        return start + backend.noised(bits, total, into, self.std, self.divisor)

    def complete(self, places: Places, values: Float64s) -> None:
        """Write the values of the remainder; the backend took them for 0."""
        if self.std is None:
            self.into[places] = values
        else:
            self.into[places] += values * (self.std / self.divisor)


_idle: dict[np.dtype[Any], deque[Backend]] = {word: deque() for word in _WORDS.values()}
