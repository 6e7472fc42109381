"""A gradient by an input, asked for with a graph, is exact and can be differentiated for each example (WGAN-GP)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hushgrad import DPSGD, FlatClipping, PoissonSampling, privatize
from hushgrad.errors import UncoveredParameterUseError
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time

B = 5
CLIP = FlatClipping(0.7)


def critic(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def slope(model: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return found


def losses(model: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """WGAN-GP, one loss for each pair; a third of the way from one to the other."""
    norm = slope(model, real + (fake - real) / 3).flatten(1).norm(2, 1)
    return model(fake).flatten(1).sum(1) - model(real).flatten(1).sum(1) + 10 * (norm - 1) ** 2


CRITICS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: critic(nn.Linear(4, 6), nn.LeakyReLU(0.2), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)), (4,)),
    "over positions": (lambda: critic(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 1)), (3, 4)),
    "convolutions": (
        lambda: critic(
            nn.Conv2d(2, 4, 4, stride=3, groups=2), nn.SiLU(), nn.Conv2d(4, 3, 2, bias=False), nn.Flatten(),
            nn.Linear(3, 1),
        ),
        (2, 9, 9),
    ),
    "dilated, padded": (
        lambda: critic(
            nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=2), nn.Softplus(), nn.Flatten(), nn.Linear(16, 1)
        ),
        (2, 8),
    ),
    "transposed": (
        lambda: critic(
            nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(300, 1)
        ),
        (2, 4, 4),
    ),
    "layer normalisation": (lambda: critic(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 1)), (4,)),
    "layer normalisation over positions": (
        lambda: critic(nn.Linear(4, 6), nn.LayerNorm((3, 6)), nn.SiLU(), nn.Linear(6, 1)),
        (3, 4),
    ),
    "group normalisation": (
        lambda: critic(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(16, 1)),
        (2, 4, 4),
    ),
    "instance normalisation": (
        lambda: critic(
            nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4, affine=True), nn.SiLU(), nn.Flatten(), nn.Linear(24, 1)
        ),
        (2, 8),
    ),
    "elementwise parameters": (lambda: critic(nn.Linear(4, 6), nn.RMSNorm(6), nn.PReLU(), nn.Linear(6, 1)), (4,)),
    "weight normalisation": (
        lambda: critic(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 1)),
        (4,),
    ),
    "a frozen layer": (
        lambda: critic(nn.Linear(4, 6).requires_grad_(False), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)),
        (4,),
    ),
}  # fmt: skip


def session_of(model: nn.Module) -> tuple[Any, Any]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    mechanism = DPSGD(
        noise_multiplier=0.0,
        clipping=CLIP,
        sampling=PoissonSampling(0.5),
        expected_batch_size=B,
        loss_reduction="sum",
    )
    return optimizer, privatize(model, optimizer, mechanism)


def updates_of(model: nn.Module, program: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer, session = session_of(model)
    session.backward(program(model))
    optimizer.step()
    session.close()
    return {name: before[name] - p.detach() for name, p in model.named_parameters() if p.requires_grad}


def distance(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    apart = sum(float((one[name] - two[name]).double().square().sum()) for name in two)
    return float((apart / sum(float(part.double().square().sum()) for part in two.values())) ** 0.5)


@pytest.mark.parametrize("name", CRITICS)
def test_a_gradient_penalty_is_that_of_one_example_at_a_time(name: str) -> None:
    torch.manual_seed(0)
    make, shape = CRITICS[name]
    model, real, fake = make(), torch.randn(B, *shape), torch.randn(B, *shape)
    plain = copy.deepcopy(model)
    alone = one_at_a_time(plain, [lambda i=i: losses(plain, real[i : i + 1], fake[i : i + 1]).sum() for i in range(B)])
    found = updates_of(model, lambda model: losses(model, real, fake))
    assert distance(found, clipped_sum_of(alone, CLIP)) < 1e-5


def third(model: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    (one,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    (two,) = torch.autograd.grad(one.square().sum(), x, create_graph=True)
    return 1e4 * two.square().sum(1)


def of_activation(model: nn.Module, x: Tensor) -> Tensor:
    h = model[:2](x)
    (found,) = torch.autograd.grad(model[2:](h).sum(), h, create_graph=True)
    return found.square().sum(1)


def twice(model: nn.Module, x: Tensor) -> Tensor:
    return slope(model, x).square().sum(1) + slope(model, 2 * x).abs().sum(1)


@pytest.mark.parametrize("program", [third, of_activation, twice], ids=lambda program: program.__name__)
def test_so_are_gradients_of_gradients_of_gradients_of_activations_and_of_several_inputs(program: Any) -> None:
    torch.manual_seed(0)
    model, x = critic(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)), torch.randn(B, 4)
    plain = copy.deepcopy(model)
    alone = one_at_a_time(plain, [lambda i=i: program(plain, x[i : i + 1]).sum() for i in range(B)])
    assert distance(updates_of(model, lambda model: program(model, x)), clipped_sum_of(alone, CLIP)) < 1e-5


def test_gradients_that_are_asked_for_and_not_used_record_nothing() -> None:
    torch.manual_seed(0)
    model, x = critic(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)), torch.randn(B, 4)
    plain = copy.deepcopy(model)

    def program(model: nn.Module) -> Tensor:
        slope(model, x)
        return model(x).square().sum(1)

    alone = one_at_a_time(plain, [lambda i=i: plain(x[i : i + 1]).square().sum() for i in range(B)])
    assert distance(updates_of(model, program), clipped_sum_of(alone, CLIP)) < 1e-5


@pytest.mark.parametrize("layer", [nn.Bilinear(4, 4, 1), nn.LSTM(4, 1, batch_first=True)], ids=["bilinear", "lstm"])
def test_through_other_operators_it_is_refused_and_freezing_them_is_a_cure_that_works(
    layer: nn.Module,
) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer = nn.Linear(4, 4), layer

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.layer(h, h) if isinstance(self.layer, nn.Bilinear) else self.layer(h.unsqueeze(1))[0][:, 0]

    model, x = Both(), torch.randn(B, 4)
    _, session = session_of(model)
    with pytest.raises(UncoveredParameterUseError, match="create_graph=True"):
        session.backward(slope(model, x).square().sum(1))
    session.close()
    layer.requires_grad_(False)
    updates_of(model, lambda model: slope(model, x).square().sum(1))
