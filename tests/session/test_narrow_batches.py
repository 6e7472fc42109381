"""The physical batch in work: losses that pass through 16 bits, and losses that bring no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hushgrad import DPSGD, FlatClipping, PoissonSampling, Session, privatize
from hushgrad.errors import ClosedSessionError, ProtocolError, UnsupportedModelError
from hushgrad.randomness import KeyStream

Run = Callable[[Session, nn.Module, Tensor, Tensor], Any]
RECORD, LABEL = torch.full((4,), 0.3), torch.tensor(1)


def model_of() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def attach(count: int, clip: float = 1.0) -> tuple[nn.Module, Any, Session, Any]:
    """Train on `count` times the same record, all of which are drawn, with noise that is as good as none."""
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    mechanism = DPSGD(
        noise_multiplier=1e-9,
        clipping=FlatClipping(clip),
        sampling=PoissonSampling(1.0),
        expected_batch_size=count,
    )
    session = privatize(model, optimizer, mechanism, key=KeyStream.fixed_for_tests(1))
    dataset = TensorDataset(RECORD.expand(count, 4).clone(), LABEL.expand(count).clone())
    return model, optimizer, session, session.batches(dataset)


def released(count: int, clip: float, run: Run) -> Tensor:
    model, optimizer, session, loader = attach(count, clip)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    x, y = next(iter(loader))
    run(session, model, x, y)
    optimizer.step()
    moved = zip(before, model.parameters(), strict=True)
    return torch.cat([(old - new).detach().double().flatten() for old, new in moved]) * count


def norm_of_one(losses_of: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> float:
    model = model_of()
    gradients = torch.autograd.grad(losses_of(model, RECORD[None], LABEL[None]).sum(), list(model.parameters()))
    return float(torch.stack([gradient.norm() for gradient in gradients]).norm())


def outside(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The model computes in 32 bits, the loop its losses in 16."""
    return F.cross_entropy(model(x).bfloat16(), y, reduction="none")


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y, reduction="none")


def inside(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    return F.cross_entropy(out.float(), 1 - y, reduction="none")


def examined(session: Session, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return session.per_example(nn.CrossEntropyLoss())(model(x).bfloat16(), y)


@pytest.mark.parametrize(
    "run",
    [
        lambda session, model, x, y: session.backward(outside(model, x, y)),
        lambda session, model, x, y: session.loss(outside(model, x, y)).backward(),
        lambda session, model, x, y: examined(session, model, x, y).backward(),
    ],
    ids=["backward", "loss", "per_example"],
)
def test_one_more_example_moves_the_sum_by_no_more_than_the_clip_norm_where_the_loop_computes_in_16_bits(
    run: Run,
) -> None:
    clip = 1.02 * norm_of_one(outside)
    for count in (1027, 1900):
        assert (released(count + 1, clip, run) - released(count, clip, run)).norm() <= clip * 1.01


def test_a_mean_that_is_rounded_to_16_bits_after_its_division_is_refused_outside_of_the_model_too() -> None:
    model, optimizer, _, loader = attach(20)
    x, y = next(iter(loader))
    outside(model, x, y).mean().backward()
    with pytest.raises(UnsupportedModelError, match="16 bits"):
        optimizer.step()


def test_a_mean_that_is_rounded_to_16_bits_before_its_division_is_trained() -> None:
    def rounded(session: Session, model: nn.Module, x: Tensor, y: Tensor) -> None:
        plain(model, x, y).mean().bfloat16().backward()  # the gradient of a scalar is 1, whatever its dtype

    exact = released(20, 1.0, lambda session, model, x, y: session.backward(plain(model, x, y)))
    assert torch.allclose(released(20, 1.0, rounded), exact, atol=1e-5)


def test_a_part_of_the_loss_in_16_bits_that_does_not_come_from_the_model_is_no_reason_to_refuse() -> None:
    met = []

    def joint(session: Session, model: nn.Module, x: Tensor, y: Tensor) -> None:
        met.append(x.bfloat16().requires_grad_())  # the loop asks for a gradient of its own
        (plain(model, x, y).mean() + met[-1].square().float().mean()).backward()

    exact = released(20, 1.0, lambda session, model, x, y: session.backward(plain(model, x, y)))
    assert torch.allclose(released(20, 1.0, joint), exact, atol=1e-5)
    assert met[0].grad is not None


def test_scalars_in_32_and_in_16_bits_that_are_added_count_alike() -> None:
    def added(session: Session, model: nn.Module, x: Tensor, y: Tensor) -> None:
        first = session.loss(plain(model, x, y))  # before anything has shown that 16 bits will come
        (first + session.loss(inside(model, x, y))).backward()

    def once(session: Session, model: nn.Module, x: Tensor, y: Tensor) -> None:
        session.backward(plain(model, x, y) + inside(model, x, y))

    assert torch.allclose(released(20, 100.0, added), released(20, 100.0, once), atol=1e-4)


def test_a_backward_in_16_bits_after_one_that_was_divided_is_refused_with_a_cure_that_works() -> None:
    model, optimizer, session, loader = attach(20)
    x, y = next(iter(loader))
    session.backward(plain(model, x, y))
    session.backward(inside(model, x, y))
    with pytest.raises(UnsupportedModelError, match=r"Add the losses of each example and call session\.backward once"):
        optimizer.step()
    session.discard()
    x, y = next(iter(loader))
    session.backward(plain(model, x, y) + inside(model, x, y))
    optimizer.step()
    assert session.steps == 1


def autocast(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(x)  # type: ignore[no-any-return]


def test_an_examined_mean_in_16_bits_trains_as_its_losses_do() -> None:
    def mean(session: Session, model: nn.Module, x: Tensor, y: Tensor) -> None:
        loss = session.per_example(nn.CrossEntropyLoss())(autocast(model, x), y)
        losses = F.cross_entropy(autocast(model, x), y, reduction="none")
        assert torch.allclose(loss, losses.mean(), rtol=1e-2)
        loss.backward()

    def losses(session: Session, model: nn.Module, x: Tensor, y: Tensor) -> None:
        session.backward(F.cross_entropy(autocast(model, x), y, reduction="none"))

    for clip in (0.1, 100.0):
        assert torch.equal(released(20, clip, mean), released(20, clip, losses))


def test_examined_means_in_16_bits_add_up_with_each_other_and_with_scalars_of_the_session() -> None:
    def added(session: Session, model: nn.Module, x: Tensor, y: Tensor) -> None:
        criterion, out = session.per_example(nn.CrossEntropyLoss()), autocast(model, x).float()
        scalar = session.loss(F.cross_entropy(out, y, reduction="none"))
        (scalar + criterion(out, 1 - y) + criterion(out * 2, y)).backward()

    def once(session: Session, model: nn.Module, x: Tensor, y: Tensor) -> None:
        out = autocast(model, x).float()
        parts = [F.cross_entropy(o, t, reduction="none") for o, t in ((out, y), (out, 1 - y), (out * 2, y))]
        session.backward(sum(parts[1:], parts[0]))

    assert torch.allclose(released(20, 100.0, added), released(20, 100.0, once), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("factor", [0.5, 65536.0])
def test_an_examined_mean_in_16_bits_that_the_loop_scales_is_refused_with_the_cure(factor: float) -> None:
    model, optimizer, session, loader = attach(20)
    x, y = next(iter(loader))
    loss = session.per_example(nn.CrossEntropyLoss())(autocast(model, x), y)
    with pytest.raises(ProtocolError, match="constant factor inside the criterion"):
        (factor * loss).backward()
    optimizer.zero_grad()
    assert session.steps == 0


def test_an_examined_mean_in_16_bits_beside_a_mean_of_the_loop_is_refused() -> None:
    model, optimizer, session, loader = attach(20)
    x, y = next(iter(loader))
    out = autocast(model, x).float()
    (session.per_example(nn.CrossEntropyLoss())(out, y) + F.cross_entropy(out, 1 - y)).backward()
    with pytest.raises(UnsupportedModelError, match="16 bits"):
        optimizer.step()


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "observed"])
def test_losses_without_a_gradient_are_refused_with_the_reason(declared: bool) -> None:
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(1.0), expected_batch_size=5
    )
    session = privatize(model, optimizer, mechanism, key=KeyStream.fixed_for_tests(1))
    dataset = TensorDataset(torch.randn(5, 4), torch.ones(5, dtype=torch.long))
    x, y = dataset.tensors if declared else next(iter(session.batches(dataset)))
    found = plain(model, x, y)
    for without in (found.detach(), torch.ones(5, dtype=torch.long), found.to(torch.complex64)):
        with pytest.raises(ProtocolError, match="no gradient to run back from"):
            session.backward(without)
        if declared:
            session.discard()  # the physical batch is missing, and which ones are may depend on their examples
    with torch.no_grad(), pytest.raises(ProtocolError, match="gradients are off"):
        session.backward(found)
    session.discard() if declared else None
    with session.paused(), pytest.raises(ProtocolError, match="requires_grad is False"):
        session.backward(plain(model, x, y))
    session.discard() if declared else None
    session.backward(found)
    optimizer.step()
    assert session.steps == 1


def test_a_closure_that_closes_the_session_ends_the_step_with_a_typed_error() -> None:
    model, optimizer, session, loader = attach(20)
    x, y = next(iter(loader))

    def closure() -> None:
        session.backward(plain(model, x, y))
        session.close()

    with pytest.raises(ClosedSessionError):
        optimizer.step(closure)  # type: ignore[arg-type]
    assert session.steps == 0
    assert all(parameter.grad is None for parameter in model.parameters())
