"""The sampled check of clipped contributions: silent in correct training, and ends training where clipping is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hushgrad
from hushgrad.accounting import read_ledger
from hushgrad.accounting.ledger.view import LedgerView
from hushgrad.clipping.flat import FlatClipping
from hushgrad.clipping.rule import ClipRule
from hushgrad.errors import SensitivityMismatchError
from hushgrad.gradients import clipped_sum
from hushgrad.guards.monitoring.sensitivity import SensitivityMonitor
from hushgrad.mechanism import DPSGD


def train(count: int, path: Path, scale: float = 10.0, clipping: ClipRule = FlatClipping(0.3)) -> None:  # noqa: B008
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(24, 8), nn.Tanh(), nn.LayerNorm(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    mechanism = DPSGD(
        noise_multiplier=1.0,
        clipping=clipping,
        sampling=hushgrad.PoissonSampling(0.1),
        expected_batch_size=16,
    )
    session = hushgrad.privatize(model, optimizer, mechanism, ledger=path)
    try:
        for _ in range(count):
            session.backward(scale * (model(torch.randint(9, (16, 4))) - 1).square().sum(1))
            optimizer.step()
    finally:
        session.close()


def verdict(view: LedgerView) -> object:
    """Return what the monitor said last."""
    return [note.values["verdict"] for note in view.notes if note.about == "sensitivity monitor"][-1]


@pytest.mark.parametrize("scale", [1e-3, 10.0, 1e6])
def test_correct_training_raises_no_alarm_and_the_ledger_says_so(tmp_path: Path, scale: float) -> None:
    train(102, tmp_path / "ledger.jsonl", scale)
    note = read_ledger(tmp_path / "ledger.jsonl").notes[-1]
    assert (note.about, note.steps) == ("sensitivity monitor", 102)
    assert note.values == {"steps_sampled": 2, "verdict": "within the clip norm"}


def test_the_first_and_every_hundredth_update_is_looked_at() -> None:
    assert [number for number in range(301) if SensitivityMonitor.is_due(number)] == [0, 100, 200, 300]


@pytest.mark.parametrize("factor", [1.01, 2.0])
def test_an_example_above_the_clip_norm_ends_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, factor: float
) -> None:
    """Guarantee: of every hundredth update one example is checked, of those nearest to the clip norm, and one that adds
    more ends training with an error.
    """
    right = FlatClipping.factors

    def too_large(self: FlatClipping, norms_B: Tensor) -> Tensor:
        return factor * right(self, norms_B)

    monkeypatch.setattr(FlatClipping, "factors", too_large)
    with pytest.raises(SensitivityMismatchError, match="more than the clip norm"):
        train(1, tmp_path / "ledger.jsonl")
    view = read_ledger(tmp_path / "ledger.jsonl")
    assert view.steps == 0
    assert verdict(view) == "above the clip norm"


def test_a_norm_that_was_measured_too_small_ends_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The look at every step goes by the norms that were measured; this one measures again."""
    right = clipped_sum._measure
    monkeypatch.setattr(clipped_sum, "_measure", lambda *given: right(*given) / 100)
    with pytest.raises(SensitivityMismatchError, match=r"more than the clip norm.*kinds of layers"):
        train(1, tmp_path / "ledger.jsonl")
    view = read_ledger(tmp_path / "ledger.jsonl")
    assert (view.steps, verdict(view)) == (0, "above the clip norm")


# Factors that depend on other examples -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Own(ClipRule):
    """Each layer to the same share of C; `shared` makes one number for the batch that factors are multiplied with."""

    sensitivity: float = 0.3
    shared: Callable[[Tensor], Tensor | float] = lambda norms_GB: 1.0

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        return [[name] for name in names]

    def limits(self, count: int) -> list[float]:
        return [self.sensitivity / count**0.5] * count

    def factors(self, norms_GB: Tensor) -> Tensor:
        return (self.limits(len(norms_GB))[0] / norms_GB).clamp(max=1) * self.shared(norms_GB)

    def scaled(self, factor: float) -> Own:
        return Own(self.sensitivity * factor, self.shared)

    def reference(self, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError

    def describe(self) -> str:
        return f"Own({self.sensitivity!r})"


@pytest.mark.parametrize(
    "shared",
    [
        lambda norms: 1 / norms.shape[1],
        lambda norms: norms.min() / norms.max(),
        lambda norms: 1 / (1 + norms.mean()),
        lambda norms: (norms / norms.amax(1, keepdim=True)).clamp(max=1),
        lambda norms: torch.arange(norms.shape[1]) / norms.shape[1],
    ],
    ids=["size", "extremes", "mean", "largest of a group", "place"],
)
def test_a_factor_that_depends_on_other_examples_ends_training(
    shared: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    """Guarantee: a clip rule that gives an example another factor beside others than alone ends training with an
    error.
    """
    with pytest.raises(SensitivityMismatchError, match="another factor beside others than alone"):
        train(1, tmp_path / "ledger.jsonl", clipping=Own(shared=shared))
    view = read_ledger(tmp_path / "ledger.jsonl")
    assert (view.steps, verdict(view)) == (0, "factors depend on other examples")


@pytest.mark.parametrize("scale", [1e-3, 10.0, 1e6])
def test_a_rule_of_factors_of_their_own_raises_no_alarm(tmp_path: Path, scale: float) -> None:
    for shared in (lambda norms: 1.0, lambda norms: norms / (norms + 1), lambda norms: 0.5 + 0.5 * norms.cos()):
        train(2, tmp_path / "ledger.jsonl", scale, clipping=Own(shared=shared))
    assert verdict(read_ledger(tmp_path / "ledger.jsonl")) == "within the clip norm"


def beside_the_first(norms_GB: Tensor) -> Tensor:
    """A factor that shows itself beyond the examples that are asked for alone."""
    shared = torch.ones_like(norms_GB[:1])
    shared[:, 8:] = 1 / (1 + norms_GB[:, :1].mean())
    return shared


def of_the_largest(norms_GB: Tensor) -> Tensor:
    """Only the example of the largest norm is left out, which is the last of the batch."""
    norms_B = norms_GB.sum(0, keepdim=True)
    place = norms_B.argmax()
    return torch.ones_like(norms_B).index_fill(1, place, 0.5) if norms_B.shape[1] > 1 else torch.ones_like(norms_B)


@pytest.mark.parametrize("shared", [beside_the_first, of_the_largest])
def test_a_factor_that_depends_on_others_is_seen_at_every_place(shared: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    mechanism = DPSGD(
        noise_multiplier=1.0,
        clipping=Own(shared=shared),
        sampling=hushgrad.PoissonSampling(0.1),
        expected_batch_size=16,
    )
    session = hushgrad.privatize(model, optimizer, mechanism)
    with pytest.raises(SensitivityMismatchError, match="another factor beside others than alone"):
        session.backward(model(torch.arange(1.0, 34).unsqueeze(1).expand(33, 3)).square().sum(1))
    session.close()


@pytest.mark.parametrize("size", [1, 2, 8, 9, 10, 33])
def test_a_rule_that_is_right_raises_no_alarm_in_batches_of_any_size(size: int) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=Own(), sampling=hushgrad.PoissonSampling(0.1), expected_batch_size=16
    )
    session = hushgrad.privatize(model, optimizer, mechanism)
    session.backward(model(torch.randn(size, 3)).square().sum(1))
    optimizer.step()
    session.close()
