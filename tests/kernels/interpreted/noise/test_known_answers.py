"""What is run once on every device before noise is first drawn there, and through it the dispatch to the kernel."""

import pytest
import torch

from hushgrad.errors import KernelMismatchError
from hushgrad.noise.cuda import definition, dispatch, kernel, known_answers
from hushgrad.noise.cuda.chacha import CipherKey
from hushgrad.randomness import Address, KeyStream

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _few_values_and_forget(monkeypatch):
    monkeypatch.setattr(known_answers, "VALUES", 1024)
    known_answers.noise.cache_clear()


def test_the_true_kernel_passes_and_is_tested_once(monkeypatch):
    known_answers.noise(CPU, True)
    monkeypatch.setattr(kernel, "noisy_update", None)
    known_answers.noise(CPU, True)


def test_noise_with_one_wrong_bit_raises(monkeypatch):
    true = kernel.noisy_update

    def wrong(total, **arguments):
        update = true(total, **arguments)
        update.view(torch.int32)[1000] ^= 1
        return update

    monkeypatch.setattr(kernel, "noisy_update", wrong)
    with pytest.raises(KernelMismatchError, match="noise"):
        known_answers.noise(CPU, True)


def test_the_dispatch_hands_totals_to_the_kernel(monkeypatch):
    noise = {"noise_std": 1.5, "divisor": 3.0, "key": CipherKey.of(KeyStream.fixed_for_tests(1)), "address": Address(0)}
    used = []
    true = kernel.noisy_update
    monkeypatch.setattr(kernel, "noisy_update", lambda total, **options: used.append(0) or true(total, **options))
    total = torch.randn(700)
    assert torch.equal(dispatch.noisy_update(total, **noise), definition.noisy_update(total, **noise))
    assert len(used) == 2
