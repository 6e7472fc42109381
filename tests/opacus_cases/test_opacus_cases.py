"""Opacus' own cases for per-example gradients of layers, run against this library through a thin shim.

Its tests compare what it computes with one example at a time. Here the same models and inputs are compared with the
same reference, with this library in the place of Opacus; its three modes are one here.
"""

from __future__ import annotations

import importlib
import pkgutil
import unittest
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.errors import PrivacyUnitError
from hushgrad.gradients.combine import combine

settings.register_profile(
    "opacus cases", max_examples=12, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("opacus cases")  # Opacus' own settings are made from the profile that is loaded at its import

import opacus.tests.grad_samples as cases  # noqa: E402
from opacus.layers import DPLSTM  # noqa: E402
from opacus.tests.grad_samples.common import GradSampleHooks_test  # noqa: E402
from opacus.tests.grad_samples.dp_rnn_test import DPRNNAdapter  # noqa: E402
from opacus.utils.per_sample_gradients_utils import (  # noqa: E402
    ModelWithLoss,
    clone_module,
    compute_microbatch_grad_sample,
    is_batch_empty,
    unpack_packedsequences,
)

settings.load_profile("default")

TORCHS_OWN = {"DPRNN": nn.RNN, "DPGRU": nn.GRU, "DPLSTM": nn.LSTM}


def torchs_own(adapter: nn.Module) -> nn.Module:
    """Put torch's own recurrent layer in the place of Opacus' replacement.

    The exception to Opacus' expectations: on packed sequences its replacements cut the rows by their place in the
    packed order, which the lengths of other records decide, so a record's treatment would depend on others. That is
    refused here. torch's own layers, for which the replacements stand in, take packed sequences.
    """
    old = adapter.dp_rnn
    new = TORCHS_OWN[type(old).__name__](
        old.input_size,
        old.hidden_size,
        num_layers=old.num_layers,
        bias=old.bias,
        batch_first=old.batch_first,
        bidirectional=old.bidirectional,
    )
    new.load_state_dict(old.state_dict())
    adapter.dp_rnn = new
    return adapter


# Not about per-example gradients of a module.
NOT_OURS = {"TestComputeEmbeddingNormSample": "calls a function of Opacus' own that gives norms from activations"}


class BatchFirst(nn.Module):
    """A module that has time first, on inputs with the batch first, where this library looks for it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module(x.transpose(0, 1))


def gradients(module: nn.Module, x: Any, count: int, *, is_batch_first: bool, reduction: str) -> dict[str, Tensor]:
    """Per-example gradients `[B, *shape]` as a session sees them, from the reduced loss of the batch."""
    module = clone_module(module)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    is_tensor = isinstance(x, Tensor)
    if is_tensor and not is_batch_first:
        module, x = BatchFirst(module), x.transpose(0, 1)
    pool = UsePool()
    pool.batch_size = count
    model = ModelWithLoss(module, reduction)
    owners = {name: names[id(parameter)] for name, parameter in model.named_parameters()}
    scope = Scope(model, pool)
    try:
        model(x).backward()
    finally:
        scope.detach()
    assert all(parameter.grad is None for parameter in model.parameters())
    scale = count if reduction == "mean" else 1
    return {owners[name]: combine(parts).per_example() * scale for name, parts in pool.take().items()}


def test_opacus_own_layers_on_packed_sequences_of_other_lengths_are_refused() -> None:
    layer = DPRNNAdapter(DPLSTM(4, 3))
    x = nn.utils.rnn.pack_sequence([torch.randn(n, 4) for n in (1, 3, 2)], enforce_sorted=False)
    with pytest.raises(PrivacyUnitError):
        gradients(layer, x, 3, is_batch_first=True, reduction="sum")


def run_test(
    self: GradSampleHooks_test,
    x: Any,
    module: nn.Module,
    batch_first: bool = True,
    atol: float = 10e-6,
    rtol: float = 10e-5,
    ew_compatible: bool = True,
    chunk_method: Callable[[Any], Iterator[Any]] = iter,
) -> None:
    """Take the place of Opacus' method of the same name."""
    if not isinstance(x, PackedSequence) and is_batch_empty(x):
        return  # an empty draw never reaches the model: see the tests of the session
    alone = x
    if isinstance(x, PackedSequence):
        alone, module = unpack_packedsequences(x), torchs_own(module)
    for reduction in ("sum", "mean"):
        expected = compute_microbatch_grad_sample(
            alone, module, batch_first=batch_first, loss_reduction=reduction, chunk_method=chunk_method
        )
        count = next(iter(expected.values())).shape[0]
        found = gradients(module, x, count, is_batch_first=batch_first, reduction=reduction)
        assert set(found) == set(expected)
        found = {name: value.reshape(expected[name].shape) for name, value in found.items()}
        self.check_values(expected, found, reduction, atol, rtol)


def cases_of_opacus() -> list[Any]:
    found = []
    for entry in pkgutil.iter_modules(cases.__path__):
        if entry.name == "common":
            continue
        module = importlib.import_module(f"{cases.__name__}.{entry.name}")
        for kind in vars(module).values():
            if (
                not isinstance(kind, type)
                or not issubclass(kind, unittest.TestCase)
                or kind.__module__ != module.__name__
            ):
                continue
            for name in unittest.defaultTestLoader.getTestCaseNames(kind):
                marks = [pytest.mark.skip(reason=NOT_OURS[kind.__name__])] if kind.__name__ in NOT_OURS else []
                found.append(pytest.param(kind, name, id=f"{entry.name}-{name}", marks=marks))
    return found


settings.load_profile("opacus cases")
FOUND = cases_of_opacus()
settings.load_profile("default")


def test_the_cases_of_opacus_were_found() -> None:
    assert len(FOUND) >= 20


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("kind", "name"), FOUND)
def test_a_case_of_opacus_passes(kind: type[GradSampleHooks_test], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GradSampleHooks_test, "run_test", run_test)
    result = unittest.TestResult()
    kind(name).run(result)
    assert result.testsRun == 1
    problems = [text for _, text in [*result.failures, *result.errors]]
    assert not problems, problems[0]
