"""The keyed stream: disjoint addresses, no copies, no key in sight."""

import copy
import multiprocessing
import os
import pickle
import random
from functools import partial

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from hushgrad.errors import InvalidArgumentError, ProtocolError
from hushgrad.randomness import Address, KeyStream

addresses = st.builds(
    Address,
    step=st.integers(0, 2**32 - 1),
    item=st.integers(0, 2**20 - 1),
    shard=st.integers(0, 2**12 - 1),
)


@given(addresses, addresses)
def test_different_addresses_give_different_counters(one, other):
    """Draws at different addresses never share a block of the cipher.

    Guarantee: draws at different addresses never share a block of the cipher.
    """
    assert (one.packed() == other.packed()) == (one == other)
    assert 0 <= one.packed() < 2**64


@pytest.mark.parametrize(
    "coordinates", [{"step": -1}, {"step": 2**32}, {"step": 0, "item": 2**20}, {"step": 0, "shard": 2**12}]
)
def test_an_address_out_of_range_is_refused(coordinates):
    with pytest.raises(InvalidArgumentError):
        Address(**coordinates)


@pytest.mark.parametrize("step", [True, 1.0, "1"])
def test_an_address_is_made_of_whole_numbers(step):
    with pytest.raises(InvalidArgumentError):
        Address(step)


def test_the_bits_are_aes_256_in_counter_mode():
    stream = KeyStream(bytes(range(32)), True)
    counter = (7).to_bytes(4, "big") + (3 << 12 | 5).to_bytes(4, "big") + (2).to_bytes(8, "big")
    expected = Cipher(algorithms.AES(bytes(range(32))), modes.CTR(counter)).encryptor().update(bytes(100))
    assert stream.read(Address(7, 3, 5), 100, offset=32) == expected


@given(st.integers(0, 200), st.integers(0, 20))
def test_a_draw_read_from_an_offset_is_a_part_of_the_whole_draw(count, blocks):
    stream = KeyStream.fixed_for_tests(0)
    whole = stream.read(Address(1), 16 * blocks + count)
    assert stream.read(Address(1), count, offset=16 * blocks) == whole[16 * blocks :]


def test_a_draw_longer_than_the_block_of_zeros_is_one_stream():
    stream = KeyStream.fixed_for_tests(0)
    whole = stream.read(Address(1), 700_001)
    assert stream.read(Address(1), 700_001 - 262_160, offset=262_160) == whole[262_160:]


def test_fill_overwrites_whatever_the_buffer_held():
    stream = KeyStream.fixed_for_tests(0)
    numbers, tensor = np.full(1000, 7, dtype=np.uint32), torch.full((1000,), 9, dtype=torch.int32)
    stream.fill(numbers, Address(2))
    stream.fill(tensor.numpy(), Address(2))
    assert numbers.tobytes() == tensor.numpy().tobytes() == stream.read(Address(2), 4000)


@pytest.mark.parametrize("buffer", [memoryview(b"read only"), np.zeros((4, 4), dtype=np.uint8)[:, 1]])
def test_a_buffer_that_cannot_be_filled_is_refused(buffer):
    with pytest.raises(InvalidArgumentError, match="contiguous"):
        KeyStream.fixed_for_tests(0).fill(buffer, Address(0))


@pytest.mark.parametrize("offset", [1, -16, 2**68])
def test_a_wrong_offset_is_refused(offset):
    with pytest.raises(InvalidArgumentError, match="offset"):
        KeyStream.fixed_for_tests(0).read(Address(0), 16, offset=offset)


def test_forks_for_different_purposes_are_different_streams():
    """Forks for different purposes have unrelated keys."""
    stream = KeyStream.fixed_for_tests(0)
    draws = {bytes(s.read(Address(0), 32)) for s in (stream, stream.fork("noise"), stream.fork("sampling"))}
    assert len(draws) == 3
    assert stream.fork("noise").read(Address(0), 32) == stream.fork("noise").read(Address(0), 32)


def test_a_fixed_stream_and_its_forks_say_that_they_are_not_secret():
    assert not KeyStream.fixed_for_tests(0).fork("noise").is_secret
    assert KeyStream.from_operating_system().fork("noise").is_secret


def test_streams_of_the_operating_system_are_unrelated_whatever_the_seeds():
    """Equal by chance with probability 2**-256."""
    draws = []
    for _ in range(2):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        draws.append(KeyStream.from_operating_system().read(Address(0), 32))
    assert draws[0] != draws[1]


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_stream_cannot_be_pickled_or_copied(duplicate):
    """A stream cannot be pickled, copied or drawn from in a forked process."""
    with pytest.raises(TypeError, match="noise drawn twice cancels"):
        duplicate(KeyStream.fixed_for_tests(0))


def test_the_key_is_not_in_the_repr():
    stream = KeyStream.from_operating_system()
    assert repr(stream) == "KeyStream(is_secret=True)"


def test_equality_does_not_compare_keys():
    assert KeyStream(bytes(32), True) != KeyStream(bytes(32), True)


def test_the_key_is_handed_out_as_a_copy():
    stream = KeyStream.fixed_for_tests(0)
    before = stream.read(Address(0), 32)
    stream.key(Address(0))[:] = bytes(32)
    assert stream.read(Address(0), 32) == before


def _draw_in_child(draw, queue):
    try:
        queue.put(bytes(draw()))
    except ProtocolError as error:
        queue.put(str(error))


@pytest.mark.parametrize("draw", [lambda stream: stream.read(Address(0), 4), lambda stream: stream.key(Address(0))])
def test_a_forked_process_cannot_draw_from_its_parents_stream(draw):
    """A stream cannot be pickled, copied or drawn from in a forked process."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_draw_in_child, args=(partial(draw, KeyStream.fixed_for_tests(0)), queue))
    child.start()
    answer = queue.get()
    child.join()
    assert "forked process" in answer


def test_a_forked_process_with_its_parents_id_cannot_draw_either(monkeypatch):
    """Process 1 of a container may fork into a namespace of its own, where its child is process 1, too."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    stream = KeyStream.fixed_for_tests(0)
    child = os.fork()
    if child == 0:
        try:
            stream.read(Address(0), 4)
        except ProtocolError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert len(stream.read(Address(0), 4)) == 4


@pytest.mark.statistical
def test_bits_are_balanced_and_uncorrelated_between_neighbouring_addresses():
    """Each of 3·64 binomial counts within 6 standard deviations; false alarm below 4e-7."""
    stream = KeyStream.fixed_for_tests(3)
    n = 1 << 16
    words = {
        address: np.frombuffer(stream.read(address, 8 * n), dtype=np.uint64)
        for address in (Address(0), Address(1), Address(0, 1))
    }
    first, next_step, next_item = words.values()
    for mixed in (first, first ^ next_step, first ^ next_item):
        ones = np.array([int(((mixed >> np.uint64(bit)) & np.uint64(1)).sum()) for bit in range(64)])
        assert (np.abs(ones - n / 2) < 6 * np.sqrt(n) / 2).all()
