"""Where examples met: the innermost module whose values of other examples changed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hushgrad.guards.probing.place import called, cure, first_place


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_the_innermost_module_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Tanh(), Centred()), nn.Linear(3, 3))
    x = torch.randn(4, 3)
    altered = x.clone()
    altered[0] += 1
    others = ([1, 2, 3], [1, 2, 3])
    found = first_place(model, lambda: model(x), lambda: model(x[1:]), lambda: model(altered), others, (4, 4))
    assert found == "1.1"
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_a_message_names_a_module_and_what_to_do_about_its_kind() -> None:
    model = nn.Sequential(nn.MultiheadAttention(4, 2), nn.BatchNorm1d(4), Centred())
    assert called(model, "2") == "2 (Centred)"
    assert called(model, "") == "the forward of Sequential itself"
    assert called(model, None) == "the model"
    assert "batch_first" in cure(model, "0")
    assert "nn.GroupNorm" in cure(model, "1")
    assert cure(model, "2").startswith("Compute each example's values")
