"""The clip norm of an adaptive rule while it trains: what is counted, when it moves, and that it comes back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad
from hushgrad import (
    DPSGD,
    FlatClipping,
    GaussianNoise,
    PoissonSampling,
    PrivacyEngine,
    QuantileClipping,
    Session,
    privatize,
)
from hushgrad.accounting import PoissonSampled, read_ledger
from hushgrad.clipping.adaptation import gradient_noise_multiplier
from hushgrad.errors import CheckpointError, InvalidArgumentError, NoiseMismatchError

B, RULE = 20, QuantileClipping(1.0, quantile=0.6, learning_rate=0.5, count_noise_multiplier=2.0)


class Linear(nn.Module):
    """Its loss has gradients of the norm ‖x‖ in `weight`; `wide` is there for its noise."""

    def __init__(self, values: int = 1) -> None:
        super().__init__()
        self.weight, self.wide = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(values))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def session_of(
    sigma: float, values: int = 1, key: int | None = None, **settings: Any
) -> tuple[Session, Linear, torch.optim.Optimizer]:
    model = Linear(values)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    planned: dict[str, Any] = {"clipping": RULE, "sampling": PoissonSampling(0.1), "expected_batch_size": B, **settings}
    stream = None if key is None else hushgrad.randomness.KeyStream.fixed_for_tests(key)
    return privatize(model, optimizer, DPSGD(noise_multiplier=sigma, **planned), key=stream), model, optimizer


def rows(*norms: float) -> Tensor:
    return torch.tensor([[norm, 0.0, 0.0, 0.0] for norm in norms])


def test_the_count_is_of_all_physical_batches_and_the_norm_moves_with_the_update() -> None:
    session, model, optimizer = session_of(0.0)
    for part in (rows(0.5, 2.0, 3.0), rows(1.0, 1.01), rows(0.0)):
        session.backward(model(part))
    assert session.clip_norm == 1.0
    optimizer.step()
    assert session.written.count == 0.5 * (3 - 3)
    assert session.clip_norm == pytest.approx(math.exp(-0.5 * (0.5 - 0.6)))
    norm = session.clip_norm
    session.backward(model(rows(1.04, 1.06, 1.06)))  # between them: the norm of this step is what counts
    optimizer.step()
    assert session.written.count == -0.5
    assert session.clip_norm == pytest.approx(norm * math.exp(-0.5 * (0.5 - 0.5 / B - 0.6)))
    session.close()


def test_an_example_that_is_not_finite_counts_as_one_above_the_norm_whoever_is_beside_it() -> None:
    session, model, optimizer = session_of(0.0)
    for norms, count in (
        ((math.nan,), -0.5), ((math.inf, 0.5), 0.0), ((math.nan, math.inf, 0.5, 0.5), 0.0), ((1e30, 1e-30), 0.0),
        ((), 0.0),
    ):  # fmt: skip
        session.backward(model(rows(*norms)) if norms else torch.zeros(0))
        optimizer.step()
        assert session.written.count == count
    session.close()


def test_examples_that_used_no_parameter_count_with_norm_0() -> None:
    session, _, _ = session_of(0.0)
    update = session._parts.update
    update.add({}, 1.0, session._parts.current, 3)
    update.write(session._parts.current, 0)
    assert update.written.count == 1.5
    session.close()


def test_what_was_counted_goes_with_a_logical_batch_that_is_discarded() -> None:
    session, model, optimizer = session_of(0.0)
    session.backward(model(rows(0.5, 0.5)))
    session.discard()
    session.backward(model(rows(2.0)))
    optimizer.step()
    assert session.written.count == -0.5
    session.close()


def test_padding_and_the_example_of_an_empty_draw_are_not_counted() -> None:
    model = Linear()
    engine = PrivacyEngine(test_key=3)
    data = TensorDataset(torch.randn(60, 4))
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        data_loader=DataLoader(data, batch_size=2),
        noise_multiplier=0.0,
        clipping=QuantileClipping(1e6, learning_rate=1e-9),  # all are below it
        max_physical_batch_size=4,
        constant_shapes=True,
    )
    drawn, seen = 0, []
    for (x,) in loader:
        drawn += len(engine.session.current_batch.indices)  # type: ignore[union-attr]
        engine.session.backward(model(x))
        optimizer.step()
        if engine.last_step_updated:
            seen.append((engine.session.written.count, drawn / 2))
            drawn = 0
    assert all(count == half for count, half in seen)
    assert min(half for _, half in seen) == 0 < max(half for _, half in seen)
    engine.session.close()


@pytest.mark.statistical
def test_clip_noise_and_count_of_a_step_use_one_norm() -> None:
    """Guarantee: clip, noise and count of a step use one norm, which follows from noised counts of earlier steps alone.

    20,000 values of noise a step: the standard deviation to 0.5%, five of which are 2.5%, false alarms below 1e-5.
    The count is read 60 times: its standard deviation to 9%, five of which are 46%.
    """
    session, model, optimizer = session_of(1.5, 20_000, key=4)
    rounds: list[float] = []
    sigma_g = gradient_noise_multiplier(1.5, 2.0)
    for step in range(60):
        norm = session.clip_norm
        session.backward(model(rows(1e3)))
        optimizer.step()
        written = session.written
        assert written.count is not None
        assert written.noise_std == pytest.approx(dict.fromkeys(("weight", "wide"), sigma_g * norm))
        assert written.count_std == pytest.approx(2.0)
        rounds.append(written.count + 0.5)
        if step < 3:
            assert model.wide.grad is None  # taken away after the step
        assert session.clip_norm == pytest.approx(norm * math.exp(-0.5 * (0.5 + written.count / B - 0.6)))
    seen: list[Tensor] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(model.wide.grad.clone()))  # type: ignore[union-attr]
    for _ in range(3):
        norm = session.clip_norm
        session.backward(torch.zeros(0))
        optimizer.step()
        assert float(seen[-1].std()) * B == pytest.approx(sigma_g * norm, rel=0.025)
    assert float(torch.tensor(rounds).square().mean().sqrt()) == pytest.approx(2.0, rel=0.46)
    assert session.noise_monitor.verdict == "as charged"
    session.close()


def test_the_ledger_names_all_constants_and_is_charged_the_noise_multiplier(tmp_path: Path) -> None:
    model = Linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    planned = DPSGD(noise_multiplier=1.5, clipping=RULE, sampling=PoissonSampling(0.1), expected_batch_size=B)
    for _ in range(2):  # the norm has moved when the second session asks for the same contract
        session = privatize(model, optimizer, planned, ledger=tmp_path / "ledger")
        for _ in range(3):
            session.backward(model(rows(0.5, 2.0)))
            optimizer.step()
        session.close()
    view = read_ledger(tmp_path / "ledger")
    assert view.events == [(PoissonSampled(0.1, 1.5), 6)]
    assert view.contract.clipping == (
        "QuantileClipping(max_grad_norm=1.0, quantile=0.6, learning_rate=0.5, count_noise_multiplier=2.0)"
    )
    assert view.contract.max_grad_norm == 1.0


def test_too_little_noise_on_the_count_of_any_planned_step_is_refused_at_set_up() -> None:
    with pytest.raises(InvalidArgumentError, match=r"must be above 2\.25"):
        session_of(1.5, noise_schedule=(1.0, 3.0))
    session_of(1.5, noise_schedule=(1.0, 2.0))[0].close()


def test_a_count_without_noise_ends_training(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = GaussianNoise.updates

    def bare(self: GaussianNoise, state: Any, totals: Any, **how: Any) -> list[Tensor]:
        one = {place: part.total / how["divisor"] for place, part in enumerate(totals) if part.total.numel() == 1}
        found = whole(self, state, totals, **how)
        return [one.get(place, update) for place, update in enumerate(found)]

    monkeypatch.setattr(GaussianNoise, "updates", bare)
    session, _, optimizer = session_of(1.5, 20)
    session.backward(torch.zeros(0))
    with pytest.raises(NoiseMismatchError, match="the noise of a step was 0 times what is charged"):
        optimizer.step()
    session.close()


# Coming back ---------------------------------------------------------------------------------------------------------


def trained(path: Path, clipping: Any = RULE) -> tuple[Session, Linear, torch.optim.Optimizer]:
    model = Linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    planned = DPSGD(noise_multiplier=1.5, clipping=clipping, sampling=PoissonSampling(0.1), expected_batch_size=B)
    return privatize(model, optimizer, planned, ledger=path), model, optimizer


def test_the_norm_comes_back_with_a_checkpoint_and_with_a_state(tmp_path: Path) -> None:
    session, model, optimizer = trained(tmp_path / "ledger")
    for _ in range(3):
        session.backward(model(rows(0.5, 2.0)))
        optimizer.step()
    session.save_checkpoint(tmp_path / "checkpoint")
    state, norm = session.state_dict(), session.clip_norm
    session.backward(model(rows(2.0)))
    optimizer.step()
    assert session.clip_norm != norm
    session.close()
    for how in ("checkpoint", "state"):
        session, _, _ = trained(tmp_path / "ledger")
        assert session.clip_norm == 1.0
        lost = (
            session.load_checkpoint(tmp_path / "checkpoint").lost_steps
            if how == "checkpoint"
            else session.load_state_dict(state)
        )
        assert (lost, session.clip_norm) == (1, norm)
        session.close()


def test_a_checkpoint_without_a_norm_is_refused_before_anything_is_changed(tmp_path: Path) -> None:
    session, model, optimizer = trained(tmp_path / "flat", FlatClipping(1.0))
    session.backward(model(rows(1.0)))
    optimizer.step()
    session.save_checkpoint(tmp_path / "checkpoint")
    session.close()
    session, model, optimizer = trained(tmp_path / "ledger")
    session.backward(model(rows(1.0)))
    optimizer.step()
    before, state = model.weight.detach().clone(), session.state_dict()
    with pytest.raises(CheckpointError, match="holds no clip norm, and the clip norm of this training is adaptive"):
        session.load_checkpoint(tmp_path / "checkpoint")
    assert torch.equal(model.weight, before)
    session.close()
    session, _, _ = trained(tmp_path / "flat", FlatClipping(1.0))
    with pytest.raises(CheckpointError, match=r"the norm of an adaptive clip rule, and the clip norm .* is fixed"):
        session.load_state_dict(state)
    with pytest.raises(CheckpointError, match="its receipt was damaged or edited"):
        session.load_state_dict({**state, "clip_norm": "much"})
    session.close()
