"""Gaussian noise from a keyed stream, on all threads: one word, one look-up and one multiplication for each value.

A value is made of its own random word (32 bits for float32, 64 for float64) by the strips of `hushgrad.noise.strips`:
value = middle + slope · word. The few words that pick the remainder get their values from a region of the address that
words never reach, in the order of their places in the draw. So the values depend on the key, the address, the number
of values and the dtype, and not on threads, chunks or memory at hand.

On a CUDA device the noise of an update is drawn there (`hushgrad.kernels.draws`): other values, distributed alike.

Rounding. In float32 a value is within two units in the last place of its exact mixture, and the positions in a strip
are spaced by 2**-16 of its width: below 2e-9 for `abs(z)` < 1 and below 7e-7 everywhere. In float64, 2**-48 of its
width.

Guarantee: values beyond `abs(z)` = 8 occur with their true probability; the largest possible `abs(z)` is 10.1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hushgrad.arguments import non_negative_number, positive_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.kernels import dispatch
from hushgrad.kernels.chacha import CipherKey
from hushgrad.noise.strips import PICKS, Float64s, pick_table, remainder, strips
from hushgrad.noise.threads import on_all_threads
from hushgrad.randomness import Address, KeyStream

# Values that one thread works on at a time. Its scratch memory (17 bytes a value) leaves the fast caches, which costs
# less than more frequent changes between Python and the array operations: threads wait for one another there.
CHUNK_VALUES = 1 << 17
WORTH_A_THREAD = 1 << 15  # values for which one more thread is worth its start

_REMAINDER_OFFSET = 1 << 60  # bytes into an address; no draw has that many values

_WORDS: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype(np.int32), torch.float64: np.dtype(np.int64)}

Floats = NDArray[np.floating[Any]]
Places = NDArray[np.intp]


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
    flat: Floats = values.view(-1).numpy()

    def store(start: int, chunk: Floats) -> None:
        flat[start : start + len(chunk)] = chunk

    def complete(places: Places, further: Float64s) -> None:
        flat[places] = further

    _run([_Draw(len(flat), _WORDS[dtype], address, store, complete)], stream)
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


@torch.no_grad()
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
            raise InvalidArgumentError("a total that is overwritten must be contiguous; pass total.contiguous()")
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
            draws.append(_adding(total, updates[-1], std, denominator, part.address))
    _run(draws, stream)
    return updates


def _adding(total: Tensor, update: Tensor, std: float, denominator: float, address: Address) -> _Draw:
    """Return the draw that writes (total + std · z) / denominator into `update`, contiguous."""
    into: Floats = update.view(-1).numpy()
    summed: Floats = total.reshape(-1).numpy()

    def add(start: int, chunk: Floats) -> None:
        span = slice(start, start + len(chunk))
        np.multiply(chunk, std, out=chunk)
        np.add(chunk, summed[span], out=chunk)
        np.divide(chunk, denominator, out=into[span])

    def complete(places: Places, further: Float64s) -> None:
        # The strips give 0 for what the remainder stands for, so there the sum is divided already.
        into[places] += further * (std / denominator)

    return _Draw(len(into), _WORDS[total.dtype], address, add, complete)


def _require_wide(dtype: torch.dtype, name: str) -> None:
    if dtype not in _WORDS:
        raise InvalidArgumentError(
            f"{name} must be float32 or float64, got {dtype}; sum and add noise in float32, then cast the result"
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Draw:
    """`count` values at an address. `consume(start, values)` gets them in chunks, in any order and from any thread,
    with 0 for those that the remainder stands for; then `complete(places, values)` gets these, in rising places.
    """

    count: int
    word: np.dtype[Any]
    address: Address
    consume: Callable[[int, Floats], None]
    complete: Callable[[Places, Float64s], None]


def _run(draws: Sequence[_Draw], stream: KeyStream) -> None:
    """Draw, on as many of torch's threads as there is work for."""
    jobs = deque((draw, start) for draw in draws for start in range(0, draw.count, CHUNK_VALUES))
    places: dict[Address, list[Places]] = {draw.address: [] for draw in draws}
    threads = max(1, min(torch.get_num_threads(), sum(draw.count for draw in draws) // WORTH_A_THREAD))
    for word in {draw.word for draw in draws}:
        pick_table(8 * word.itemsize)  # made once, before the threads ask for it

    def work() -> None:
        with ExitStack() as lent:
            scratch: dict[np.dtype[Any], _Chunks] = {}
            while True:
                try:
                    draw, start = jobs.popleft()
                except IndexError:
                    return
                if draw.word not in scratch:
                    scratch[draw.word] = lent.enter_context(_chunks(draw.word))
                size = min(CHUNK_VALUES, draw.count - start)
                values, missing = scratch[draw.word].draw(start, size, stream, draw.address)
                draw.consume(start, values)
                if len(missing):
                    places[draw.address].append(missing + start)

    on_all_threads(work, threads)
    for draw in draws:
        found = np.sort(np.concatenate([*places[draw.address], np.empty(0, np.intp)]))
        draw.complete(found, _remainder(len(found), stream, draw.address))


class _Chunks:
    """The scratch memory of one thread, and what it computes there."""

    def __init__(self, size: int, word: np.dtype[Any]) -> None:
        table = pick_table(8 * word.itemsize)
        real = table.dtype["middle"]
        self._words = np.empty(size, word)
        self._positions, self._is_missing = np.empty(size, real), np.empty(size, np.bool_)
        # Middle and slope are fetched as one item of twice the width; torch looks such up faster than NumPy does.
        pair = np.dtype(np.float64 if real == np.float32 else np.complex128)
        self._pairs = np.empty(size, table.dtype)
        self._table, self._found = torch.from_numpy(table.view(pair)), torch.from_numpy(self._pairs.view(pair))

    def draw(self, start: int, size: int, stream: KeyStream, address: Address) -> tuple[Floats, Places]:
        """Return the values from `start` on, in memory that the next call uses again, and which are missing."""
        words, values, missing = self._words[:size], self._positions[:size], self._is_missing[:size]
        pairs, found = self._pairs[:size], self._found[:size]
        stream.fill(words, address, offset=start * words.itemsize)
        np.copyto(values, words, casting="unsafe")
        np.bitwise_and(words, PICKS - 1, out=words)
        torch.index_select(self._table, 0, torch.from_numpy(words), out=found)
        np.multiply(values, pairs["slope"], out=values)
        np.add(values, pairs["middle"], out=values)
        np.greater_equal(words, 2 * strips().count, out=missing)
        return values, np.flatnonzero(missing)


# Fresh memory costs a page fault for every 4 KiB, which is more time than the values take, so scratch memory is kept.
# What the last draw left in it is no more open to others than the sums that it was added to.
_idle: dict[np.dtype[Any], deque[_Chunks]] = {word: deque() for word in _WORDS.values()}


@contextmanager
def _chunks(word: np.dtype[Any]) -> Iterator[_Chunks]:
    """Lend scratch memory to one thread."""
    try:
        chunks = _idle[word].pop()
    except IndexError:
        chunks = _Chunks(CHUNK_VALUES, word)
    try:
        yield chunks
    finally:
        _idle[word].append(chunks)


def _remainder(count: int, stream: KeyStream, address: Address) -> Float64s:
    """Return the first `count` values of the remainder that belong to an address; they are the same for any count."""
    offset, accepted = _REMAINDER_OFFSET, np.empty(0)
    while (lacking := count - len(accepted)) > 0:
        # Three in four candidates are accepted. Their number is even, so that offsets stay multiples of a block.
        candidates = np.empty((2 * (3 * lacking // 4 + 6), 3), np.uint64)
        stream.fill(candidates, address, offset=offset)
        offset += candidates.nbytes
        accepted = np.concatenate([accepted, remainder(candidates)])
    return accepted[:count]
