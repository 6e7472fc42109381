"""What is run once on every device before norms are first taken there, and through it the dispatch to kernels."""

import pytest
import torch

from hushgrad.errors import KernelMismatchError
from hushgrad.gradients.cuda import dispatch, gram, instantiate, known_answers

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _forget():
    for check in (known_answers.gram, known_answers.instantiate):
        check.cache_clear()


def test_true_kernels_pass_and_are_tested_once(monkeypatch):
    for dtype in DTYPES:
        known_answers.gram(CPU, dtype)
        known_answers.instantiate(CPU, dtype)
    monkeypatch.setattr(gram, "norms", None)
    monkeypatch.setattr(instantiate, "norms", None)
    known_answers.gram(CPU, torch.float32)
    known_answers.instantiate(CPU, torch.float32)


def changed(kernel, place):
    """Return the kernel with one number of its result, of those at `place`, off by one part in 10,000."""

    def norms(*operands, **options):
        results = kernel(*operands, **options)
        changed = results[place] if isinstance(results, tuple) else results
        if changed is not None:
            changed.view(-1)[0] *= 1.0001
        return results

    return norms


def kept(left, right):
    return dispatch.instantiated_norms(left, right, keep=True)


def not_kept(left, right):
    return dispatch.instantiated_norms(left, right, keep=False)


@pytest.mark.parametrize(
    ("module", "used"), [(gram, dispatch.gram_norms), (instantiate, kept), (instantiate, not_kept)]
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_kernel_with_one_wrong_number_raises_before_its_first_result_is_used(module, used, place, monkeypatch):
    """Guarantee: a kernel that does not compute its definition on a device raises there before its first result is
    used.
    """
    monkeypatch.setattr(module, "norms", changed(module.norms, place))
    with pytest.raises(KernelMismatchError):
        used(torch.randn(2, 20, 3), torch.randn(2, 20, 4))


def test_the_dispatch_hands_operands_to_the_kernels():
    left, right = torch.randn(2, 20, 3), torch.randn(2, 20, 4)
    assert torch.equal(dispatch.gram_norms(left, right), gram.norms(left, right))
    norms_B, gradients = dispatch.instantiated_norms(left, right, keep=True)
    assert torch.allclose(gradients, torch.bmm(left.mT, right), atol=1e-5)
    assert torch.equal(norms_B, dispatch.instantiated_norms(left, right, keep=False)[0])
