"""What is run once on every device before a kernel's first use there, and through it the dispatch to kernels."""

import pytest
import torch

from hushgrad.errors import KernelMismatchError
from hushgrad.gradients.cuda import gram as gram_triton
from hushgrad.gradients.cuda import instantiate as instantiate_triton
from hushgrad.kernels import available as dispatch
from hushgrad.kernels import known_answers as self_test
from hushgrad.noise.cuda import definition as draws
from hushgrad.noise.cuda import kernel as draws_triton
from hushgrad.noise.cuda.chacha import CipherKey
from hushgrad.randomness import Address, KeyStream

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _forget():
    for check in (self_test.noise, self_test.gram, self_test.instantiate):
        check.cache_clear()


def test_true_kernels_pass_and_are_tested_once(monkeypatch):
    monkeypatch.setattr(self_test, "VALUES", 1024)
    self_test.noise(CPU, True)
    for dtype in DTYPES:
        self_test.gram(CPU, dtype)
        self_test.instantiate(CPU, dtype)
    monkeypatch.setattr(gram_triton, "norms", None)
    self_test.gram(CPU, torch.float32)


def changed(kernel, place):
    """Return the kernel with one number of its result, of those at `place`, off by one part in 10,000."""

    def norms(*operands, **options):
        results = kernel(*operands, **options)
        if results[place] is not None:
            results[place].view(-1)[0] *= 1.0001
        return results

    return norms


@pytest.mark.parametrize(
    ("module", "check"), [(gram_triton, self_test.gram), (instantiate_triton, self_test.instantiate)]
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_kernel_with_one_wrong_number_raises_before_its_first_result_is_used(module, check, place, monkeypatch):
    """Guarantee: a kernel that does not compute its definition on a device raises there before its first result is
    used.
    """
    monkeypatch.setattr(module, "norms", changed(module.norms, place))
    with pytest.raises(KernelMismatchError):
        check(CPU, torch.float32)


def test_noise_with_one_wrong_bit_raises(monkeypatch):
    monkeypatch.setattr(self_test, "VALUES", 1024)
    true = draws_triton.noisy_update

    def wrong(total, **arguments):
        update = true(total, **arguments)
        update.view(torch.int32)[1000] ^= 1
        return update

    monkeypatch.setattr(draws_triton, "noisy_update", wrong)
    with pytest.raises(KernelMismatchError, match="noise"):
        self_test.noise(CPU, True)


def test_the_dispatch_hands_operands_to_the_kernels(monkeypatch):
    monkeypatch.setattr(self_test, "VALUES", 1024)
    left, right = torch.randn(2, 20, 3), torch.randn(2, 20, 4)
    assert torch.equal(dispatch.gram_norms(left, right)[0], gram_triton.norms(left, right)[0])
    norms_B, gradients = dispatch.instantiated_norms(left, right, keep=True)
    assert torch.allclose(gradients, torch.bmm(left.mT, right), atol=1e-5)
    assert torch.equal(norms_B, dispatch.instantiated_norms(left, right, keep=False)[0])
    noise = {"noise_std": 1.5, "divisor": 3.0, "key": CipherKey.of(KeyStream.fixed_for_tests(1)), "address": Address(0)}
    used = []
    true = draws_triton.noisy_update
    monkeypatch.setattr(draws_triton, "noisy_update", lambda total, **options: used.append(0) or true(total, **options))
    total = torch.randn(700)
    assert torch.equal(dispatch.noisy_update(total, **noise), draws.noisy_update(total, **noise))
    assert len(used) == 2
