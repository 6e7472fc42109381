"""What is said of a loss that was read: refused, trusted, or its declared reduction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scalar_losses import (
    CLASSES,
    CLASSIFIED,
    FEATURES,
    FLAT,
    LABELS,
    MEASURED,
    SENTENCES,
    SPOKEN,
    SPOKEN_CUT,
    WORDS,
    Loss,
    classifier,
    conditions,
    each,
    padded,
    rows,
    speaker,
    trained,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.accounting.conditions import OWN_LOSS
from hushgrad.errors import CrossSampleLeakError, LossShapeError

BROADCAST: dict[str, tuple[Callable[[], nn.Module], Any, Loss]] = {
    "mse": (lambda: classifier(1), FLAT, F.mse_loss),
    "mse the other way": (lambda: classifier(1), MEASURED, lambda o, y: F.mse_loss(o[:, 0], y)),
    "l1": (lambda: classifier(1), FLAT, F.l1_loss),
    "by hand": (lambda: classifier(1), FLAT, lambda o, y: ((o - y) ** 2).mean()),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", BROADCAST)
def test_an_output_that_is_broadcast_against_the_targets_is_refused(name: str) -> None:
    model, data, loss = BROADCAST[name]
    with pytest.raises(LossShapeError, match="broadcast"):
        trained(model(), data, loss, steps=1)


def test_broadcasting_against_a_constant_of_the_batch_s_length_is_told_from_it_by_other_batches() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - torch.linspace(0, 1, 12)).abs().mean()

    sizes: list[int] = []

    def call(model: nn.Module, inputs: Tensor) -> Tensor:
        sizes.append(len(inputs))
        return model(inputs)

    engine = trained(classifier(1), MEASURED, loss, call=call, steps=60)
    assert sizes[0] != 12
    assert 12 in sizes
    assert OWN_LOSS.name in conditions(engine)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_padded_width_as_a_divisor_is_refused_when_it_changes() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.transpose(1, 2), targets.clamp(min=0))

    with pytest.raises(CrossSampleLeakError, match=r"another number than in an earlier batch|how far it is padded"):
        trained(speaker(), SENTENCES, loss, collate=padded, batch_size=2, steps=60)


@pytest.mark.parametrize("divisor", [lambda y: 12, lambda y: 60], ids=["expected size", "constant"])
def test_a_sum_over_another_number_than_the_item_s_rows_is_refused_when_the_batch_changes(divisor: Any) -> None:
    with pytest.raises((CrossSampleLeakError, LossShapeError), match=r"a size that is not this batch's|is a sum over"):
        trained(classifier(), CLASSIFIED, lambda o, y: F.cross_entropy(o, y, reduction="sum") / divisor(y), steps=20)


@pytest.mark.parametrize(
    ("declared", "loss"),
    [
        ("mean", lambda o, y: F.cross_entropy(o, y, reduction="sum")),
        ("mean", lambda o, y: F.mse_loss(o, o.detach() + 1, reduction="sum") + o.exp().sum()),
        ("mean", lambda o, y: F.cross_entropy(o, y) + o.square().sum()),
        ("sum", F.cross_entropy),
        ("sum", lambda o, y: F.cross_entropy(o, y, reduction="none").mean()),
    ],
)
def test_a_reduction_that_is_not_the_declared_one_is_refused_with_the_argument_that_cures_it(
    declared: str, loss: Loss
) -> None:
    other = {"mean": "sum", "sum": "mean"}[declared]
    with pytest.raises(LossShapeError, match=f"loss_reduction='{other}'"):
        trained(classifier(), CLASSIFIED, loss, steps=1, loss_reduction=declared)


@pytest.mark.parametrize("data", [SPOKEN, SPOKEN_CUT])
def test_a_sum_under_a_declared_sum_may_leave_out_what_it_likes(data: Any) -> None:
    engine = trained(speaker(), data, lambda o, y: rows(o, y, reduction="sum"), loss_reduction="sum")
    assert OWN_LOSS.name in conditions(engine)


def test_saturated_rows_are_not_taken_for_targets_that_were_left_out() -> None:
    data = TensorDataset(1e5 * FEATURES, LABELS)
    assert OWN_LOSS.name in conditions(trained(nn.Linear(6, CLASSES), data, F.cross_entropy))


def released_sum(records: list[Tensor], token_mean: bool) -> Tensor:
    """Return the sum of clipped gradients of one batch of all records, without noise, in units of C."""
    torch.manual_seed(0)
    model, bound = nn.Embedding(WORDS, WORDS), 0.8
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine = PrivacyEngine(test_key=1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(records, batch_size=len(records), collate_fn=lambda r: pad_sequence(r, True)),
        noise_multiplier=0.0,
        max_grad_norm=bound,
        poisson_sampling=False,
    )
    for ids in loader:
        targets = ids[:, 1:].masked_fill(ids[:, 1:] == 0, -100)
        logits = model(ids[:, :-1])
        if token_mean:
            rows(logits, targets).backward()
        else:
            ((each(logits, targets) * (targets >= 0)).sum(1) / (targets >= 0).sum(1)).mean().backward()
        optimizer.step()
    return (before - model.weight.detach()) * len(records) / bound


def test_a_token_mean_is_refused_and_a_mean_of_each_example_s_own_mean_moves_by_one_clip_norm_at_most() -> None:
    short, long = [torch.tensor([3, 4, 5, 6])] * 9, torch.arange(31) % 10 + 1
    with pytest.raises(CrossSampleLeakError):
        released_sum([*short, long], token_mean=True)
    moved = released_sum([*short, long], token_mean=False) - released_sum(short, token_mean=False)
    assert moved.norm() <= 1 + 1e-6


def test_no_message_names_a_number_of_the_data() -> None:
    with pytest.raises(CrossSampleLeakError) as caught:
        trained(speaker(), SPOKEN_CUT, rows, steps=1)
    assert not any(character.isdigit() for character in str(caught.value).removeprefix("DP301"))
