"""The keyed stream of random bits that noise and sampling are drawn from.

The stream is AES-256 in counter mode. Its key comes from the operating system, never from a user's seed or from the
global generators of torch, NumPy or Python, and it is never saved or restored: noise drawn twice cancels exactly.

Every draw names an `Address`. The address is the upper half of the cipher's 128-bit counter and the position inside
the draw is the lower half, so draws at different addresses can never overlap.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hushgrad.arguments import whole_number
from hushgrad.errors import InvalidArgumentError, ProtocolError
from hushgrad.process import Process, this_process, this_start

KEY_BYTES = 32
BLOCK_BYTES = 16

# The cipher XORs its stream onto a plaintext of zeros. One block of zeros that stays in the cache serves every draw:
# a fresh zero buffer as long as the draw costs five times the cipher, all of it in page faults.
_ZEROS = bytes(1 << 18)


WritableBuffer = bytearray | memoryview | np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Address:
    """Where in a stream a draw lies: a step, an item of that step (a parameter, say) and a shard of that item.

    Raises `InvalidArgumentError` for a coordinate out of range: step < 2**32, item < 2**20, shard < 2**12.
    """

    step: int
    item: int = 0
    shard: int = 0

    _LIMITS: ClassVar[tuple[int, int, int]] = (1 << 32, 1 << 20, 1 << 12)

    def __post_init__(self) -> None:
        for name, value, limit in zip(
            ("step", "item", "shard"), (self.step, self.item, self.shard), self._LIMITS, strict=True
        ):
            if whole_number(f"{name} of an address", value, minimum=0) >= limit:
                raise InvalidArgumentError(
                    f"must be in [0, {limit}), got {value}",
                    where=f"{name} of an address",
                    cure=f"Pass a whole number below {limit}",
                )

    def packed(self) -> int:
        """Return the address as one 64-bit number; different addresses give different numbers."""
        return int(self.step) << 32 | int(self.item) << 12 | int(self.shard)


@dataclass(frozen=True, slots=True, eq=False)
class KeyStream:
    """A stream of uniform random bits under a secret key.

    The stream belongs to the process that made it. A forked child holds the same key, so its draws would repeat the
    parent's; it gets a `ProtocolError` instead, as does a process that was restored from a checkpoint, at the first
    draw of its next step. A whole machine that is restored cannot be told from the original, so it must not go on
    training. Equality is identity, and `repr` does not show the key.

    Guarantee: draws at different addresses never share a block of the cipher; forks for different purposes have
    unrelated keys.
    Guarantee: a stream cannot be pickled, copied or drawn from in a forked process, whoever forked it.
    """

    _key: bytes = field(repr=False)
    is_secret: bool
    _process: Process = field(repr=False, default_factory=this_process)
    _start: tuple[bytes, bytes] = field(repr=False, default_factory=this_start)
    _seen: set[int] = field(repr=False, default_factory=set)  # the step that was drawn for last

    @classmethod
    def from_operating_system(cls) -> KeyStream:
        """Return a stream under a fresh key from the operating system's entropy."""
        return cls(os.urandom(KEY_BYTES), True)

    @classmethod
    def fixed_for_tests(cls, seed: int) -> KeyStream:
        """Return a reproducible stream. What is drawn from it is not private, and `is_secret` says so."""
        number = whole_number("seed", seed, minimum=0)
        return cls(HKDF(SHA256(), KEY_BYTES, None, b"hushgrad test key").derive(str(number).encode()), False)

    def fork(self, purpose: str) -> KeyStream:
        """Return an independent stream for a purpose ("noise", "sampling", a run, an attempt)."""
        self._require_own_process()
        self._require_own_start()
        derived = HKDF(SHA256(), KEY_BYTES, None, b"hushgrad fork: " + purpose.encode()).derive(self._key)
        return KeyStream(derived, self.is_secret)

    def fill(self, buffer: WritableBuffer, address: Address, offset: int = 0) -> None:
        """Overwrite `buffer` (C-contiguous, writable) with the bits at `address`, from byte `offset` on.

        Args:
            buffer: any writable buffer; a CPU tensor is passed as `tensor.numpy()`, which shares its memory.
            address: where the draw lies.
            offset: bytes into the draw, a multiple of 16.

        Raises:
            InvalidArgumentError: the buffer is read-only or not contiguous, or the offset is not a multiple of 16.
            ProtocolError: the stream was made in another process.
        """
        self._require_own_in_step(address.step)
        view = buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)
        if view.readonly or not view.c_contiguous:
            raise InvalidArgumentError(
                "must be writable and C-contiguous", where="buffer", cure="Pass a contiguous, writable copy"
            )
        if offset % BLOCK_BYTES or not 0 <= offset < 1 << 67:
            raise InvalidArgumentError(
                f"must be a non-negative multiple of {BLOCK_BYTES}, got {offset}",
                where="offset",
                cure="Round it down to such a multiple, and skip the bytes between",
            )
        if view.nbytes == 0:
            return
        view = view.cast("B")
        counter = struct.pack(">QQ", address.packed(), offset // BLOCK_BYTES)
        encryptor = Cipher(algorithms.AES(self._key), modes.CTR(counter)).encryptor()
        for start in range(0, len(view), len(_ZEROS)):
            part = view[start : start + len(_ZEROS)]
            encryptor.update_into(_ZEROS if len(part) == len(_ZEROS) else _ZEROS[: len(part)], part)

    def read(self, address: Address, count: int, offset: int = 0) -> bytearray:
        """Return `count` bytes at `address`, starting `offset` bytes into it (`offset` a multiple of 16)."""
        bits = bytearray(whole_number("count", count, minimum=0))
        self.fill(bits, address, offset)
        return bits

    def key(self, address: Address) -> bytearray:
        """Return the key, for compiled code that runs the cipher itself (`hushgrad.noise.aes`) at an address; a copy.

        Raises:
            ProtocolError: the stream was made in another process.
        """
        self._require_own_in_step(address.step)
        return bytearray(self._key)

    def _require_own_in_step(self, step: int) -> None:
        """Refuse another process; when this one began is looked at once for each step, since that is dear."""
        self._require_own_process()
        if step not in self._seen:
            self._require_own_start()
            self._seen.clear()
            self._seen.add(step)

    def _require_own_process(self) -> None:
        if self._process != this_process():
            raise ProtocolError(
                "a forked process would draw the same bits from it as its parent",
                where="KeyStream",
                cure="Make the stream, and the object that holds it, in the process that uses it",
            )

    def _require_own_start(self) -> None:
        if self._start != this_start():
            raise ProtocolError(
                "this process was restored from a checkpoint of another one, or forked by it, and would draw the same "
                "bits from it",
                where="KeyStream",
                cure="Start the program again, which draws a new key, and continue from its own checkpoint and ledger",
            )

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a KeyStream cannot be pickled or copied: noise drawn twice cancels exactly")

    def __copy__(self) -> NoReturn:
        raise TypeError("a KeyStream cannot be pickled or copied: noise drawn twice cancels exactly")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("a KeyStream cannot be pickled or copied: noise drawn twice cancels exactly")
