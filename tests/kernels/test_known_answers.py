"""The refusal that all known answers share."""

import pytest
import torch

from hushgrad.errors import KernelMismatchError
from hushgrad.kernels.known_answers import require_known_answer

DEVICE = torch.device("cuda", 1)


def test_a_kernel_that_gave_its_known_answer_passes():
    require_known_answer(True, "Gram", DEVICE)


def test_one_that_did_not_is_refused_with_its_device_and_the_cure():
    with pytest.raises(KernelMismatchError, match=r"the Gram kernel on cuda:1: .* HUSHGRAD_KERNELS=torch") as refusal:
        require_known_answer(False, "Gram", DEVICE)
    assert refusal.value.code == "DP408"
