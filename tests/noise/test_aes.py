"""The processor's AES gives the stream's bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.randomness import Address, KeyStream

numba = pytest.importorskip("numba", reason="compiled passes need numba: pip install 'hushgrad[fast]'")

from hushgrad.noise import aes  # noqa: E402 - needs numba

pytestmark = pytest.mark.skipif(not aes.LANES, reason="this processor has no AES instructions")

KEY = np.frombuffer(
    bytearray.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"), np.uint32
)  # of FIPS 197, A.3, and of SP 800-38A


def drawn(key, groups, address, position):
    bits = np.empty(groups * aes.GROUP_BYTES // 8, np.uint64)
    aes.fill(bits, aes.schedule(key), np.uint64(address), np.uint64(position))
    return bits.tobytes()


def test_the_round_keys_are_those_of_the_standard():
    """FIPS 197, A.3: words 8 to 11 and 56 to 59, repeated for each block of a vector."""
    keys = aes.schedule(KEY).reshape(15, aes.LANES // 2, 2)
    assert (keys == keys[:, :1]).all()
    assert keys[2, 0].tobytes().hex() == "9ba354118e6925afa51a8b5f2067fcde"
    assert keys[14, 0].tobytes().hex() == "fe4890d1e6188d0b046df344706c631e"


def test_the_blocks_are_those_of_the_standard():
    """SP 800-38A, F.5.5: the first four output blocks of CTR-AES256."""
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    bits = drawn(KEY, 1, int.from_bytes(counter[:8], "big"), int.from_bytes(counter[8:], "big"))
    assert bits[:64].hex() == (
        "0bdf7df1591716335e9a8b15c860c502"
        "5a6e699d536119065433863c8f657b94"
        "1bc12c9c01610d5d0d8bd6a3378eca62"
        "2956e1c8693536b1bee99c73a31576b6"
    )


@given(
    st.builds(Address, st.integers(0, 2**32 - 1), st.integers(0, 2**20 - 1), st.integers(0, 2**12 - 1)),
    st.integers(0, 2**62),
    st.integers(1, 4),
    st.integers(0, 100),
)
@settings(deadline=None)
def test_the_bits_are_those_of_the_stream(address, position, groups, seed):
    """Guarantee: the bits are those of `KeyStream.fill`. For any address, position, length and key."""
    stream = KeyStream.fixed_for_tests(seed)
    bits = drawn(np.frombuffer(stream.key(Address(3, 4)), np.uint32), groups, address.packed(), position)
    assert bits == stream.read(address, len(bits), offset=16 * position)


@pytest.mark.parametrize("lanes", [2, 4])
def test_narrower_instructions_give_the_same_bits(monkeypatch, lanes):
    if lanes > aes.LANES:
        pytest.skip(f"this processor has no AES instruction of {lanes} lanes")
    monkeypatch.setattr(aes, "LANES", lanes)
    monkeypatch.setattr(aes, "GROUP_BYTES", aes._AT_ONCE * lanes * 8)
    for name in ("schedule", "fill"):
        monkeypatch.setattr(aes, name, numba.njit(getattr(aes, f"_{name}")))
    stream = KeyStream.fixed_for_tests(lanes)
    bits = drawn(np.frombuffer(stream.key(Address(3, 4)), np.uint32), 5, Address(3, 4).packed(), 9)
    assert bits == stream.read(Address(3, 4), len(bits), offset=144)
