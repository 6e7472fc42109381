"""Gaussian noise from a keyed stream, on all threads: one word, one look-up and one multiplication for each value.

A value is made of its own random word (32 bits for float32, 64 for float64) by the strips of `hushgrad.noise.strips`:
value = middle + slope · word. The few words that pick the remainder get their values from a region of the address that
words never reach, in the order of their places in the draw. So the values depend on the key, the address, the number
of values and the dtype, and not on threads, chunks or memory at hand.

Rounding. In float32 a value is within two units in the last place of its exact mixture, and the positions in a strip
are spaced by 2**-16 of its width: below 2e-9 for `abs(z)` < 1 and below 7e-7 everywhere. In float64, 2**-48 of its
width.

Guarantee: values beyond `abs(z)` = 8 occur with their true probability; the largest possible `abs(z)` is 10.1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hushgrad.arguments import non_negative_number, positive_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.noise.strips import PICKS, Float64s, pick_table, remainder, strips
from hushgrad.noise.threads import on_all_threads
from hushgrad.randomness import Address, KeyStream

# Values that one thread works on at a time, at most. Its scratch memory leaves the fast caches, which costs less than
# more frequent changes between Python and the array operations: threads wait for one another there.
CHUNK_VALUES = 1 << 18

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

    places, further = _draw(len(flat), _WORDS[dtype], stream, address, store)
    flat[places] = further
    return values.to(device)


@torch.no_grad()
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
    _require_wide(total.dtype, "total")
    std = non_negative_number("noise_std", noise_std)
    denominator = positive_number("divisor", divisor)
    if overwrite and not total.is_contiguous():
        raise InvalidArgumentError("a total that is overwritten must be contiguous; pass total.contiguous()")
    total = total.detach()
    if std == 0:
        return total.div_(denominator) if overwrite else (total / denominator).contiguous()
    if total.device.type != "cpu":
        noise = standard_normal(total.shape, dtype=total.dtype, device=total.device, stream=stream, address=address)
        noise = noise.mul_(std).add_(total).div_(denominator)
        return total.copy_(noise) if overwrite else noise
    update = total if overwrite else torch.empty(total.shape, dtype=total.dtype, device="cpu")
    into: Floats = update.view(-1).numpy()
    summed: Floats = total.reshape(-1).numpy()

    def add(start: int, chunk: Floats) -> None:
        span = slice(start, start + len(chunk))
        np.multiply(chunk, std, out=chunk)
        np.add(chunk, summed[span], out=chunk)
        np.divide(chunk, denominator, out=into[span])

    # The strips give 0 for what the remainder stands for, so there the sum is divided already.
    places, further = _draw(len(into), _WORDS[total.dtype], stream, address, add)
    into[places] += further * (std / denominator)
    return update


def _require_wide(dtype: torch.dtype, name: str) -> None:
    if dtype not in _WORDS:
        raise InvalidArgumentError(
            f"{name} must be float32 or float64, got {dtype}; sum and add noise in float32, then cast the result"
        )


def _draw(
    count: int, word: np.dtype[Any], stream: KeyStream, address: Address, consume: Callable[[int, Floats], None]
) -> tuple[Places, Float64s]:
    """Hand `count` values to `consume(start, values)`, chunk by chunk, in any order and from several threads.

    Returns:
        The places of the values that the remainder stands for, rising, and these values; `consume` got 0 for them.
    """
    threads = max(1, min(torch.get_num_threads(), -(-count // CHUNK_VALUES)))
    size = _chunk_size(count, threads)
    starts = deque(range(0, count, size))
    places: list[Places] = []

    def work() -> None:
        with _chunks(word) as chunks:
            while True:
                try:
                    start = starts.popleft()
                except IndexError:
                    return
                values, missing = chunks.draw(start, min(size, count - start), stream, address)
                consume(start, values)
                if len(missing):
                    places.append(missing + start)

    if threads > 1:
        pick_table(8 * word.itemsize)  # made once, before the threads ask for it
    on_all_threads(work, threads)
    ordered = np.sort(np.concatenate([*places, np.empty(0, np.intp)]))
    return ordered, _remainder(len(ordered), stream, address)


def _chunk_size(count: int, threads: int) -> int:
    """Return the size of the fewest chunks that give all threads as much to do; the cipher's blocks stay whole."""
    chunks = max(1, threads * -(-count // (threads * CHUNK_VALUES)))
    return max(4, -(-count // (4 * chunks)) * 4)


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
