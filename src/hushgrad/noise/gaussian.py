"""Gaussian noise from a keyed stream, on all threads: one word, one look-up and one multiplication for each value.

Each value is made from a random word of its own (32 bits for float32, 64 for float64) by the strips of
`hushgrad.noise.strips`: value = middle + slope · word. The few words that pick the remainder get their values from a
region of the address that words never reach, in the order of their positions in the draw. So the values depend on the
key, the address, the number of values and the dtype, and not on threads, chunks or free memory.

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
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hushgrad.arguments import non_negative_number, positive_number
from hushgrad.errors import InterruptedDrawError, InvalidArgumentError
from hushgrad.noise.backends import Backend, Bits, Floats, Places
from hushgrad.noise.compiled import fastest_backend
from hushgrad.noise.cuda import dispatch
from hushgrad.noise.cuda.chacha import CipherKey
from hushgrad.noise.strips import Float64s, accept_reject, pick_table
from hushgrad.noise.threads import on_all_threads
from hushgrad.randomness import Address, KeyStream

BACKEND = fastest_backend()

_REMAINDER_OFFSET = 1 << 60  # bytes into an address; no draw has that many values

_WORDS: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype(np.int32), torch.float64: np.dtype(np.int64)}


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
            return backend.normal(bits, into)
        total = None if self.total is None else self.total[start:stop]
        return backend.noised(bits, total, into, self.std, self.divisor)

    def complete(self, places: Places, values: Float64s) -> None:
        """Write the values of the remainder; the backend took them for 0."""
        if self.std is None:
            self.into[places] = values
        else:
            self.into[places] += values * (self.std / self.divisor)


def _run(draws: Sequence[_Draw], stream: KeyStream) -> None:
    """Draw, on as many of torch's threads as there is work for.

    Guarantee: it returns only after every chunk has said that its values are written and which of them are missing.
    """
    chunks = [(item, start) for item, draw in enumerate(draws) for start in range(0, len(draw.into), BACKEND.size)]
    left = deque(range(len(chunks)))
    missing: list[Places | None] = [None] * len(chunks)  # set by a chunk as the last thing it does
    threads = max(1, min(torch.get_num_threads(), sum(len(draw.into) for draw in draws) // BACKEND.worth_a_thread))
    for word in {draw.word for draw in draws}:
        pick_table(8 * word.itemsize)  # made once, before the threads ask for it

    def work() -> None:
        scratch: dict[np.dtype[Any], Backend] = {}
        try:
            while True:
                try:
                    chunk = left.popleft()
                except IndexError:
                    return
                item, start = chunks[chunk]
                draw = draws[item]
                if draw.word not in scratch:
                    scratch[draw.word] = _lent(draw.word)
                backend = scratch[draw.word]
                missing[chunk] = start + draw.chunk(start, min(start + backend.size, len(draw.into)), backend, stream)
        except BaseException:
            left.clear()  # nobody needs the rest
            raise
        finally:
            for word, backend in scratch.items():
                _idle[word].append(backend)

    on_all_threads(work, threads)
    work()  # what is left where no thread came for it
    found = _places(chunks, missing, len(draws))
    values = _remainders([len(part) for part in found], [draw.address for draw in draws], stream)
    for draw, part, further in zip(draws, found, values, strict=True):
        draw.complete(part, further)


def _places(chunks: Sequence[tuple[int, int]], missing: Sequence[Places | None], draws: int) -> list[Places]:
    """Return the places of the missing values of each draw, in rising order, from those of its chunks."""
    found: list[list[Places]] = [[np.empty(0, np.intp)] for _ in range(draws)]
    for (item, _), places in zip(chunks, missing, strict=True):
        if places is None:  # begun, and its sum may be written over in part, so it cannot be done again
            undone = sum(places is None for places in missing)
            raise InterruptedDrawError(
                f"{undone} of the {len(chunks)} parts of a draw of noise began and did not end, so the update was not "
                f"handed out. What was charged for it stands",
                where="noise",
                cure="Go on with the next batch. If nothing interrupted the draw, report it, with the versions of "
                "hushgrad and Python",
            )
        found[item].append(places)
    return [np.concatenate(parts) for parts in found]


# Fresh memory costs a page fault for every 4 KiB, which is more time than the values take, so scratch memory is kept.
# What the last draw left in it is no more open to others than the sums that it was added to.
_idle: dict[np.dtype[Any], deque[Backend]] = {word: deque() for word in _WORDS.values()}


def _lent(word: np.dtype[Any]) -> Backend:
    """Return a backend, with its scratch memory, for one thread, which puts it back among the idle ones."""
    try:
        return _idle[word].pop()
    except IndexError:
        return BACKEND(word)


def _remainders(counts: Sequence[int], addresses: Sequence[Address], stream: KeyStream) -> list[Float64s]:
    """Return the first `count` values of the remainder that belong to each address; the same for any count.

    The candidates of all addresses are judged together: a call costs more than a value.
    """
    accepted = [np.empty(0) for _ in counts]
    offsets = [_REMAINDER_OFFSET] * len(counts)
    while short := [draw for draw, count in enumerate(counts) if len(accepted[draw]) < count]:
        # Three in four candidates are accepted. Their number is even, so that offsets stay multiples of a block.
        sizes = [2 * (3 * (counts[draw] - len(accepted[draw])) // 4 + 6) for draw in short]
        candidates = np.empty((sum(sizes), 3), np.uint64)
        ends = list(accumulate(sizes))
        for draw, size, end in zip(short, sizes, ends, strict=True):
            part = candidates[end - size : end]
            stream.fill(part, addresses[draw], offset=offsets[draw])
            offsets[draw] += part.nbytes
        values, is_accepted = accept_reject(candidates)
        for draw, size, end in zip(short, sizes, ends, strict=True):
            mine = slice(end - size, end)
            accepted[draw] = np.concatenate([accepted[draw], values[mine][is_accepted[mine]]])
    return [part[:count] for part, count in zip(accepted, counts, strict=True)]
