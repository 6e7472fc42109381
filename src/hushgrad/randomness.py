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
from typing import ClassVar

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hushgrad.errors import InvalidArgumentError

KEY_BYTES = 32
BLOCK_BYTES = 16


@dataclass(frozen=True, slots=True)
class Address:
    """Where in a stream a draw lies: a step, an item of that step (a parameter, say) and a shard of that item."""

    step: int
    item: int = 0
    shard: int = 0

    _LIMITS: ClassVar[dict[str, int]] = {"step": 1 << 32, "item": 1 << 20, "shard": 1 << 12}

    def __post_init__(self) -> None:
        for name, limit in self._LIMITS.items():
            if not 0 <= getattr(self, name) < limit:
                raise InvalidArgumentError(f"{name} of an address must be in [0, {limit}), got {getattr(self, name)}")

    def packed(self) -> int:
        """Return the address as one 64-bit number; different addresses give different numbers."""
        return self.step << 32 | self.item << 12 | self.shard


@dataclass(frozen=True, slots=True)
class KeyStream:
    """A stream of uniform random bits under a secret key.

    Guarantee: draws at different addresses, or from forks for different purposes, never share a block of the cipher.
    """

    _key: bytes = field(repr=False)
    is_secret: bool

    @classmethod
    def from_operating_system(cls) -> KeyStream:
        """Return a stream under a fresh key from the operating system's entropy."""
        return cls(os.urandom(KEY_BYTES), True)

    @classmethod
    def fixed_for_tests(cls, seed: int) -> KeyStream:
        """Return a reproducible stream. What is drawn from it is not private, and `is_secret` says so."""
        return cls(HKDF(SHA256(), KEY_BYTES, None, b"hushgrad test key").derive(str(int(seed)).encode()), False)

    def fork(self, purpose: str) -> KeyStream:
        """Return an independent stream for a purpose ("noise", "sampling", a run, an attempt)."""
        derived = HKDF(SHA256(), KEY_BYTES, None, b"hushgrad fork: " + purpose.encode()).derive(self._key)
        return KeyStream(derived, self.is_secret)

    def read(self, address: Address, count: int, offset: int = 0) -> bytearray:
        """Return `count` bytes at `address`, starting `offset` bytes into it (`offset` a multiple of 16)."""
        if offset % BLOCK_BYTES or offset < 0 or count < 0:
            raise InvalidArgumentError(f"offset must be a non-negative multiple of {BLOCK_BYTES}, got {offset}")
        counter = struct.pack(">QQ", address.packed(), offset // BLOCK_BYTES)
        encryptor = Cipher(algorithms.AES(self._key), modes.CTR(counter)).encryptor()
        bits = bytearray(count)
        encryptor.update_into(bytes(count), bits)
        return bits

    def __reduce__(self) -> str:
        raise TypeError("a KeyStream cannot be pickled or copied: noise drawn twice cancels exactly")

    def __deepcopy__(self, memo: object) -> KeyStream:
        raise TypeError("a KeyStream cannot be pickled or copied: noise drawn twice cancels exactly")
