"""Draws cut into chunks, which all of torch's threads work off; and the values of what chunks leave out.

What is left out of a draw is drawn from regions of its address that its words never reach, in the order of its places.
So values depend on the key, the address and the number of values, and not on threads, chunks or free memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from hushgrad.errors import InterruptedDrawError
from hushgrad.noise.backends import Floats
from hushgrad.noise.strips import Float64s
from hushgrad.noise.threads import on_all_threads
from hushgrad.randomness import Address, KeyStream

REMAINDER_OFFSET = 1 << 60
"""Bytes into an address; no draw has that many values."""


class AnyBackend(Protocol):
    """What computes a chunk of at most `size` values; one more thread is worth its start for `worth_a_thread`."""

    size: int
    worth_a_thread: int


_Backend = TypeVar("_Backend", bound=AnyBackend)
_BackendIn = TypeVar("_BackendIn", bound=AnyBackend, contravariant=True)
_Left = TypeVar("_Left")
_LeftOut = TypeVar("_LeftOut", covariant=True)


class Chunked(Protocol[_BackendIn, _LeftOut]):
    """A draw that is computed chunk by chunk, into the flat array `into`, from words of the dtype `word`."""

    @property
    def into(self) -> Floats:
        """What is written to."""

    @property
    def word(self) -> np.dtype[Any]:
        """What a value is made from."""

    def chunk(self, start: int, stop: int, backend: _BackendIn, stream: KeyStream) -> _LeftOut:
        """Write the values in [start, stop) and return what is left out, in memory of its own."""


class Workers(NamedTuple, Generic[_Backend]):
    """The kind of backend, and those of it that no thread uses now, by the dtype of their words.

    Fresh memory costs a page fault for every 4 KiB, which is more time than the values take, so scratch memory is kept.
    What the last draw left in it is no more open to others than the sums that it was added to.
    """

    kind: Callable[[np.dtype[Any]], _Backend]
    idle: dict[np.dtype[Any], deque[_Backend]]
    size: int
    worth_a_thread: int

    def lent(self, word: np.dtype[Any]) -> _Backend:
        """Return a backend, with its scratch memory, for one thread, which puts it back among the idle ones."""
        try:
            return self.idle[word].pop()
        except IndexError:
            return self.kind(word)


def run_chunks(
    draws: Sequence[Chunked[_Backend, _Left]], stream: KeyStream, workers: Workers[_Backend]
) -> list[list[_Left]]:
    """Draw, on as many of torch's threads as there is work for; return what the chunks of each draw leave out.

    Guarantee: it returns only after every chunk has said that its values are written and which of them are missing.
    """
    chunks = [(item, start) for item, draw in enumerate(draws) for start in range(0, len(draw.into), workers.size)]
    left = deque(range(len(chunks)))
    missing: list[_Left | None] = [None] * len(chunks)  # set by a chunk as the last thing it does
    values = sum(len(draw.into) for draw in draws)
    threads = max(1, min(torch.get_num_threads(), values // workers.worth_a_thread))

    def work() -> None:
        scratch: dict[np.dtype[Any], _Backend] = {}
        try:
            while True:
                try:
                    chunk = left.popleft()
                except IndexError:
                    return
                item, start = chunks[chunk]
                draw = draws[item]
                if draw.word not in scratch:
                    scratch[draw.word] = workers.lent(draw.word)
                stop = min(start + workers.size, len(draw.into))
                missing[chunk] = draw.chunk(start, stop, scratch[draw.word], stream)
        except BaseException:
            left.clear()  # nobody needs the rest
            raise
        finally:
            for word, backend in scratch.items():
                workers.idle[word].append(backend)

    on_all_threads(work, threads)
    work()  # what is left where no thread came for it
    return _by_draw(chunks, missing, len(draws))


def _by_draw(chunks: Sequence[tuple[int, int]], missing: Sequence[_Left | None], draws: int) -> list[list[_Left]]:
    """Return what each draw leaves out, chunk by chunk."""
    found: list[list[_Left]] = [[] for _ in range(draws)]
    for (item, _), part in zip(chunks, missing, strict=True):
        if part is None:  # begun, and its sum may be written over in part, so it cannot be done again
            undone = sum(part is None for part in missing)
            raise InterruptedDrawError(
                f"{undone} of the {len(chunks)} parts of a draw of noise began and did not end, so the update was not "
                f"handed out. What was charged for it stands",
                where="noise",
                cure="Go on with the next batch. If nothing interrupted the draw, report it, with the versions of "
                "hushgrad and Python",
            )
        found[item].append(part)
    return found


Judge = Callable[[NDArray[np.uint64]], tuple[Float64s, NDArray[np.bool_]]]


def remainders(
    counts: Sequence[int], addresses: Sequence[Address], stream: KeyStream, judge: Judge, words: int
) -> list[Float64s]:
    """Return the first `count` values of the remainder that belong to each address; the same for any count.

    Args:
        counts, addresses: of each draw.
        stream: the source of bits.
        judge: turns candidates `[n, words]` into values, and says which of them are accepted: about three in four. The
            candidates of all addresses are judged together: a call costs more than a value.
        words: those of 64 bits that a candidate has.
    """
    accepted = [np.empty(0) for _ in counts]
    offsets = [REMAINDER_OFFSET] * len(counts)
    while short := [draw for draw, count in enumerate(counts) if len(accepted[draw]) < count]:
        # Three in four candidates are accepted. Their number is even, so that offsets stay multiples of a block.
        sizes = [2 * (3 * (counts[draw] - len(accepted[draw])) // 4 + 6) for draw in short]
        candidates = np.empty((sum(sizes), words), np.uint64)
        ends = list(accumulate(sizes))
        for draw, size, end in zip(short, sizes, ends, strict=True):
            part = candidates[end - size : end]
            stream.fill(part, addresses[draw], offset=offsets[draw])
            offsets[draw] += part.nbytes
        values, is_accepted = judge(candidates)
        for draw, size, end in zip(short, sizes, ends, strict=True):
            mine = slice(end - size, end)
            accepted[draw] = np.concatenate([accepted[draw], values[mine][is_accepted[mine]]])
    return [part[:count] for part, count in zip(accepted, counts, strict=True)]
