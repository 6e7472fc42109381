"""Tensors of the batch are known again behind conversions to distributed ones, and from them; one process is enough."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.errors import PrivacyUnitError, UnsupportedModelError

B, D = 3, 4


@pytest.fixture(autouse=True)
def alone(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Converted(nn.Module):
    """Converts what a layer gives, or what it is given, and back; another layer's weight is distributed."""

    def __init__(self, placement: Any, *, other_mesh: bool = False, is_trained: bool = True) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(D, D), nn.Linear(D, D)
        self.first.requires_grad_(is_trained)
        self.mesh = init_device_mesh("cpu", (1,))
        self.last.weight = nn.Parameter(distribute_tensor(self.last.weight.data, self.mesh, [Replicate()]))
        self.last.bias = nn.Parameter(distribute_tensor(self.last.bias.data, self.mesh, [Replicate()]))
        self.used = init_device_mesh("cpu", (1, 1), mesh_dim_names=("a", "b"))["b"] if other_mesh else self.mesh
        self.placement = placement

    def mixed(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        made = DTensor.from_local(self.mixed(self.first(x)), self.used, [self.placement], run_check=False)
        own = made.redistribute(placements=[Replicate()]).to_local()
        again = DTensor.from_local(own, self.used, [Replicate()], run_check=False)
        return self.last(again).to_local()


class Mixed(Converted):
    """Mixes the batch before it converts."""

    def mixed(self, x: Tensor) -> Tensor:
        return x + x.mean(0, keepdim=True)


def uses_of(model: nn.Module) -> dict[str, list[Any]]:
    pool = UsePool()
    pool.batch_size = B
    scope = Scope(model, pool)
    try:
        model(torch.randn(B, D)).square().sum().backward()
    finally:
        scope.detach()
    return pool.take()


@pytest.mark.parametrize("is_trained", [True, False])
@pytest.mark.parametrize("placement", [Replicate(), Partial(), Shard(1)])
def test_the_batch_is_followed_through_conversions_with_gradients_and_without(placement: Any, is_trained: bool) -> None:
    torch.manual_seed(0)
    uses = uses_of(model := Converted(placement, is_trained=is_trained))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(uses) == trained
    for name, [part] in uses.items():
        shape = dict(model.named_parameters())[name].shape
        assert type(part.operands[0]) is Tensor, "a part of this process's own"
        assert part.per_example().shape == (B, *shape)


def test_what_was_mixed_before_a_conversion_is_refused_after_it_by_the_name_of_what_mixed() -> None:
    with pytest.raises(PrivacyUnitError, match=r"since mean in Mixed\.forward"):
        uses_of(Mixed(Replicate()))


@pytest.mark.parametrize("is_trained", [True, False])
def test_a_conversion_that_shares_out_the_examples_is_refused(is_trained: bool) -> None:
    with pytest.raises(UnsupportedModelError, match="shared out among the processes of a tensor parallel"):
        uses_of(Converted(Shard(0), is_trained=is_trained))


@pytest.mark.parametrize("is_trained", [True, False])
def test_a_conversion_over_processes_that_have_other_examples_is_refused(is_trained: bool) -> None:
    with pytest.raises(UnsupportedModelError, match="processes that have other examples"):
        uses_of(Converted(Replicate(), other_mesh=True, is_trained=is_trained))
