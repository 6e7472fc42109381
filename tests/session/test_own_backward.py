"""A loop's own loss in 16 bits: as one example at a time, and one example more moves the others by nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import hushgrad.session.update as update_module
from hushgrad import DPSGD, FlatClipping, PoissonSampling, Session, privatize
from hushgrad.errors import InvalidArgumentError, ProtocolError, UnsupportedModelError, UnsupportedOptimizerError
from hushgrad.randomness import KeyStream

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
BF16, FP16 = torch.bfloat16, torch.float16
CLIP = 0.3


class Spy:
    """The clipped sums of the physical batches, before they are rounded to the parameters' dtype."""

    def __init__(self) -> None:
        self.sums: list[dict[str, Tensor]] = []

    def total(self) -> Tensor:
        names = sorted({name for part in self.sums for name in part})
        return torch.cat([sum(part[name].double().flatten() for part in self.sums) for name in names])  # type: ignore[misc]


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    found, real = Spy(), update_module.clipped_sums

    def watched(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        sums = real(*args, **kwargs)
        found.sums.append({name: value.detach().clone() for name, value in sums.items()})
        return sums

    monkeypatch.setattr(update_module, "clipped_sums", watched)
    return found


def model_of(dtype: torch.dtype = torch.float32, out: int = 3) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, out)).to(dtype)


def records(count: int, out: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, 4, generator=generator), torch.arange(count) % out


def attach(model: nn.Module, x: Tensor, y: Tensor, clip: float = CLIP, **more: Any) -> tuple[Any, Session, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mechanism = DPSGD(
        noise_multiplier=1e-9,
        clipping=FlatClipping(clip),
        sampling=PoissonSampling(1.0),
        expected_batch_size=len(x),
        loss_reduction=more.pop("reduction", "mean"),
    )
    session = privatize(model, optimizer, mechanism, key=KeyStream.fixed_for_tests(1), **more)
    return optimizer, session, session.batches(TensorDataset(x, y))


def trained(loss: Loss, model: nn.Module, x: Tensor, y: Tensor, **more: Any) -> set[str]:
    optimizer, session, loader = attach(model, x, y, **more)
    for item in loader:
        loss(model, item[0], item[1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    names = {condition.name for condition in session.guarantee(1e-5).conditions}
    session.close()
    return names


def one_at_a_time(
    loss: Loss, model: nn.Module, x: Tensor, y: Tensor, *, clip: float = CLIP, scale: float = 1.0
) -> Tensor:
    """The oracle: each example alone, in the same precision, and the sum of its clipped gradients in float64."""
    total: Tensor | None = None
    for i in range(len(x)):
        (loss(model, x[i : i + 1], y[i : i + 1]).float() * scale).backward()  # type: ignore[no-untyped-call]
        parts = {name: p.grad.double().flatten() / scale for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        gradient = torch.cat([parts[name] for name in sorted(parts)])
        gradient = gradient * (clip / gradient.norm()).clamp(max=1)
        total = gradient if total is None else total + gradient
    assert total is not None
    return total


def autocast(dtype: torch.dtype) -> Any:
    return torch.autocast("cpu", dtype) if dtype is not torch.float32 else nullcontext()


def all_in_autocast(dtype: torch.dtype) -> Loss:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with autocast(dtype):
            return F.cross_entropy(model(x), y)

    return loss


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
    """Equal records, whose rounding errors all go one way: ‖sum(D) - sum(D without i)‖ ≤ C(1 + 1e-5), with room for
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


def test_a_loss_scale_keeps_gradients_that_float16_would_lose(spy: Spy) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with autocast(FP16):
            out = model(x)
        return (out.float() * 1e-9).mean()

    x, y = records(8)
    lost = trained(loss, model_of(), x, y)
    assert not spy.total().any()
    assert "loss scale" not in lost
    spy.sums.clear()
    kept = trained(loss, model_of(), x, y, loss_scale=2.0**15)
    oracle = one_at_a_time(loss, model_of(), x, y, scale=2.0**15)
    assert (spy.total() - oracle).norm() <= 1e-2 * oracle.norm()
    assert "loss scale" not in kept  # a constant is no trust


WAYS: dict[str, Callable[[Session, nn.Module, Tensor, Tensor], Any]] = {
    "own": lambda session, model, x, y: all_in_autocast(FP16)(model, x, y).backward(),  # type: ignore[no-untyped-call]
    "per_example": lambda session, model, x, y: session.per_example(nn.CrossEntropyLoss())(
        half(model, x), y
    ).backward(),
    "session": lambda session, model, x, y: session.backward(F.cross_entropy(half(model, x), y, reduction="none")),
    "loss": lambda session, model, x, y: session.loss(F.cross_entropy(half(model, x), y, reduction="none")).backward(),
}


def half(model: nn.Module, x: Tensor) -> Tensor:
    with autocast(FP16):
        return model(x).float()  # type: ignore[no-any-return]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("way", WAYS)
def test_a_loss_scale_changes_nothing_where_nothing_is_lost(spy: Spy, way: str, reduction: str) -> None:
    x, y = records(9)
    totals = []
    for scale in (1.0, 2.0**8):
        spy.sums.clear()
        model = model_of()
        optimizer, session, loader = attach(model, x, y, loss_scale=scale, reduction=reduction)
        for a, b in loader:
            if way == "own" and reduction == "sum":
                with autocast(FP16):
                    F.cross_entropy(model(a), b, reduction="sum").backward()  # type: ignore[no-untyped-call]
            else:
                WAYS[way](session, model, a, b)
            optimizer.step()
        totals.append(spy.total())
    assert (totals[1] - totals[0]).norm() <= 2e-3 * totals[0].norm()


@pytest.mark.parametrize("way", WAYS)
def test_an_example_whose_gradient_overflows_contributes_nothing_and_the_step_is_released(spy: Spy, way: str) -> None:
    x, y = records(9)
    x[4] = 6e4  # float16 holds it, and no gradient that it is multiplied by
    model = model_of()
    with torch.no_grad():
        model[2].weight.mul_(50)  # type: ignore[index,operator]
    others = [i for i in range(9) if i != 4]
    oracle = one_at_a_time(all_in_autocast(FP16), copy.deepcopy(model), x[others], y[others], scale=2.0**10)

    class Steep(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * torch.where(x[:, :1] > 1e3, 6e4, 1.0)  # type: ignore[no-any-return]

    optimizer, session, loader = attach(Steep(model), x, y, loss_scale=2.0**10)
    for a, b in loader:
        WAYS[way](session, optimizer_model(session), a, b)
        optimizer.step()
    assert session.steps == 1
    assert session.last_step_updated
    assert (spy.total() - oracle).norm() <= 1e-2 * oracle.norm()


def optimizer_model(session: Session) -> nn.Module:
    return session._parts.probe._model


def test_a_scale_may_follow_the_number_of_steps_and_is_told_as_trust(spy: Spy) -> None:
    asked: list[int] = []

    def scale(steps: int) -> float:
        asked.append(steps)
        return 2.0 ** (4 + steps)

    x, y = records(6)
    optimizer, session, loader = attach(model := model_of(), x, y, loss_scale=scale)
    for _ in range(3):
        for a, b in loader:
            all_in_autocast(FP16)(model, a, b).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert asked == [0, 1, 2]
    assert "loss scale" in {condition.name for condition in session.guarantee(1e-5).conditions}


@pytest.mark.parametrize("scale", [0, 3.0, -2.0, 2.0**16, float("nan"), float("inf"), True, "2", None])
def test_a_loss_scale_that_is_no_power_of_two_that_float16_holds_is_refused(scale: Any) -> None:
    x, y = records(4)
    with pytest.raises(InvalidArgumentError, match="loss_scale"):
        attach(model_of(), x, y, loss_scale=scale)
    _, _, loader = attach(model_of(), x, y, loss_scale=lambda steps: scale)
    with pytest.raises(InvalidArgumentError, match="loss_scale"):
        next(iter(loader))


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
    with pytest.raises(UnsupportedModelError, match=r"16 bits.*engine\.per_example") as info:
        trained(loss, model_of(), x, y)
    assert info.value.code == "DP306"


def test_a_scaler_that_follows_overflows_is_refused_with_the_constant_in_its_place() -> None:
    x, y = records(8)
    model = model_of()
    optimizer, session, loader = attach(model, x, y)
    scaler = torch.amp.GradScaler("cpu")
    a, b = next(iter(loader))
    scaler.scale(all_in_autocast(FP16)(model, a, b)).backward()  # type: ignore[no-untyped-call]
    with pytest.raises(UnsupportedOptimizerError, match=r"loss_scale=2\.0\*\*10"):
        scaler.step(optimizer)
    assert session.steps == 0


def test_a_step_that_is_left_out_because_the_loss_overflowed_is_refused() -> None:
    x, y = records(8)
    x[3] = 3e38
    model = model_of()
    _, session, loader = attach(model, x, y)
    items = iter(loader)
    a, b = next(items)
    loss = all_in_autocast(FP16)(model, a, b)
    assert not torch.isfinite(loss)  # and the loop goes on to the next item
    with pytest.raises(ProtocolError):
        next(items)
    assert session.steps == 0
