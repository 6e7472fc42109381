"""The captured gradient of one example is the gradient that this example gives alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch.nn.functional as F
from first_forwards import BATCH, CLASSES, Body, attached, data
from torch import Tensor, nn

from hushgrad.errors import CrossSampleLeakError, HushgradError


@pytest.mark.parametrize("when", ["forward", "backward", "step"])
def test_parameters_frozen_for_a_while_are_examined_when_they_come_back(when: str) -> None:
    model = Body()
    engine, optimizer, loader = attached(model, data(4 * BATCH))
    calls = []
    for place, (x, y) in enumerate(loader):
        model.first.requires_grad_(not (place == 0 and when == "forward"))
        out = model(x)
        model.first.requires_grad_(not (place == 0 and when == "backward"))
        engine.session.backward(F.cross_entropy(out, y, reduction="none"))
        model.first.requires_grad_(not (place == 0 and when == "step"))
        optimizer.step()
        model.first.requires_grad_(True)
        calls.append(engine.session.probe_report.calls)
    assert calls == ([1, 2, 2, 2] if when == "forward" else [1, 1, 1, 1])


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_a_gradient_that_mixes_is_found_when_its_parameters_come_back() -> None:
    class Mixing(Body):
        def __init__(self) -> None:
            super().__init__()
            self.first.register_full_backward_pre_hook(lambda module, outer: (outer[0] / outer[0].norm(),))

    model = Mixing()
    engine, optimizer, loader = attached(model, data())
    for place, (x, y) in enumerate(loader):
        model.first.requires_grad_(place > 0)
        F.cross_entropy(model(x), y).backward()
        if place == 0:
            optimizer.step()
        else:
            with pytest.raises(HushgradError):
                optimizer.step()
            break
    assert engine.session.steps == 1


class Losing(Body):
    """Returns its loss: a mean of one loss for each example, or over all that is not left out."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        kept = (x[:, :CLASSES] > 0).float()
        found = super().forward(x).square() * kept
        return (found.sum(1) / kept.sum(1).clamp(min=1)).mean() if self.mean else found.sum() / kept.sum()


@pytest.mark.parametrize("mean", [True, False])
def test_a_loss_that_the_model_returns_is_the_mean_of_one_for_each_example_or_it_is_refused(mean: bool) -> None:
    model = Losing(mean)
    engine, optimizer, loader = attached(model, data())
    x, _ = next(iter(loader))
    model(x).backward()
    if mean:
        optimizer.step()
        assert engine.session.steps == 1
    else:
        with pytest.raises(CrossSampleLeakError, match="not the mean of one loss for each example"):
            optimizer.step()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("mixes", [True, False])
def test_a_gradient_that_depends_on_other_examples_is_refused_and_one_that_is_scaled_within_one_is_not(
    mixes: bool,
) -> None:
    model = Body()

    def scaled(module: nn.Module, outer: Any) -> Any:
        (gradient,) = outer
        return (gradient / (gradient.norm() if mixes else 2),)

    model.first.register_full_backward_pre_hook(scaled)
    engine, optimizer, loader = attached(model, data())
    x, y = next(iter(loader))
    F.cross_entropy(model(x), y).backward()
    if mixes:
        with pytest.raises(HushgradError):
            optimizer.step()
    else:
        optimizer.step()
        assert engine.session.steps == 1


SMALL_ONLY: dict[str, Any] = {
    "less their mean": lambda g: g - g.mean(0, keepdim=True) * (g.abs().max() < 0.05),
    "the largest of all": lambda g: g.sign() * g.abs().max() if g.abs().max() < 0.05 else g,
}


@pytest.mark.parametrize("name", SMALL_ONLY)
def test_a_hook_on_the_output_that_mixes_small_gradients_only_is_found_before_there_are_any(name: str) -> None:
    class Hooked(Body):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            if out.requires_grad:
                out.register_hook(SMALL_ONLY[name])
            return out

    model = Hooked()
    engine, optimizer, loader = attached(model, data())
    x, y = next(iter(loader))
    losses = F.cross_entropy(model(x), y, reduction="none")
    assert float((losses.detach().neg().exp() - 1).abs().max()) > 0.05  # the gradients of these losses are large
    with pytest.raises(CrossSampleLeakError):  # noqa: PT012 - in the backward, or where the batch is examined
        engine.session.backward(losses)
        optimizer.step()


def test_a_hook_on_the_output_that_scales_each_gradient_by_itself_trains() -> None:
    class Hooked(Body):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            if out.requires_grad:
                out.register_hook(lambda g: g / g.norm(dim=1, keepdim=True).clamp(min=1.0))
            return out

    model = Hooked()
    engine, optimizer, loader = attached(model, data())
    x, y = next(iter(loader))
    engine.session.backward(F.cross_entropy(model(x), y, reduction="none"))
    optimizer.step()
    assert engine.session.steps == 1
