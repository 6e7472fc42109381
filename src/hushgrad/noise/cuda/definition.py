"""The definition of noise that is drawn on a GPU, in array operations of torch.

Value i of a draw is made of one word of ChaCha20, by the strips of `hushgrad.noise.strips` as on the CPU:
value = middle + slope · word, in float32, rounded after the product and after the sum.

- Its block has the nonce (0, item and shard, step), and the counter 32 · (i // 512) + i % 32; of that block it takes
  word (i % 512) // 32. So 32 blocks lie next to each other as the 32 threads of a GPU's warp that compute them, and
  what these write at one time are 32 neighbours in memory.
- A word that picks the remainder is replaced by the first accepted of the candidates that belong to i. Candidate
  number a is made of six words of the block with the counter i mod 2**32 and the nonce
  (16 · (a + 1) + i // 2**32, item and shard, step). It is a place in one of the boxes above the strips, or a value of
  the tail, by Marsaglia's rejection (1964): sqrt(r² - 2 ln u) for u uniform, accepted with probability r / value.

The key is `CipherKey.of` the stream. Nothing depends on how a draw is cut into pieces.

Rounding. As on the CPU: float32 within two units in the last place of the exact mixture, the remainder in float64.

Guarantee: the values depend on the key, the address and the place in the draw only.
Guarantee: values beyond `abs(z)` = 8 occur with their true probability; the largest possible `abs(z)` is 10.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from hushgrad.arguments import non_negative_number, positive_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.noise.cuda.chacha import BLOCK_WORDS, CipherKey, Nonce, chacha20, signed
from hushgrad.noise.strips import PICKS, density, pick_table, strips
from hushgrad.randomness import Address

LANES = 32  # blocks that are interleaved
TILE = LANES * BLOCK_WORDS  # values that they make
MOST_VALUES = BLOCK_WORDS << 32  # counters have 32 bits

# Tiles that are computed at a time; the words, and copies of them that the rounds make, take 60 bytes a value.
CHUNK_TILES = 1 << 13


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """The strips and their remainder, on a device.

    Attributes:
        picks: `[2**16, 2]`, float32: middle and slope for each lowest 16 bits of a word.
        edges: `[N + 1]`, float64; box k of the remainder lies over edges[k] ... edges[k + 1].
        heights: `[N]`, float64, where the box begins: the height of its strip.
        boxes: `[N + 1]`, float64, rising: areas up to and with box k, and last with what the tail is drawn from.
        gaps: `[N]`, float64, the height of the box.
    """

    picks: Tensor
    edges: Tensor
    heights: Tensor
    boxes: Tensor
    gaps: Tensor

    @property
    def count(self) -> int:
        """N, the number of strips of one side. Picks from 2·N on stand for the remainder."""
        return len(self.heights)


@cache
def tables(device: torch.device) -> Tables:
    """Return the tables, made once for each device."""
    right = strips()
    gaps = density(right.edges[:-1]) - right.heights
    tail = density(right.edges[-1:]) / right.edges[-1]  # the area under the curve that tail candidates come from
    boxes = np.cumsum(np.append(np.diff(right.edges) * gaps, tail))
    picks = pick_table(32)
    both = np.stack([picks["middle"], picks["slope"]], axis=1)
    return Tables(*(torch.from_numpy(part).to(device) for part in (both, right.edges, right.heights, boxes, gaps)))


@torch.no_grad()
def noisy_update(
    total: Tensor, *, noise_std: float, divisor: float, key: CipherKey, address: Address, overwrite: bool = False
) -> Tensor:
    """Return `(total + noise_std · z) / divisor`, z the draw at `address` as defined above; on the device of `total`.

    Args:
        total: the clipped sum, float32, any shape; it is not modified unless `overwrite` says so.
        noise_std: standard deviation of the noise on the sum, in units of the gradient.
        divisor: a public constant.
        key: the key of the stream that noise is drawn from.
        address: where the noise lies; one address serves one call.
        overwrite: write the result into the memory of `total`, which must be contiguous and have no other reader.

    Returns:
        A contiguous tensor in the shape of `total`.

    Guarantee: the noise of the result has standard deviation noise_std / divisor.
    """
    std, denominator, update = prepared(total, noise_std, divisor, overwrite)
    summed, into = total.detach().reshape(-1), update.view(-1)
    # On the device, because torch would multiply by the reciprocal of a number, which rounds differently.
    dividing = torch.full((), denominator, dtype=total.dtype, device=total.device)
    for start in range(0, len(into), CHUNK_TILES * TILE):
        span = slice(start, min(start + CHUNK_TILES * TILE, len(into)))
        values = _values(key, address, start, span.stop - start, total.device)
        torch.div(values.mul_(std).add_(summed[span]), dividing, out=into[span])
    return update


def standard_normal(count: int, *, device: torch.device | str, key: CipherKey, address: Address) -> Tensor:
    """Return the `count` values at an address, float32."""
    zeros = torch.zeros(count, device=device)
    return noisy_update(zeros, noise_std=1.0, divisor=1.0, key=key, address=address, overwrite=True)


def prepared(total: Tensor, noise_std: float, divisor: float, overwrite: bool) -> tuple[float, float, Tensor]:
    """Return the checked scalars, and the tensor to write to."""
    std, denominator = non_negative_number("noise_std", noise_std), positive_number("divisor", divisor)
    if total.dtype != torch.float32:
        raise InvalidArgumentError(f"must be float32, got {total.dtype}", where="total", cure="Sum in float32")
    if total.numel() > MOST_VALUES:
        raise InvalidArgumentError(
            f"must have at most 2**36 values, got {total.numel()}", where="total", cure="Split it, with an address each"
        )
    if not overwrite:
        return std, denominator, torch.empty(total.shape, dtype=total.dtype, device=total.device)
    if not total.is_contiguous():
        raise InvalidArgumentError(
            "a total that is overwritten must be contiguous", where="total", cure="Pass total.contiguous()"
        )
    return std, denominator, total.detach()


def nonce_of(address: Address) -> tuple[int, int]:
    """Return the second and third word of an address's nonces; different addresses give different ones."""
    packed = address.packed()
    return signed(packed & 0xFFFFFFFF), signed(packed >> 32)


def _values(key: CipherKey, address: Address, start: int, count: int, device: torch.device) -> Tensor:
    """Return the values from place `start` (a multiple of TILE) on."""
    nonce, table = nonce_of(address), tables(device)
    tiles = -(-count // TILE)
    counters = _wrapped(torch.arange(tiles * LANES, device=device) + start // TILE * LANES)
    words = chacha20(key, counters, (0, *nonce)).view(BLOCK_WORDS, tiles, LANES).transpose(0, 1).reshape(-1)[:count]
    picks = words.bitwise_and(PICKS - 1)
    found = table.picks.index_select(0, picks)
    values = words.to(torch.float32).mul_(found[:, 1]).add_(found[:, 0])
    places = (picks >= 2 * table.count).nonzero().squeeze(1)
    values[places] = _remainder(key, nonce, places + start, table)
    return values


def _remainder(key: CipherKey, nonce: tuple[int, int], places: Tensor, table: Tables) -> Tensor:
    """Return the values of the remainder at the given places of a draw, `[n]` float32."""
    values = torch.empty(len(places), dtype=torch.float32, device=places.device)
    pending, attempt = torch.arange(len(places), device=places.device), 0
    while len(pending):
        waiting = places[pending]
        first = (waiting >> 32).add_(16 * (attempt + 1)).to(torch.int32)
        block: Nonce = (first, *nonce)
        candidates, is_accepted = _candidates(chacha20(key, _wrapped(waiting), block), table)
        values[pending[is_accepted]] = candidates[is_accepted].to(torch.float32)
        pending, attempt = pending[~is_accepted], attempt + 1
    return values


def _candidates(words: Tensor, table: Tables) -> tuple[Tensor, Tensor]:
    """Return what candidates `[n]` are, in float64, and which are accepted. `words` is `[16, n]`."""
    w = words[:6].to(torch.int64).bitwise_and_(0xFFFFFFFF).to(torch.float64)
    share = w[0] * 2.0**-32 + (words[1].to(torch.int64) >> 1 & 0x7FFFFFFF).to(torch.float64) * 2.0**-63
    across = w[2] * 2.0**-32 + (w[3] + 0.5) * 2.0**-64
    up = w[4] * 2.0**-32 + (w[5] + 0.5) * 2.0**-64
    box = torch.searchsorted(table.boxes[:-1], share * table.boxes[-1], right=True)
    strip = box.clamp(max=table.count - 1)
    left = table.edges[strip]
    x = left + across * (table.edges[strip + 1] - left)
    is_accepted = up * table.gaps[strip] < torch.exp(x * x * -0.5) * DENSITY_AT_0 - table.heights[strip]
    edge = table.edges[-1]
    beyond = torch.sqrt(edge * edge - 2 * torch.log(across))
    is_tail = box == table.count
    x = torch.where(is_tail, beyond, x)
    is_accepted = torch.where(is_tail, up * beyond < edge, is_accepted)
    return torch.where(words[1].bitwise_and(1) == 1, -x, x), is_accepted


DENSITY_AT_0 = float(density(np.zeros(1))[0])


def _wrapped(numbers: Tensor) -> Tensor:
    """Return the lowest 32 bits of int64 numbers, as int32."""
    low = numbers & 0xFFFFFFFF
    return torch.where(low >= 1 << 31, low - (1 << 32), low).to(torch.int32)
