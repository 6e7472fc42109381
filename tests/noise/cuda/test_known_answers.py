"""A known draw before the first one on a device: without a kernel here, with it in the interpreter."""

import pytest
import torch

from hushgrad.errors import KernelMismatchError
from hushgrad.noise.cuda import definition, dispatch, known_answers
from hushgrad.noise.cuda.chacha import CipherKey
from hushgrad.randomness import Address, KeyStream

CPU = torch.device("cpu")
NOISE = {"noise_std": 1.5, "divisor": 3.0, "key": CipherKey.of(KeyStream.fixed_for_tests(1)), "address": Address(0)}


def test_noise_that_is_not_what_was_defined_raises_before_its_first_use(choose_kernels, monkeypatch):
    """Guarantee: a kernel that does not compute its definition on a device raises there before its first result is
    used.

    The definition itself is changed here after the known answer was computed by the true one: one bit of one value.
    """
    choose_kernels("torch")
    known_answers.noise.cache_clear()
    true, calls = definition.noisy_update, []

    def wrong_on_the_device(total, **arguments):
        calls.append(total)
        update = true(total, **arguments)
        if len(calls) == 2:  # the known answer is asked for first
            update.view(torch.int32)[1234] ^= 1
        return update

    monkeypatch.setattr(definition, "noisy_update", wrong_on_the_device)
    total = torch.zeros(10)
    with pytest.raises(KernelMismatchError, match="noise"):
        dispatch.noisy_update(total, overwrite=True, **NOISE)
    assert not total.any()
    known_answers.noise.cache_clear()


def test_the_known_draw_meets_the_remainder_and_the_tail_and_runs_once(monkeypatch):
    known_answers.noise.cache_clear()
    known_answers.noise(CPU, False)
    monkeypatch.setattr(definition, "noisy_update", None)  # not called again
    known_answers.noise(CPU, False)
    known_answers.noise.cache_clear()
    monkeypatch.undo()
    z = definition.standard_normal(
        known_answers.VALUES, device="cpu", key=CipherKey.of(KeyStream.fixed_for_tests(8439)), address=Address(3, 2, 1)
    )
    assert (z.abs() > 3.75).sum() >= 2
