"""Parameters read at places of the batch: as exact as an embedding, and as cheap; refused where examples meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attached import Attached
from cases import Parameters, losses
from measure import captured
from oracle import assert_use_is_exact
from torch import Tensor

from hushgrad.errors import HushgradError
from hushgrad.gradients.places import Places
from hushgrad.gradients.rows import Rows

B, T, N, M = 4, 5, 3, 3  # the batch differs from the table, T from both; twice the same size tells nothing

Use = tuple[Callable[..., Tensor], dict[str, tuple[int, ...]]]

EXACT: dict[str, Use] = {
    "w[i]": (lambda i, w: w[i], {"w": (N, 2)}),
    "w[i] of one dimension": (lambda i, w: w[i], {"w": (N,)}),
    "w[i] of three": (lambda i, w: w[i], {"w": (N, 2, 2)}),
    "w[-i]": (lambda i, w: w[-i], {"w": (N, 2)}),
    "w[:, i]": (lambda i, w: w[:, i].movedim(0, -1), {"w": (2, N)}),
    "w[..., i]": (lambda i, w: w[..., i].movedim(2, 0), {"w": (2, 2, N)}),
    "w[:, i, :]": (lambda i, w: w[:, i, :].movedim(1, 0), {"w": (2, N, 2)}),
    "w[None, i]": (lambda i, w: w[None, i][0], {"w": (N, 2)}),
    "w[i, 1]": (lambda i, w: w[i, 1], {"w": (N, 2)}),
    "w[0, :, i]": (lambda i, w: w[0, :, i].movedim(0, -1), {"w": (2, 2, N)}),
    "w[a tensor of no dimensions, :, i]": (lambda i, w: w[torch.tensor(0), :, i].movedim(0, -1), {"w": (2, 2, N)}),
    "w[i, 1:, a tensor of no dimensions]": (lambda i, w: w[i, 1:, torch.tensor(1)], {"w": (N, 3, 2)}),
    "w[i, :1]": (lambda i, w: w[i, :1], {"w": (N, 2)}),
    "w[i, 1:, None]": (lambda i, w: w[i, 1:, None], {"w": (N, 3)}),
    "w[i, j]": (lambda i, w: w[i[:, :-1], i[:, 1:]], {"w": (N, M)}),
    "w[i, :, j]": (lambda i, w: w[i[:, :-1], :, i[:, 1:]], {"w": (N, 2, M)}),
    "w[i, constants]": (lambda i, w: w[i, torch.arange(T) % 2], {"w": (N, M)}),
    "w[a row of i, constants]": (lambda i, w: w[i[:, :1], torch.arange(M)], {"w": (N, M)}),
    "w[time first]": (lambda i, w: w[i.T].transpose(0, 1), {"w": (N, 2)}),
    "w[folded]": (lambda i, w: w[i.flatten()].view(len(i), T, -1), {"w": (N, 2)}),
    "w[rows t·B + b]": (lambda i, w: w[i.T.flatten()].view(T, -1, 2).transpose(0, 1), {"w": (N, 2)}),
    "w[one example at a time]": (lambda i, w: torch.stack([w[part] for part in i]), {"w": (N, 2)}),
    "w[i][i]": (lambda i, w: w[i] * w[i.flip(1)], {"w": (N, 2)}),
    "w[i, j] twice": (lambda i, w: w[i[:, :-1], i[:, 1:]] * w[i[:, 1:], i[:, :-1]], {"w": (N, M)}),
    "w[i] and w[:, i]": (lambda i, w: w[i] * w[:, i].movedim(0, -1), {"w": (N, M)}),
    "w[i] tied": (lambda i, w: w[i] @ w.T, {"w": (N, 2)}),
    "derived[i]": (lambda i, w: F.normalize(w, dim=0)[i], {"w": (N, 2)}),
    "transposed[i]": (lambda i, w: w.T[i], {"w": (2, N)}),
    "index_select": (lambda i, w: w.index_select(0, i.flatten()).view(-1, T, 2), {"w": (N, 2)}),
    "index_select 1": (lambda i, w: torch.index_select(w, 1, i[:, 0]).T, {"w": (2, N)}),
    "index_select by name": (lambda i, w: torch.index_select(w, dim=0, index=i[:, 0]), {"w": (N, 2)}),
    "gather": (lambda i, w: w.gather(0, i[:, :M]), {"w": (N, M)}),
    "gather fewer columns": (lambda i, w: torch.gather(w, 0, i[:, :2]), {"w": (N, M)}),
    "take_along_dim": (lambda i, w: torch.take_along_dim(w, i[:, :M], 0), {"w": (N, M)}),
    "take_along_dim broadcast": (lambda i, w: torch.take_along_dim(w, i[:, :1], 0), {"w": (N, M)}),
    "take_along_dim of one column": (lambda i, w: torch.take_along_dim(w, i, 0), {"w": (N, 1)}),
}


def batch(size: int = B) -> Tensor:
    return torch.randint(0, N, (size, T))


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("size", [1, 3, B])
def test_a_table_that_is_read_by_the_batch_is_exact(name: str, size: int) -> None:
    use, shapes = EXACT[name]
    assert_use_is_exact(use, batch(size), **shapes)


@pytest.mark.parametrize(
    ("use", "shape", "form"),
    [
        (lambda i, w: w[i], (N, 2), Rows),
        (lambda i, w: w.index_select(0, i[:, 0]), (N, 2), Rows),
        (lambda i, w: w[i[:, 0], i[:, 1]][:, None], (N, M), Places),
        (lambda i, w: w[:, i[:, 0]].T, (2, N), Places),
        (lambda i, w: w.gather(0, i[:, :M]), (N, M), Places),
    ],
)
def test_a_table_is_never_formed_for_each_example(
    use: Callable[..., Tensor], shape: tuple[int, ...], form: Any
) -> None:
    (use_of_w,) = captured(Parameters(use, w=shape), batch(), losses)["w"]
    assert isinstance(use_of_w, form)


def test_a_place_outside_of_the_table_raises_as_ever() -> None:
    with pytest.raises(IndexError):
        captured(Parameters(lambda i, w: w[i * 0, i * 0 + M], w=(N, M)), batch(), losses)


LEAKS: dict[str, Callable[..., Tensor]] = {
    "places in the order of their values": lambda i, w: w[i[:, 0].sort().values],
    "a place that the batch's sum decides": lambda i, w: w[i.sum(0) % N],
    "the most frequent place": lambda i, w: w[i.flatten().mode().values],
    "places beside those of others": lambda i, w: w[i[:, 0], i[:, 0].flip(0)],
    "a mask": lambda i, w: w[i.sum(0)[:N] > 0],
    "places of other examples": lambda i, w: w.gather(0, i[:, :M].flip(0)),
    "counts of the batch": lambda i, w: w[torch.bincount(i[:, 0], minlength=N) % N],
}


@pytest.mark.parametrize("name", LEAKS)
@pytest.mark.parametrize(
    "ids", [batch(), torch.zeros(B, T, dtype=torch.long), torch.arange(B)[:, None].expand(B, T) % N]
)
def test_places_that_several_examples_decide_are_refused(name: str, ids: Tensor) -> None:
    """Also where they are all alike, or in order already."""
    attached = Attached(Parameters(LEAKS[name], w=(N, M)), B)
    out = attached.model(ids.clone())
    with pytest.raises(HushgradError):
        out.square().sum(-1).sum().backward()
    attached.scope.detach()
