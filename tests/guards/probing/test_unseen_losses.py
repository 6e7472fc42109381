"""Losses by code that torch runs outside of Python are told, and compiled criteria are what they were compiled from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine
from hushgrad.errors import CrossSampleLeakError

X, Y = torch.randn(16, 4), torch.tensor([0, 1, 2, 0] * 4)


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none")


def doubled_by_a_count(output: Tensor, target: Tensor) -> Tensor:
    losses = torch.nn.functional.cross_entropy(output, target, reduction="none")
    return losses * 2.0 if int((target == 0).sum()) > 5 else losses


def told(losses: Callable[..., Any], *, is_criterion: bool) -> set[str]:
    """Train on two batches, and return what is said of them."""
    torch.manual_seed(0)
    model, engine = nn.Linear(4, 3), PrivacyEngine()
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(list(zip(X, Y, strict=True)), batch_size=8),  # type: ignore[arg-type]
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    criterion = engine.per_example(losses) if is_criterion else None
    for x, y in loader:
        if criterion is not None:
            criterion(model(x), y).backward()
        else:
            engine.session.backward(losses(model(x), y))
        optimizer.step()
    return {condition.name for condition in engine.guarantee(1e-5).conditions} - {"no ledger path"}


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("is_criterion", [False, True], ids=["session", "per_example"])
@pytest.mark.parametrize("make", [cross_entropy, doubled_by_a_count], ids=["honest", "leaky"])
def test_what_a_script_computes_of_the_outputs_is_told(make: Callable[..., Tensor], is_criterion: bool) -> None:
    """A branch by a count stands in no graph, and nobody sees it: these batches do not show the leak."""
    assert told(torch.jit.script(make), is_criterion=is_criterion) == {"not examined"}


@pytest.mark.parametrize("is_criterion", [False, True], ids=["session", "per_example"])
@pytest.mark.parametrize("make", [cross_entropy, nn.CrossEntropyLoss(reduction="none")], ids=["function", "module"])
def test_a_compiled_criterion_is_examined_as_the_one_it_was_compiled_from(make: Any, is_criterion: bool) -> None:
    assert told(torch.compile(make, backend="eager"), is_criterion=is_criterion) == set()


@pytest.mark.parametrize("is_criterion", [False, True], ids=["session", "per_example"])
def test_a_compiled_criterion_that_mixes_is_refused(is_criterion: bool) -> None:
    def mixing(output: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(output, target) * output.detach().abs().mean()

    with pytest.raises(CrossSampleLeakError):
        told(torch.compile(mixing, backend="eager"), is_criterion=is_criterion)


def test_what_a_compiled_criterion_keeps_of_a_batch_is_refused() -> None:
    kept = {"scale": 1.0}

    def scaled(output: Tensor, target: Tensor) -> Tensor:
        losses = cross_entropy(output, target) * kept["scale"]
        kept["scale"] = float(losses.detach().max())
        return losses

    with pytest.raises(CrossSampleLeakError):
        told(torch.compile(scaled, backend="eager"), is_criterion=True)
