"""A loop's own loss in 16 bits: as one example at a time, and one example more moves the others by nothing."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from narrow_loops import (
    BF16,
    CLIP,
    FP16,
    Loss,
    Spy,
    all_in_autocast,
    attach,
    autocast,
    model_of,
    one_at_a_time,
    records,
    trained,
)
from torch import Tensor, nn

from hushgrad.errors import UnsupportedModelError
from hushgrad.torch_internals import function_modes


def model_in_autocast(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with autocast(BF16):
        out = model(x)
    return F.cross_entropy(out.float(), y)


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def squared(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    out = model(x)
    return F.mse_loss(out, F.one_hot(y, 3).to(out.dtype))


def by_hand(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with autocast(BF16):
        return ((model(x) - F.one_hot(y, 3)) ** 2).mean()


def of_losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y, reduction="none").mean()


def divided_sum(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y, reduction="sum") / len(y)


def weighted_parts(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    out = model(x)
    return (2 * F.cross_entropy(out, y) + 0.5 * out.square().mean()) / 3


def added_in_place(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    out = model(x)
    loss = F.cross_entropy(out, y)
    loss += out.square().mean()
    return loss


def rounded_and_back(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return plain(model, x, y).float() * 0.5


PROGRAMS: list[tuple[str, Loss, torch.dtype]] = [
    ("all in autocast", all_in_autocast(BF16), torch.float32),
    ("model in autocast", model_in_autocast, torch.float32),
    ("square by hand in autocast", by_hand, torch.float32),
    ("all in float16 autocast", all_in_autocast(FP16), torch.float32),
    *((f"{loss.__name__} in {dtype}", loss, dtype) for dtype in (BF16, FP16) for loss in (plain, squared)),
    *(
        (loss.__name__, loss, BF16)
        for loss in (of_losses, divided_sum, weighted_parts, added_in_place, rounded_and_back)
    ),
]
EACH = pytest.mark.parametrize(
    ("loss", "dtype"), [(loss, dtype) for _, loss, dtype in PROGRAMS], ids=[name for name, _, _ in PROGRAMS]
)


@EACH
def test_a_mean_of_the_loops_own_in_16_bits_is_one_example_at_a_time_within_that_precision(
    spy: Spy, loss: Loss, dtype: torch.dtype
) -> None:
    x, y = records(24)
    model = model_of(dtype)
    given = x.to(dtype)
    oracle = one_at_a_time(loss, copy.deepcopy(model), given, y, scale=256.0)
    wide = one_at_a_time(loss, copy.deepcopy(model).double(), given.double(), y)  # autocast leaves float64 alone
    conditions = trained(loss, model, given, y)
    own_error = (oracle - wide).norm()
    assert (spy.total() - wide).norm() <= 1.5 * own_error + 1e-5 * wide.norm()
    assert "rounded together" in conditions


@EACH
def test_one_more_example_changes_the_rounding_of_no_other(spy: Spy, loss: Loss, dtype: torch.dtype) -> None:
    """Guarantee: where `cuts` finds a place, what a loop's own mean hands to each example's values does not follow the
    number of rows, but for the last bit of float32.

    Equal records, whose rounding errors all go one way: ‖sum(D) - sum(D without i)‖ ≤ C(1 + 1e-5), with room for
    the rounding of the sum itself in float32."""
    totals = []
    for count in (257, 258, 1000, 1001):
        spy.sums.clear()
        x = torch.tensor([0.3, -0.7, 1.1, 0.123]).expand(count, 4).to(dtype)
        trained(loss, model_of(dtype), x, torch.ones(count, dtype=torch.long))
        totals.append(spy.total())
    for fewer, more in ((0, 1), (2, 3)):
        assert (totals[more] - totals[fewer]).norm() <= CLIP * (1 + 1e-5 + 1000 * 6e-8)


def test_differences_half_between_two_values_are_rounded_alike_for_any_number_of_rows(spy: Spy) -> None:
    """bf16 differences of nine digits: rounding them after a division would follow the last digit of its result."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), y.to(x.dtype))

    per_record = []
    for count in (41, 47, 55, 61, 64):  # whose inverses in float32 are not exact, but for the last
        spy.sums.clear()
        torch.manual_seed(1)
        model = nn.Linear(4, 4, bias=False).to(BF16)
        with torch.no_grad():
            model.weight.copy_(torch.eye(4))
        x = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=BF16).expand(count, 4)
        y = torch.tensor([0.00390625 * 3, 0.0078125 * 3, 0.001953125 * 5, 0.0078125 * 5]).expand(count, 4)
        trained(loss, model, x, y, clip=1000.0)
        per_record.append(spy.total() / count)
    assert all(torch.allclose(one, per_record[-1], rtol=1e-6, atol=0) for one in per_record)


@pytest.mark.parametrize("kind", ["autocast", "parameters"])
def test_a_mean_over_many_rows_does_not_vanish_in_float16(spy: Spy, kind: str) -> None:
    """4,096 rows and gradients of 1e-5: divided first, they would be below what float16 holds."""
    count = 4096
    dtype = FP16 if kind == "parameters" else torch.float32
    x, y = torch.full((count, 4), 0.5).to(dtype), torch.zeros(count)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with autocast(FP16 if kind == "autocast" else torch.float32):
            out = model(x)
        return (out.float() * 1e-5).mean()

    trained(loss, model_of(dtype, out=1), x, y)
    oracle = one_at_a_time(loss, model_of(dtype, out=1), x[:1], y[:1], scale=4096.0) * count
    assert (spy.total() - oracle).norm() <= 2e-2 * oracle.norm()  # 1e-5 is held to a part in 170


# What is refused -----------------------------------------------------------------------------------------------------


def other_leaf(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The loop trains a temperature of its own beside the model: its gradient would be multiplied, too."""
    temperature = torch.ones(1, requires_grad=True)
    return F.cross_entropy(half_of(model, x) * temperature, y)


def half_of(model: nn.Module, x: Tensor) -> Tensor:
    with autocast(BF16):
        return model(x)  # type: ignore[no-any-return]


def of_inputs(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradients by the inputs are read by the loop: they would be multiplied, too."""
    return F.cross_entropy(half_of(model, x.requires_grad_()).float(), y)


def by_parts_in_16_bits(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A mean over the batch for each class, in 16 bits, and one over the classes."""
    return half_of(model, x).square().mean(0).mean()


def by_autograd(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = F.cross_entropy(half_of(model, x).float(), y)
    torch.autograd.backward(loss)
    return torch.zeros((), requires_grad=True)


@pytest.mark.parametrize("loss", [other_leaf, of_inputs, by_parts_in_16_bits, by_autograd])
def test_what_cannot_be_multiplied_is_refused_with_a_cure_that_works(loss: Loss) -> None:
    x, y = records(20)
    model = model_of()
    optimizer, session, loader = attach(model, x, y)
    a, b = next(iter(loader))
    found = loss(model, a, b)
    if loss is not by_autograd:
        found.backward()  # type: ignore[no-untyped-call]
    with pytest.raises(UnsupportedModelError, match=r"16 bits.*engine\.per_example") as info:
        optimizer.step()
    assert info.value.code == "DP306"
    session.discard()
    for a, b in loader:
        session.per_example(nn.CrossEntropyLoss())(half_of(model, a), b).backward()
        optimizer.step()
    assert session.steps == 1


# Loops of others -----------------------------------------------------------------------------------------------------


class Prepared(nn.Module):
    """A model as Accelerate prepares it: it runs under autocast, and what it returns is made float32 again."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with autocast(BF16):
            return self.inner(x).float()  # type: ignore[no-any-return]


def test_a_loop_that_divides_a_loss_in_32_bits_by_its_number_of_steps_trains(spy: Spy) -> None:
    """As Accelerate's backward does, for one step of accumulation."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y) / 1

    x, y = records(12)
    names = trained(loss, Prepared(model_of()), x, y)
    oracle = one_at_a_time(loss, Prepared(model_of()), x, y)
    assert (spy.total() - oracle).norm() <= 1e-2 * oracle.norm()
    assert "rounded together" in names


class Returning(nn.Module):
    """A model that returns its loss, as those of transformers do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.inner(x).float(), y)


@pytest.mark.parametrize("kind", ["autocast", "parameters"])
def test_a_loss_that_the_model_returns_trains_in_16_bits(spy: Spy, kind: str) -> None:
    dtype = BF16 if kind == "parameters" else torch.float32

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with autocast(BF16 if kind == "autocast" else torch.float32):
            return model(x, y)  # type: ignore[no-any-return]

    x, y = records(12)
    trained(loss, Returning(model_of(dtype)), x.to(dtype), y)
    oracle = one_at_a_time(loss, Returning(model_of(dtype)), x.to(dtype), y)
    assert (spy.total() - oracle).norm() <= 2e-2 * oracle.norm()


def test_an_item_that_is_over_leaves_nothing_on_the_stack_and_a_loop_sees_the_dtypes_of_torch(spy: Spy) -> None:
    x, y = records(12)
    model = model_of(BF16)
    optimizer, session, loader = attach(model, x.to(BF16), y)
    for a, b in loader:
        out = model(a)
        found = [F.cross_entropy(out, b), out.mean(), F.mse_loss(out, out.detach()), F.cross_entropy(out, b) / 2]
        assert [part.dtype for part in found] == [BF16] * 4
        assert [part.shape for part in found] == [()] * 4
        sum(found[1:], found[0]).backward()
        optimizer.step()
        assert function_modes() == []
    session.close()
