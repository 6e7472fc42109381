"""A release gets the noise that is charged, after the charge, and its answer is made of that alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import nn

from hushgrad import release
from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.events.event import ADD_REMOVE_ONE, RELATIONS, REPLACE_ONE, ZERO_OUT
from hushgrad.accounting.events.gaussian import Gaussian
from hushgrad.accounting.gaussian import gaussian_epsilon
from hushgrad.accounting.guarantee import guarantee
from hushgrad.accounting.ledger.contract import DECLARED, FIXED_KEY, OPERATING_SYSTEM, Contract
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.errors import ContractChangedError, InvalidArgumentError, LedgerError
from hushgrad.randomness import KeyStream
from hushgrad.releases import Accuracy, Count, Histogram, LeastSquares, Mean, Normalisation, Sum, Tally
from hushgrad.releases.releasing import Asked

DELTA = 1e-6
ALMOST_NONE = 2.0**-12
"""A noise multiplier that shows what the answer is without noise; it protects nothing."""


def account(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


# Noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm", [1e-6, 3.0, 1e9])
def test_the_noise_has_the_standard_deviation_of_sigma_times_the_sensitivity(clip_norm: float) -> None:
    """A χ² test of 20,000 values at a fixed key; false alarm 1e-6."""
    asked = Asked.of(Sum(20_000, clip_norm), [0], ADD_REMOVE_ONE, 1.7, None, None)
    found = asked.released(torch.zeros(20_000, dtype=torch.float64), KeyStream.fixed_for_tests(3))
    assert found.noise_std == pytest.approx(1.7 * clip_norm * (1 + 2.0**-12), rel=1e-12)
    statistic = float((found.noised / found.noise_std).square().sum())
    low, high = stats.chi2(20_000).ppf([5e-7, 1 - 5e-7])
    assert low < statistic < high


def test_two_releases_have_noise_of_their_own(tmp_path: Path) -> None:
    one, other = (
        release(Sum(50, 1.0), [torch.zeros(50)], ledger=account(tmp_path), noise_multiplier=1.0) for _ in range(2)
    )
    assert not torch.isclose(one.noised, other.noised).any()


def test_what_is_released_is_a_whole_number_of_cells() -> None:
    asked = Asked.of(Sum(100, 1.0), [0], ADD_REMOVE_ONE, 1.0, None, None)
    total = torch.rand(100, dtype=torch.float64) / 3
    cells = asked.released(total, KeyStream.fixed_for_tests(1)).noised / asked.noise.spacing(1.0)
    assert torch.equal(cells, cells.round())


def test_counting_one_thousand_at_sigma_ten_is_right_to_one_percent(tmp_path: Path) -> None:
    """Noise of 10 records on N = 1,000: within 5 standard deviations but for 6e-7 of all times."""
    model = nn.Linear(4, 2)
    records = [(x, int(x.sum() > 0)) for x in torch.randn(1000, 4)]
    with torch.no_grad():
        right = (model(torch.stack([x for x, _ in records])).argmax(1) == torch.tensor([y for _, y in records])).sum()
    found = release(Accuracy(model), records, ledger=account(tmp_path), noise_multiplier=10.0)
    assert found.noise_std / 1000 == pytest.approx(0.01, rel=1e-3)
    assert abs(found.answer - float(right) / 1000) < 0.05
    assert found.epsilon(DELTA) == pytest.approx(gaussian_epsilon(0.01, DELTA), rel=1e-9)


# Answers ---------------------------------------------------------------------------------------------------------


def answer(query: Any, data: Any, tmp_path: Path) -> Any:
    return release(query, data, ledger=account(tmp_path), noise_multiplier=ALMOST_NONE).answer


def test_without_noise_answers_are_those_of_plain_arithmetic(tmp_path: Path) -> None:
    x = torch.randn(500, 3, dtype=torch.float64).clamp(-3, 3)
    records = [(row, int(row[0] > 0)) for row in x]
    torch.testing.assert_close(answer(Sum(3, 9.0), x, tmp_path), x.sum(0), atol=0.02, rtol=0)
    torch.testing.assert_close(answer(Mean(3, 9.0, centre=0.5), x, tmp_path), x.mean(0), atol=1e-4, rtol=0)
    counts = answer(Histogram(categories=[1, 0], of=lambda r: r[1]), records, tmp_path)
    assert counts.round().tolist() == [(x[:, 0] > 0).sum(), (x[:, 0] <= 0).sum(), 0]
    bins = answer(Histogram(edges=[-1.0, 1.0], of=lambda r: r[0]), x, tmp_path)
    first = x[:, 0]
    assert bins.round().tolist() == [(first < -1).sum(), ((first >= -1) & (first < 1)).sum(), (first >= 1).sum()]
    tags = [[0], [0, 1, 0], [1, 2, 3, 0], [], [9, -1, 1.5, math.nan]]
    told = answer(Tally(5, 3), tags, tmp_path)  # of the third record three bins count, of the last one none
    half, third = 0.5**0.5, (1 / 3) ** 0.5
    torch.testing.assert_close(
        told, torch.tensor([1 + half, half + third, third, third, 0.0]).double(), atol=0.01, rtol=0
    )
    assert round(answer(Count(of=lambda r: r[1] == 1), records, tmp_path)) == int((first > 0).sum())
    scale = answer(Normalisation(low=[-3] * 3, high=[3] * 3), x, tmp_path)
    torch.testing.assert_close(scale.mean, x.mean(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(scale.std, x.std(0, correction=0), atol=1e-3, rtol=0)
    weights = torch.randn(3, 2, dtype=torch.float64)
    query = LeastSquares(3, 2, feature_norm=6.0, target_norm=50.0, of=lambda r: (r, r @ weights), ridge=1e-9)
    torch.testing.assert_close(answer(query, x, tmp_path), weights, atol=0.05, rtol=0)


def test_a_head_by_least_squares_learns_two_classes_at_epsilon_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, 5)
    records = [(torch.cat([row, torch.ones(1)]), nn.functional.one_hot((row.sum() > 0).long(), 2)) for row in x]
    found = release(LeastSquares(6, 2, feature_norm=3.0), records, ledger=account(tmp_path), epsilon=1.0, delta=DELTA)
    guesses = (torch.stack([r for r, _ in records]).double() @ found.answer).argmax(1)
    assert float((guesses == (x.sum(1) > 0).long()).double().mean()) > 0.85
    assert 0.99 < found.epsilon(DELTA) <= 1.0


def test_a_mean_with_no_information_stays_at_its_public_centre(tmp_path: Path) -> None:
    """Records that are not finite add nothing, and the divisor is N, which is public."""
    values = torch.full((400, 2), math.nan)
    torch.testing.assert_close(
        answer(Mean(2, 1.0, centre=[5.0, 7.0]), values, tmp_path).float(), torch.tensor([5.0, 7.0]), atol=1e-4, rtol=0
    )


# The account -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_release_costs_what_a_step_over_all_records_costs(tmp_path: Path, relation: str) -> None:
    release(Sum(1, 1.0), [1.0], ledger=account(tmp_path), noise_multiplier=2.0, adjacency=relation)
    view = read_ledger(account(tmp_path))
    sigma = 2.0 if relation != REPLACE_ONE else 1.0  # a replacement moves the sum by 2C
    assert epsilon(view.events, DELTA) == pytest.approx(epsilon([(Gaussian(sigma), 1)], DELTA), rel=1e-12)
    held = guarantee(view.events, DELTA, contract=view.contract, conditions=view.conditions)
    assert held.adjacency == relation
    assert held.steps == view.steps == 0
    assert "every record in 1 release of a statistic" in str(held)
    assert [condition.name for condition in held.conditions if condition.name == "read by itself"]
    assert 0 < held.delta_of_rounding < 1e-20


def test_an_account_goes_on_under_its_own_relation(tmp_path: Path) -> None:
    release(Sum(1, 1.0), [1.0], ledger=account(tmp_path), noise_multiplier=2.0, adjacency=ZERO_OUT)
    release(Sum(1, 1.0), [1.0], ledger=account(tmp_path), noise_multiplier=2.0)
    assert {event.adjacency for event, _ in read_ledger(account(tmp_path)).events} == {ZERO_OUT}
    with pytest.raises(ContractChangedError, match="zero-out"):
        release(Sum(1, 1.0), [1.0], ledger=account(tmp_path), noise_multiplier=2.0, adjacency=ADD_REMOVE_ONE)


@pytest.mark.parametrize(
    "contract",
    [
        Contract(DECLARED, OPERATING_SYSTEM, unit="one hospital"),
        Contract(DECLARED, FIXED_KEY),
    ],
    ids=["unit", "fixed key"],
)
def test_an_account_of_another_unit_or_of_a_test_is_refused(tmp_path: Path, contract: Contract) -> None:
    Ledger(account(tmp_path), contract=contract).close()
    before = account(tmp_path).read_bytes()
    with pytest.raises(ContractChangedError):
        release(Sum(1, 1.0), [1.0], ledger=account(tmp_path), noise_multiplier=2.0)
    assert account(tmp_path).read_bytes() == before


def test_noise_is_drawn_only_after_the_charge_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    charge, drawn = Ledger.charge, Asked.released
    monkeypatch.setattr(Ledger, "charge", lambda *a, **k: (order.append("charge"), charge(*a, **k))[1])
    monkeypatch.setattr(Asked, "released", lambda *a, **k: (order.append("noise"), drawn(*a, **k))[1])
    release(Sum(1, 1.0), [1.0], ledger=account(tmp_path), noise_multiplier=2.0)
    assert order == ["charge", "noise"]

    def failing(*_: Any, **__: Any) -> None:
        raise LedgerError("the disk is full", where="the ledger", cure="")

    monkeypatch.setattr(Ledger, "charge", failing)
    with pytest.raises(LedgerError):
        release(Sum(1, 1.0), [1.0], ledger=account(tmp_path), noise_multiplier=2.0)
    assert order == ["charge", "noise"]


def test_what_is_refused_costs_nothing(tmp_path: Path) -> None:
    for wrong in (
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {},
        {"epsilon": 1.0},
        {"noise_multiplier": 1.0, "epsilon": 1.0, "delta": DELTA},
        {"noise_multiplier": 1.0, "adjacency": "some"},
    ):
        with pytest.raises(InvalidArgumentError):
            release(Sum(1, 1.0), [1.0], ledger=account(tmp_path), **wrong)  # type: ignore[arg-type]
    assert not account(tmp_path).exists()


def test_two_questions_of_the_same_words_are_charged_twice(tmp_path: Path) -> None:
    for _ in range(3):
        release(Sum(1, 1.0), [1.0], ledger=account(tmp_path), noise_multiplier=2.0)
    found = epsilon(read_ledger(account(tmp_path)).events, DELTA)
    assert found == pytest.approx(epsilon([(Gaussian(2.0), 3)], DELTA), rel=1e-12)
