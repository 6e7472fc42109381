"""Nested values: tensors by path, and the same structure with other tensors."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hushgrad.guards.probing.trees import copied, tensors_at, with_tensors

Pair = namedtuple("Pair", "one other")


@dataclass
class Output:
    logits: Tensor
    text: str = "kept"


def nested() -> dict[str, object]:
    return {"a": [torch.zeros(1), 3], "b": Pair(torch.ones(2), None), "c": Output(torch.full((3,), 2.0))}


def test_tensors_are_found_by_their_paths_in_one_order() -> None:
    found = list(tensors_at(nested()))
    assert [len(tensor) for _, tensor in found] == [1, 2, 3]
    assert [path[0] for path, _ in found] == ["a", "b", "c"]
    assert len({path for path, _ in found}) == 3


def test_the_same_structure_comes_back_with_other_tensors() -> None:
    value = nested()
    changed = with_tensors(value, lambda path, tensor: tensor + 1)
    assert isinstance(changed["b"], Pair)
    assert changed["c"].text == "kept"
    assert changed["a"][1] == 3
    assert [float(tensor[0]) for _, tensor in tensors_at(changed)] == [1.0, 2.0, 3.0]
    assert [float(tensor[0]) for _, tensor in tensors_at(value)] == [0.0, 1.0, 2.0]


def test_a_copy_is_not_reached_by_later_writes_and_shares_parameters() -> None:
    tensor, parameter = torch.zeros(2), nn.Parameter(torch.zeros(2))
    own = copied([tensor, tensor, parameter])
    tensor.add_(1)
    assert float(own[0].sum()) == 0
    assert own[0] is own[1]
    assert own[2] is parameter
