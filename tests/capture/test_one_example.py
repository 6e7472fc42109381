"""A batch of one example has no other to be mixed with: whatever a forward does, it is followed and exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attached import Attached, C, Model, assert_same, losses
from torch import Tensor, nn

from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import HushgradError
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time

X = torch.randn(1, 6, 4, dtype=torch.float64)


def experts(m: Model, x: Tensor) -> Tensor:
    """Words sorted by expert, each part through its own layer, added back."""
    words = x.flatten(0, 1)
    order = (words[:, 0] > 0).long().argsort()
    count = int((words[:, 0] <= 0).sum())
    parts = [m.a(words[order[:count]]), m.b(words[order[count:]])]
    return torch.zeros_like(words).index_add(0, order, torch.cat(parts)).view(x.shape)


def selected(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    h[x[..., 0] > 0] = m.b(x[x[..., 0] > 0])
    return h


def written(m: Model, x: Tensor) -> Tensor:
    out = torch.zeros(6, 4, dtype=x.dtype)
    out.view(-1)[::2].copy_(m.a(x).flatten()[::2])
    return m.b(out).unsqueeze(0)


PROGRAMS: dict[str, Callable[[Model, Tensor], Tensor]] = {
    "experts": experts,
    "selected": selected,
    "written": written,
    "normalised by the batch": lambda m, x: m.b(m.a(x) / m.a(x).max()),
    "a number meets a parameter": lambda m, x: m.a(x) + m.a(x).sum() * m.b.weight.sum(),
    "statistics of the batch": lambda m, x: m.b((m.a(x) - m.a(x).mean((0, 1))) / m.a(x).std((0, 1)).sum()),
    "sorted over everything": lambda m, x: m.b(m.a(x).flatten().sort().values.view(1, 6, 4)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_one_example_is_exact_whatever_the_forward_does(name: str) -> None:
    model = Model(PROGRAMS[name], a=nn.Linear(4, 4), b=nn.Linear(4, 4)).double()
    wanted = clipped_sum_of(one_at_a_time(model, [lambda: losses(model(X)).sum()]), FlatClipping(C))
    attached = Attached(model, 1)
    losses(attached.model(X)).sum().backward()
    attached.scope.detach()
    found = attached.sums()
    assert_same(found, {name: value for name, value in wanted.items() if name in found})
    assert not any(bool(value.any()) for name, value in wanted.items() if name not in found)


TOLD_APART = ("a number meets a parameter", "selected")
"""Those that follow several examples too: `selected` takes rows by their own values, and puts them back."""


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in TOLD_APART])
def test_the_same_forwards_of_several_examples_are_refused(name: str) -> None:
    model = Model(PROGRAMS[name], a=nn.Linear(4, 4), b=nn.Linear(4, 4)).double()
    attached = Attached(model, 3)
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    try:
        with pytest.raises((HushgradError, RuntimeError)) as refusal:
            losses(attached.model(x)).sum().backward()
    finally:
        attached.scope.detach()
    assert isinstance(refusal.value, HushgradError) or name in ("written", "sorted over everything")


def test_rows_that_are_selected_by_their_own_values_are_exact_of_several_examples() -> None:
    model = Model(selected, a=nn.Linear(4, 4), b=nn.Linear(4, 4)).double()
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    runs = [lambda i=i: losses(model(x[i : i + 1])).sum() for i in range(3)]
    expected = clipped_sum_of(one_at_a_time(model, runs), FlatClipping(C))
    attached = Attached(model, 3)
    losses(attached.model(x)).sum().backward()
    attached.scope.detach()
    assert_same(attached.sums(), expected)


def test_one_row_of_several_examples_is_refused() -> None:
    model = Model(experts, a=nn.Linear(4, 4), b=nn.Linear(4, 4)).double()
    attached = Attached(model, 3)
    with pytest.raises(HushgradError, match="1 rows for 3 examples"):
        losses(attached.model(X)).sum().backward()
    attached.scope.detach()
