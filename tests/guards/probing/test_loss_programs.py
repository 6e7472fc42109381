"""Which items' programs are looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine, Session
from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.loss_programs import FIRST, LossPrograms
from hushgrad.guards.probing.widths import Drawn
from hushgrad.randomness import KeyStream
from hushgrad.torch_internals import top_mode


def drawn(item: Any) -> Drawn:
    return Drawn(None, (), item, len(item), None)


def looked_at(programs: LossPrograms, items: int, size: int = 4) -> list[int]:
    found = []
    for number in range(items):
        programs.begin(size, drawn(torch.ones(size, 2)))
        if top_mode() is not None:
            found.append(number)
        programs.forget()
    return found


def test_the_first_items_are_looked_at_and_later_ones_at_random() -> None:
    assert looked_at(LossPrograms("mean", None), 40) == [*range(FIRST)]
    later = looked_at(LossPrograms("mean", None, KeyStream.fixed_for_tests(3)), 40)
    assert later[:FIRST] == [*range(FIRST)]
    assert FIRST < len(later) < 40


def test_batches_of_one_example_are_not_looked_at() -> None:
    assert looked_at(LossPrograms("mean", None), 5, size=1) == []


def test_an_item_whose_examples_change_each_other_is_refused() -> None:
    """Guarantee: no update is released from an item that was looked at, if one example's loss, or the gradient that its
    outputs get, changes with the rows of others."""
    programs = LossPrograms("mean", None)
    item = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    programs.begin(4, drawn(item))
    programs.given(((item,), {}), None)
    output = (item * 1).requires_grad_() * 1
    programs.returned(output)
    losses = output.square().sum(1)
    programs.losses(losses / losses.detach().sum())
    with pytest.raises(CrossSampleLeakError, match=r"test_loss_programs\.py, line"):
        programs.examine()
    programs.forget()


@pytest.mark.parametrize("fails", ["model", "criterion", None])
def test_a_call_that_failed_within_an_item_is_a_reading_of_its_values(fails: str | None) -> None:
    programs = LossPrograms("mean", None)
    for number in range(FIRST + 2):
        item = torch.randn(4, 2, generator=torch.Generator().manual_seed(number))
        programs.begin(4, drawn(item))
        for is_last in (False, True):
            programs.given(((item,), {}), None)
            output = (item * 1).requires_grad_() * 1
            has_failed = fails == "model" and not is_last and number > FIRST
            programs.returned(None if has_failed else output)
        programs.evaluating(None)
        if fails == "criterion" and number > FIRST:
            programs.evaluating(None)
        programs.evaluated(None)
        programs.losses(output.square().sum(1))
        programs.examine()
        assert programs.has_read is (fails is not None and number > FIRST)
        programs.forget()


# Earlier items --------------------------------------------------------------------------------------------------------


class Kept:
    """What a loop keeps between two items."""

    def __init__(self) -> None:
        self.centre, self.number, self.total = torch.zeros(2), 1.5, 0.0
        self.buffer, self.mask = torch.zeros(6, 3), torch.zeros(0)


def moving_centre(kept: Kept, out: Tensor) -> Tensor:
    losses = (out - kept.centre).square().sum(1)
    kept.centre = 0.5 * kept.centre + 0.5 * out.detach().mean(0)
    return losses


def centre_in_place(kept: Kept, out: Tensor) -> Tensor:
    losses = (out - kept.centre).square().sum(1)
    kept.centre.mul_(0.5).add_(0.5 * out.detach().mean(0))
    return losses


def largest_so_far(kept: Kept, out: Tensor) -> Tensor:
    losses = out.square().sum(1) / kept.number
    kept.number = float(out.detach().abs().max())
    return losses


def logged_average(kept: Kept, out: Tensor) -> Tensor:
    losses = out.square().sum(1)
    kept.centre = 0.9 * kept.centre + 0.1 * losses.detach().mean()
    return losses


def mask_of_shape(kept: Kept, out: Tensor) -> Tensor:
    kept.mask = kept.mask if len(kept.mask) else torch.ones_like(out[0])
    return (out * kept.mask).square().sum(1)


def two_items(loss: Callable[[Kept, Tensor], Tensor], call: Callable[[Kept, Any, Tensor], Tensor]) -> Session:
    model, kept = nn.Linear(3, 2), Kept()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = PrivacyEngine(test_key=1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(list(torch.randn(12, 3)), batch_size=6),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    for x in loader:
        engine.session.backward(loss(kept, call(kept, model, x)))
        optimizer.step()
    return engine.session


def plain(kept: Kept, model: Any, x: Tensor) -> Tensor:
    return model(x)


def by_buffer(kept: Kept, model: Any, x: Tensor) -> Tensor:
    kept.buffer.copy_(x)
    return model(kept.buffer)


def by_rows_of_a_buffer(kept: Kept, model: Any, x: Tensor) -> Tensor:
    kept.buffer[: len(x)] = x
    return model(kept.buffer[: len(x)])


@pytest.mark.parametrize("loss", [moving_centre, centre_in_place, largest_so_far])
def test_values_of_an_earlier_item_in_a_loss_are_refused(loss: Callable[[Kept, Tensor], Tensor]) -> None:
    with pytest.raises(CrossSampleLeakError, match=r"earlier batch|test_loss_programs\.py, line"):
        two_items(loss, plain)


@pytest.mark.parametrize("call", [plain, by_buffer, by_rows_of_a_buffer])
@pytest.mark.parametrize("loss", [logged_average, mask_of_shape])
def test_what_is_overwritten_logged_or_made_of_a_shape_alone_is_no_earlier_value(
    loss: Callable[[Kept, Tensor], Tensor], call: Callable[[Kept, Any, Tensor], Tensor]
) -> None:
    assert two_items(loss, call).steps == 2
