"""A loop without a loader of hushgrad's: each `session.backward` is a physical batch that the caller declares."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from private_loops import NO_NOISE, NOISY, attach, losses, same, values

from hushgrad import DisjointBatches, FlatClipping
from hushgrad.errors import PrivacyUnitError, ProtocolError, StrayGradientError
from hushgrad.guards.gradient_marks import shows_nothing


@pytest.mark.parametrize("sizes", [[12], [5, 7], [1] * 12, [8, 0, 4], [0, 12, 0]])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_physical_batches_of_any_sizes_give_the_update_of_the_whole(sizes: list[int], reduction: str) -> None:
    x = torch.randn(12, 3, dtype=torch.float64)
    model, optimizer, session = attach(replace(NO_NOISE, loss_reduction=reduction))
    plain = copy.deepcopy(model)
    for part in x.split(sizes):
        session.backward(losses(model, part) if len(part) else torch.zeros(0))
        assert all(shows_nothing(parameter) for parameter in model.parameters())
    optimizer.step()
    (losses(plain, x).sum() / (8 if reduction == "mean" else 1)).backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert session.steps == 1


def test_an_empty_draw_changes_nothing_without_noise_everything_with_it_and_is_charged() -> None:
    for mechanism, changes in ((NO_NOISE, False), (NOISY, True)):
        model, optimizer, session = attach(mechanism)
        before = values(model)
        session.backward(torch.zeros(0))
        optimizer.step()
        assert session.steps == 1
        assert same(before, values(model)) is not changes


def test_each_example_is_clipped_by_itself_and_not_the_batch() -> None:
    x = torch.randn(12, 3, dtype=torch.float64)
    model, optimizer, session = attach(replace(NO_NOISE, clipping=FlatClipping(0.05), loss_reduction="sum"))
    wanted = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for row in x:
        gradients = torch.autograd.grad(losses(copy_of := copy.deepcopy(model), row[None]).sum(), copy_of.parameters())
        norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients))
        for total, gradient in zip(wanted, gradients, strict=True):
            total += gradient * min(1.0, 0.05 / norm.item())
    before = values(model)
    session.backward(losses(model, x))
    optimizer.step()
    for old, new, total in zip(before, values(model), wanted, strict=True):
        torch.testing.assert_close(old - new, 0.1 * total)


def test_losses_of_another_number_than_the_rows_of_the_model_are_refused() -> None:
    model, optimizer, session = attach()
    before = values(model)
    with pytest.raises(PrivacyUnitError):
        session.backward(losses(model, torch.randn(6, 3).double())[:3])
    with pytest.raises(ProtocolError, match=r"session\.discard"):
        optimizer.step()
    assert same(before, values(model))
    assert session.steps == 0


def test_an_ordinary_backward_without_a_loader_is_refused() -> None:
    model, _, _ = attach()
    with pytest.raises(PrivacyUnitError, match=r"session\.backward"):
        losses(model, torch.randn(4, 3).double()).sum().backward()


def test_a_failed_backward_must_be_discarded_before_the_logical_batch_begins_again() -> None:
    model, optimizer, session = attach()
    x = torch.randn(4, 3).double()
    plain = copy.deepcopy(model)
    session.backward(losses(model, torch.randn(2, 3).double()))
    with pytest.raises(RuntimeError):
        session.backward(torch.zeros(3))  # needs no gradient
    with pytest.raises(ProtocolError, match="did not end"):
        session.backward(losses(model, x))
    session.discard()
    session.backward(losses(model, x))
    optimizer.step()
    (losses(plain, x).sum() / 8).backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_same_graph_cannot_be_counted_twice() -> None:
    model, _, session = attach()
    found = losses(model, torch.randn(4, 3).double())
    session.backward(found)
    with pytest.raises(RuntimeError, match="second time"):
        session.backward(found)


def test_a_stray_gradient_is_refused_without_a_loader_too() -> None:
    model, optimizer, session = attach()
    session.backward(losses(model, torch.randn(4, 3).double()))
    model[0].weight.sum().backward()
    with pytest.raises(StrayGradientError, match=r"0\.weight"):
        optimizer.step()
    assert session.steps == 0


def test_without_a_loader_the_guarantee_says_that_the_sampling_was_declared() -> None:
    model, optimizer, session = attach(NOISY)
    assert "declared by the caller" in str(session.guarantee(1e-5))
    session.backward(losses(model, torch.randn(4, 3).double()))
    optimizer.step()
    assert "declared by the caller" in str(session.guarantee(1e-5))


def test_disjoint_batches_need_a_loader_that_sees_the_passes() -> None:
    mechanism = replace(NOISY, sampling=DisjointBatches())
    model, _, session = attach(mechanism)
    with pytest.raises(ProtocolError, match="where a pass ends"):
        session.backward(losses(model, torch.randn(4, 3).double()))


def test_what_needs_an_item_of_a_loader_is_refused_with_the_way_to_one() -> None:
    model, _, session = attach()
    for call in (session.end_item, lambda: session.loss(losses(model, torch.randn(4, 3).double()))):
        with pytest.raises(ProtocolError, match="session's own loader") as caught:
            call()
        assert "session.batches(dataset)" in caught.value.cure


def test_a_discarded_logical_batch_leaves_nothing_in_the_next_update() -> None:
    x = torch.randn(4, 3).double()
    model, optimizer, session = attach()
    plain = copy.deepcopy(model)
    session.backward(losses(model, torch.randn(7, 3).double()))
    session.discard()
    with pytest.raises(ProtocolError, match="without a backward"):
        optimizer.step()
    session.backward(losses(model, x))
    optimizer.step()
    (losses(plain, x).sum() / 8).backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
