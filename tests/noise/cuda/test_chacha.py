"""The cipher against RFC 8439 and the `cryptography` package, and its key against everything else that is drawn."""

import copy
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.errors import ProtocolError
from hushgrad.noise.cuda.chacha import CipherKey, chacha20, signed
from hushgrad.randomness import Address, KeyStream

WORDS = st.integers(0, 2**32 - 1)


def reference(key, counter, nonce, blocks=1):
    """Return the words of consecutive blocks by the `cryptography` package, `[16, blocks]`."""
    cipher = Cipher(algorithms.ChaCha20(struct.pack("<8I", *key), struct.pack("<4I", counter, *nonce)), mode=None)
    return np.frombuffer(cipher.encryptor().update(bytes(64 * blocks)), "<i4").reshape(blocks, 16).T


def ours(key, counters, nonce):
    counter = torch.tensor([signed(word) for word in counters], dtype=torch.int32)
    return chacha20(CipherKey(tuple(signed(word) for word in key)), counter, tuple(signed(word) for word in nonce))


def test_the_block_of_rfc_8439_section_2_3_2():
    """Guarantee: blocks are those of RFC 8439 (ChaCha20 with a 32-bit counter and a 96-bit nonce)."""
    key = struct.unpack("<8I", bytes(range(32)))
    block = ours(key, [1], (0x09000000, 0x4A000000, 0x00000000))
    expected = """
        e4e7f110 15593bd1 1fdd0f50 c47120a3 c7f4d1c7 0368c033 9aaa2204 4e6cd4c3
        466482d2 09aa9f07 05d7c214 a2028bd9 d19c12b5 b94e16de e883d0cb 4e3c50a2
    """
    assert [word & 0xFFFFFFFF for word in block[:, 0].tolist()] == [int(word, 16) for word in expected.split()]


@given(st.lists(WORDS, min_size=8, max_size=8), st.integers(0, 2**32 - 9), st.tuples(WORDS, WORDS, WORDS))
@settings(deadline=None, max_examples=60)
def test_every_block_is_that_of_the_cryptography_package(key, counter, nonce):
    """Guarantee: blocks are those of RFC 8439 (ChaCha20 with a 32-bit counter and a 96-bit nonce)."""
    blocks = ours(key, range(counter, counter + 5), nonce)
    assert np.array_equal(blocks.numpy(), reference(key, counter, nonce, 5))


def test_the_first_word_of_the_nonce_may_differ_from_block_to_block():
    key, firsts = tuple(range(100, 108)), [0, 16, 2**31 - 1]
    blocks = chacha20(
        CipherKey(key), torch.full((3,), 7, dtype=torch.int32), (torch.tensor(firsts, dtype=torch.int32), 3, 4)
    )
    for place, first in enumerate(firsts):
        assert np.array_equal(blocks[:, place : place + 1].numpy(), reference(key, 7, (first, 3, 4)))


def test_the_key_belongs_to_the_stream_and_is_none_of_its_bits():
    stream = KeyStream.fixed_for_tests(4)
    key = struct.pack("<8i", *CipherKey.of(stream).words)
    assert key == struct.pack("<8i", *CipherKey.of(stream).words)
    assert key != struct.pack("<8i", *CipherKey.of(KeyStream.fixed_for_tests(5)).words)
    assert key != stream._key
    assert key not in bytes(stream.read(Address(0), 1 << 16))


def test_a_forked_process_gets_no_key():
    stream = KeyStream(bytes(32), False, (os.getpid() + 1, 0))
    with pytest.raises(ProtocolError):
        CipherKey.of(stream)


def test_a_key_is_not_shown_and_not_copied():
    key = CipherKey.of(KeyStream.fixed_for_tests(4))
    assert not any(str(word) in repr(key) for word in key.words)
    for copying in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be pickled"):
            copying(key)
