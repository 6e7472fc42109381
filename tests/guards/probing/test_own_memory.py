"""What lies in the private model's memory is known, also by a view, and nothing else is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hushgrad.guards.probing.own_memory import OwnMemory, has_memory, is_plain


class Holding(nn.Linear):
    centre: Tensor

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.register_buffer("kept", torch.ones(2))
        self.centre = torch.zeros(3)


def test_parameters_buffers_and_attributes_are_the_models_and_so_are_views_of_them() -> None:
    model = Holding()
    own = OwnMemory(model)
    for part in (model.weight, model.kept, model.centre):
        assert isinstance(part, Tensor)
        assert own.holds(part)
        assert own.holds(part.detach()[:1])
    assert not own.holds(model.weight.detach().clone())
    assert not OwnMemory(None).holds(model.weight)


def test_memory_that_was_exchanged_is_known_from_the_next_item_on() -> None:
    model = Holding()
    own = OwnMemory(model)
    assert own.holds(model.weight)
    model.weight.data = torch.zeros(2, 3)
    own.forget()
    assert own.holds(model.weight)


def test_what_has_no_values_of_its_own_is_not_plain() -> None:
    given_back = torch.ones(3)
    given_back.untyped_storage().resize_(0)
    for tensor in (torch.ones(2).to_sparse(), torch.empty(2, device="meta"), torch.ones(0), given_back):
        assert not is_plain(tensor)
    assert is_plain(nn.Parameter(torch.ones(2)))


def test_what_stands_for_a_tensor_or_lies_in_several_pieces_has_no_memory_to_look_at() -> None:
    nested = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged)
    for tensor in (torch.eye(2).to_sparse(), nested, torch.ones(2, device="meta")):
        assert not has_memory(tensor)
    with FakeTensorMode():
        assert not has_memory(torch.ones(2))
    seen: list[bool] = []

    def inner(values: Tensor) -> Tensor:
        seen.append(has_memory(values))
        return values.sum()

    torch.func.grad(inner)(torch.ones(2))
    torch.func.vmap(inner)(torch.ones(2, 2))
    assert seen == [False, False]
    assert has_memory(torch.ones(2).as_subclass(Own))
    assert has_memory(nn.Parameter(torch.ones(2))[:1])


class Own(torch.Tensor):
    """A class that runs operators as torch does."""
