"""The noised update that is made of the clipped sums. Its noise is measured in test_engine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from private_loops import Training
from torch import Tensor, nn

import hushgrad.mechanism.gaussian
import hushgrad.session.update
from hushgrad import DPSGD, ClipRule, FlatClipping, GaussianNoise, Mechanism, Monitor, PoissonSampling, privatize
from hushgrad.errors import InvalidArgumentError, SensitivityMismatchError
from hushgrad.guards.gradient_marks import shows_nothing
from hushgrad.guards.monitoring.monitor import NoisedUpdate
from hushgrad.randomness import KeyStream
from hushgrad.session.draws import SMALL_VALUES
from hushgrad.session.update import Update, _towards_zero

MECHANISM = DPSGD(
    noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.5), expected_batch_size=8
)


def updated(parameters: dict[str, nn.Parameter], seed: int = 1) -> Update:
    return Update(parameters, MECHANISM, KeyStream.fixed_for_tests(seed), None)


def shapes(**sizes: tuple[int, ...]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.zeros(size)) for name, size in sizes.items()}


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}], ids=["plain", "fused", "foreach"])
def test_parameters_in_channels_last_get_updates_in_channels_last(options: dict[str, Any]) -> None:
    """A fused optimizer pairs the raw memory of parameter and gradient, whatever their strides."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2)).to(memory_format=torch.channels_last)
    plain = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, **options)
    session = privatize(model, optimizer, replace(MECHANISM, noise_multiplier=0, clipping=FlatClipping(1e6)))
    x = torch.randn(8, 3, 6, 6)
    session.backward(model(x).square().sum(1))
    optimizer.step()
    (plain(x).square().sum() / 8).backward()
    torch.optim.Adam(plain.parameters(), lr=0.1, **options).step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_layout_and_dtype_of_an_update_are_those_of_its_parameter() -> None:
    parameters = {
        "channels last": nn.Parameter(torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last)),
        "transposed": nn.Parameter(torch.zeros(5, 4).t()),
        "bfloat16": nn.Parameter(torch.zeros(3, dtype=torch.bfloat16)),
        "one number": nn.Parameter(torch.zeros(())),
        "nothing": nn.Parameter(torch.zeros(0)),
    }
    updated(parameters).write(MECHANISM, 0)
    for parameter in parameters.values():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()
        assert parameter.grad.dtype == parameter.dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_sum_without_noise_is_not_made_larger_by_rounding_to_16_bits(dtype: torch.dtype) -> None:
    values = torch.cat([torch.randn(4096), torch.randn(4096) * 1e-6, torch.tensor([0.0, 1e9, -1e9, torch.inf, -1e-9])])
    rounded = _towards_zero(values, dtype)
    assert rounded.dtype == dtype
    assert (rounded.float().abs() <= values.abs()).all()
    assert (rounded.float() * values >= 0).nan_to_num(1).all()
    step = torch.finfo(dtype).eps * values.abs() + torch.finfo(dtype).smallest_normal
    is_held = values.abs() < torch.finfo(dtype).max
    assert ((rounded.float() - values).abs() <= step)[is_held].all()
    narrow = nn.Linear(64, 64).to(dtype)
    optimizer = torch.optim.SGD(narrow.parameters(), lr=0.0)
    session = privatize(
        narrow, optimizer, replace(MECHANISM, noise_multiplier=0, loss_reduction="sum", clipping=FlatClipping(1e-2))
    )
    session.backward(narrow(torch.randn(1, 128, 64, dtype=dtype)).float().square().sum((1, 2)))
    found: list[Tensor] = []
    optimizer.register_step_pre_hook(lambda *_: found.extend(p.grad.double() for p in narrow.parameters()))
    optimizer.step()
    assert 0.9e-2 <= sum(float(part.square().sum()) for part in found) ** 0.5 <= 1e-2 * (1 + 1e-6)
    session.close()


def test_parameters_of_equal_shape_and_equal_parameters_of_later_updates_get_different_noise() -> None:
    """Guarantee: no noise is drawn twice."""
    parameters = shapes(a=(64,), b=(64,))
    update = updated(parameters)
    drawn: list[Tensor] = []
    for _ in range(3):
        update.write(MECHANISM, update.number)
        drawn += [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
        update.clear()
    assert len(drawn) == 6
    values = torch.cat(drawn)
    assert values.unique().numel() == values.numel()


@pytest.mark.parametrize("failure", [MemoryError, KeyboardInterrupt])
def test_a_failed_update_uses_its_number_up(monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]) -> None:
    """Guarantee: an update is written whole or not at all.

    Noise that was drawn and dropped is not drawn again: whoever saw it could take it off the next update."""
    parameters = shapes(a=(64,)) | {"b": nn.Parameter(torch.zeros(64, dtype=torch.float64))}
    update, addresses = updated(parameters), []
    real = hushgrad.mechanism.gaussian.noisy_updates

    def failing(parts: Any, **options: Any) -> list[Tensor]:
        addresses.extend(part.address for part in parts)
        updates = real(parts, **options)
        if len(addresses) == 2:
            raise failure
        return updates

    monkeypatch.setattr(hushgrad.mechanism.gaussian, "noisy_updates", failing)
    with pytest.raises(failure):
        update.write(MECHANISM, update.number)
    assert all(parameter.grad is None for parameter in parameters.values())
    update.write(MECHANISM, update.number)
    assert len(set(addresses)) == len(addresses) == 4


def test_clear_takes_back_what_was_written_and_nothing_else() -> None:
    parameters = shapes(a=(3,))
    update = updated(parameters)
    foreign = torch.ones(3)
    parameters["a"].grad = foreign
    update.clear()
    assert parameters["a"].grad is foreign
    update.write(MECHANISM, update.number)
    update.clear()
    assert parameters["a"].grad is None


def test_an_update_that_somebody_kept_is_not_written_over() -> None:
    """The next update has memory of its own: in the old one, its sums would be readable before their noise."""
    large = SMALL_VALUES + 1
    parameters = shapes(large=(large,), small=(3,), also=(2, 2))
    update, kept = updated(parameters), []
    for _ in range(2):
        update.write(MECHANISM, update.number)
        kept.append([parameter.grad for parameter in parameters.values()])
        if len(kept) == 1:
            copies = [None if grad is None else grad.clone() for grad in kept[0]]
    for grad, copy_of_it in zip(kept[0], copies, strict=True):
        assert grad is not None
        assert copy_of_it is not None
        assert torch.equal(grad, copy_of_it)


def test_parameters_with_one_sum_in_one_memory_get_noise_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large sums are overwritten with their noise; not those that share memory, with each other or with a view."""
    size = SMALL_VALUES + 1
    shared, wider = torch.full((size,), 5.0), torch.full((size + 1,), 5.0)
    sums = {"a": shared, "b": shared, "view": wider[:size], "alone": torch.full((size,), 5.0)}
    monkeypatch.setattr(hushgrad.session.update, "clipped_sums", lambda *_, **__: dict(sums))
    parameters = shapes(**dict.fromkeys(sums, (size,)))
    update = updated(parameters)
    update.add({}, 1.0, MECHANISM, 0)
    update.write(MECHANISM, update.number)
    assert (shared == 5).all()
    assert (wider == 5).all()
    grads = {name: parameter.grad for name, parameter in parameters.items()}
    for name, grad in grads.items():
        assert grad is not None, name
        # mean of 65,537 values, std 1/8 each; 8 standard errors
        assert abs(float(grad.mean()) - 5 / 8) < 8 / 8 / size**0.5
    assert not torch.equal(grads["a"], grads["b"])
    assert grads["alone"].data_ptr() == sums["alone"].data_ptr()


def test_small_parameters_get_their_own_parts_of_a_shared_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each parameter gets its own sum, in its shape, and noise that no other one gets."""
    sums = {"a": torch.full((4, 3), 1e3), "b": torch.full((5,), 2e3), "c": torch.tensor(3e3), "d": torch.zeros(0, 2)}
    sums["e"] = torch.arange(12.0).reshape(3, 4).t() * 1e3
    expected = {name: value / 8 for name, value in sums.items()}
    monkeypatch.setattr(hushgrad.session.update, "clipped_sums", lambda *_, **__: dict(sums))
    parameters = shapes(**{name: tuple(value.shape) for name, value in sums.items()})
    update = updated(parameters)
    update.add({}, 1.0, MECHANISM, 0)
    update.write(MECHANISM, update.number)
    noise = []
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        assert parameter.grad.shape == parameter.shape
        noise.append((parameter.grad - expected[name]).flatten())
    together = torch.cat(noise)
    assert (together.abs() < 10 / 8).all()
    assert (together.abs() > 0).all()
    assert together.unique().numel() == together.numel()


def test_one_small_parameter_alone_leaves_memory_that_others_read_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sum may be a part of a larger tensor: noise goes into a copy."""
    memory = torch.full((6,), 1e3)
    monkeypatch.setattr(hushgrad.session.update, "clipped_sums", lambda *_, **__: {"a": memory[:3]})
    update = updated(shapes(a=(3,)))
    update.add({}, 1.0, MECHANISM, 0)
    update.write(MECHANISM, update.number)
    assert torch.equal(memory, torch.full((6,), 1e3))


def test_grad_shows_nothing_from_backward_to_the_end_of_the_logical_batch_and_is_none_after_every_step() -> None:
    training = Training(noise_multiplier=1.0)
    seen: list[bool] = []
    training.optimizer.register_step_pre_hook(
        lambda *_: seen.append(all(gradient is not None for gradient in training.gradients()))
    )
    for item in training.loader:
        training.loss(item).backward()
        assert all(shows_nothing(parameter) for parameter in training.model.parameters())
        training.optimizer.step()
        assert training.gradients() == [None] * 4
        assert seen[-1] == training.engine.last_step_updated
    assert seen == [False, False, True] * 3


def test_parameters_stay_as_they_are_until_the_logical_batch_ends() -> None:
    training = Training(noise_multiplier=1.0, optimizer=lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1))
    before = training.values()
    for item in training.loader:
        training.work(item)
        if training.engine.last_step_updated:
            assert not training.is_as(before)
            before = training.values()
        assert training.is_as(before)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_before_a_backward_and_after_a_step_is_harmless(set_to_none: bool) -> None:
    calm, nervous = Training(), Training()
    nervous.model.load_state_dict(calm.model.state_dict())
    nervous.loader.dataset.tensors = calm.loader.dataset.tensors
    for item in calm.loader:
        calm.work(item)
    for item in nervous.loader:
        nervous.optimizer.zero_grad(set_to_none)
        loss = nervous.loss(item)
        nervous.model.zero_grad(set_to_none)
        loss.backward()
        nervous.optimizer.step()
        nervous.optimizer.zero_grad(set_to_none)
    assert calm.is_as(nervous.values())


def test_clip_grad_norm_between_backward_and_step_sees_and_changes_nothing() -> None:
    plain, clipped = Training(physical=None), Training(physical=None)
    clipped.model.load_state_dict(plain.model.state_dict())
    clipped.loader.dataset.tensors = plain.loader.dataset.tensors
    for item in plain.loader:
        plain.work(item)
    for item in clipped.loader:
        clipped.loss(item).backward()
        norm = nn.utils.clip_grad_norm_(clipped.model.parameters(), 1e-3)
        assert norm == 0
        nn.utils.clip_grad_value_(clipped.model.parameters(), 1e-3)
        clipped.optimizer.step()
    assert plain.is_as(clipped.values())


@dataclass(frozen=True)
class Listed(ClipRule):
    """Its constant stands in a list, which a frozen dataclass does not freeze, and two of them are always equal."""

    kept: list[float] = field(compare=False)

    @property
    def sensitivity(self) -> float:
        return self.kept[0]

    def limits(self, count: int) -> list[float]:
        return [self.sensitivity] * count

    def factors(self, norms_GB: Tensor) -> Tensor:
        return (self.sensitivity / norms_GB).clamp(max=1)

    def scaled(self, factor: float) -> Listed:
        return Listed([self.sensitivity * factor])

    def reference(self, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError


def one_large_example(mechanism: DPSGD, before_step: Callable[[int], None] = lambda number: None) -> list[float]:
    """Return the norm of what one example moved the weights by, step by step, times B: what it added to the sum."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    session = privatize(model, optimizer, mechanism)
    found = []
    for number in range(mechanism.steps or 1):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        session.backward(100 * (model(torch.ones(1, 3)) - 9).square().sum(1))
        before_step(number)
        optimizer.step()
        moved = [old - new.detach() for old, new in zip(before, model.parameters(), strict=True)]
        found.append(4 * float(torch.cat([part.flatten() for part in moved]).norm()))
    session.close()
    return found


def listed(sigma: float, **changes: Any) -> tuple[DPSGD, list[float]]:
    rule = Listed([1.0])
    sampling = PoissonSampling(0.1)
    return DPSGD(noise_multiplier=sigma, clipping=rule, sampling=sampling, expected_batch_size=4, **changes), rule.kept


def test_each_step_is_clipped_to_what_its_noise_is_made_for_whatever_a_rule_calls_equal() -> None:
    mechanism, _ = listed(1e-9, clip_schedule=(1.0, 0.1, 2.0))
    assert one_large_example(mechanism) == pytest.approx([1.0, 0.1, 2.0], rel=1e-4)


def test_a_rule_that_changes_after_the_backward_does_not_change_the_noise() -> None:
    seen: list[float] = []

    class Sees(Monitor):
        def see(self, update: NoisedUpdate) -> None:
            seen.append(update.mechanism.noise_std)

    mechanism, kept = listed(1.0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    session = privatize(model, optimizer, mechanism, monitors=[Sees()])
    session.backward(100 * (model(torch.ones(1, 3)) - 9).square().sum(1))
    kept[0] = 1e-6
    optimizer.step()
    assert seen == [1.0]
    session.close()


def test_a_rule_that_grew_since_its_mechanism_was_made_is_refused() -> None:
    mechanism, kept = listed(1.0)
    kept[0] = 5.0
    with pytest.raises(SensitivityMismatchError, match="more than the sensitivity 1 that the noise is made from"):
        one_large_example(mechanism)


@pytest.mark.parametrize("part", ["rule", "noise"])
def test_a_rule_or_noise_that_fails_at_set_up_leaves_an_ordinary_model(part: str) -> None:
    class NoGroups(Listed):
        def groups(self, names: Sequence[str]) -> list[list[str]]:
            return []

    class NoStart(GaussianNoise):
        def start(self, stream: KeyStream) -> KeyStream:
            raise ZeroDivisionError

    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    rule = dataclass(frozen=True)(NoGroups)([1.0]) if part == "rule" else FlatClipping(1.0)
    noise = NoStart(1.0) if part == "noise" else GaussianNoise(1.0)
    wrong = Mechanism(noise=noise, clipping=rule, sampling=PoissonSampling(0.1), expected_batch_size=4)
    with pytest.raises((InvalidArgumentError, ZeroDivisionError)):
        privatize(model, optimizer, wrong)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    model(torch.ones(2, 3)).sum().backward()
    assert model.weight.grad is not None
    optimizer.zero_grad()
    privatize(model, optimizer, listed(1.0)[0]).close()
