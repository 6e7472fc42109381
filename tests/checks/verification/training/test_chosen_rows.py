"""Training whose updates hold chosen rows: it passes, and each planted silent failure is found by what it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad
from hushgrad import DPSGD, FlatClipping, PoissonSampling, SparseRows
from hushgrad.checks.verification.checks.chosen_rows import row_causes
from hushgrad.checks.verification.checks.noise import read_noise
from hushgrad.checks.verification.training.chosen_rows import row_checks, with_all_rows
from hushgrad.checks.verification.training.copies import TrainingReplica
from hushgrad.checks.verification.update.paired_update import arrays
from hushgrad.checks.verification.verdict import failed_codes
from hushgrad.clipping.bound import BoundRule
from hushgrad.session import update
from hushgrad.sparse_rows import selection
from hushgrad.sparse_rows.counts import Counts

N, B, SIGMA, C, WORDS = 120, 12, 1.1, 0.5, 600
RULE = SparseRows(tables=("words.weight", "places.weight"), threshold=4.0, rows_per_record=2, count_share=0.3)


class Tagger(nn.Module):
    """Two tables, looked up by the same ids."""

    def __init__(self, words: int = WORDS) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, 2), nn.Embedding(words, 3)
        self.head = nn.Linear(5, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.cat([self.words(ids), self.places(ids[:, :1]).expand(-1, 3, -1)], 2).mean(1))


def claim(rule: SparseRows | None = RULE) -> DPSGD:
    return DPSGD(
        noise_multiplier=SIGMA,
        clipping=FlatClipping(C),
        sampling=PoissonSampling(B / N),
        expected_batch_size=B,
        sparse_rows=rule,
    )


def loader(words: int = WORDS) -> DataLoader[Any]:
    source = torch.Generator().manual_seed(2)
    ids = torch.randint(0, words, (N, 3), generator=source)
    return DataLoader(TensorDataset(ids, torch.randint(0, 2, (N,), generator=source)), batch_size=B)


def replica(rule: SparseRows | None = RULE) -> TrainingReplica:
    torch.manual_seed(1)
    by = lambda parameters: torch.optim.SGD(parameters, lr=0.01)  # noqa: E731
    return TrainingReplica.of(Tagger(), loader(), nn.CrossEntropyLoss(), claim(rule), by, None)


def failed(alpha: float = 1e-6) -> tuple[set[str], list[str]]:
    run = replica()
    running = with_all_rows(run).session(seed=None)
    draws = [arrays(running.update(None)) for _ in range(60)]
    written = running.session.written
    running.session.close()
    noise = read_noise(draws, SIGMA * C / B, alpha, 32)
    gradients = {row: run.gradients_of(row) for row in range(8)}
    checks = row_checks(run, run.item(range(8)), gradients, noise, written, SIGMA, alpha)
    assert [check.code for check in checks] == [
        "rows-untouched", "rows-independent", "rows-touched", "rows-counts", "rows-charge",
    ]  # fmt: skip
    return failed_codes([*noise.checks.values(), *checks]), [cause.code for cause in row_causes(checks)]


def no_noise(shape: Any, **_: Any) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def no_rows(*_: Any) -> Tensor:
    return torch.empty(0, dtype=torch.int64)


def half_the_noise(rule: SparseRows, noise_multiplier: float) -> float:
    return noise_multiplier / rule.count_share**0.5 * rule.count_limit / 2


def of_one_step(choose: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, counts, noise_multiplier, step: choose(self, counts, noise_multiplier, 0)


def counted_besides(of: Callable[..., Counts]) -> classmethod[Counts, ..., Counts]:
    """Count a record for a row that none of the batch touches, as the id that fills short bags is."""

    def planted(_: type[Counts], *args: Any) -> Counts:
        counts = of(*args)
        free = next(row for row in range(WORDS) if row not in counts.numbers.tolist())
        return counts.plus(Counts(torch.tensor([free]), torch.ones(1, dtype=torch.float64)))

    return classmethod(planted)


class WithoutCounts(BoundRule):
    """Gradients get the noise of σ, and counts are released beside them."""

    def __init__(self, *args: Any, beside: float = 0.0, **given: Any) -> None:
        super().__init__(*args, **given)


FAULTS: dict[str, tuple[Any, str, Any, set[str]]] = {
    "noise only on touched rows, no untouched one passes": (
        selection.RowSelection, "_others", no_rows, {"rows-untouched", "rows-charge"},
    ),
    "counts without noise": (selection, "standard_normal", no_noise, {"rows-touched"}),
    "counts not clipped": (SparseRows, "weights", lambda rule, n: torch.ones(len(n), dtype=torch.float64),
                           {"rows-counts"}),
    "rows counted that nobody touches": (Counts, "of", counted_besides(Counts.of), {"rows-counts"}),
    "half the noise on counts": (SparseRows, "count_std", half_the_noise, {"rows-untouched", "rows-charge"}),
    "the same noise in every step": (selection.RowSelection, "choose", of_one_step(selection.RowSelection.choose),
                                     {"rows-independent"}),
    "charge of the gradient alone": (update, "BoundRule", WithoutCounts, {"rows-charge"}),
}  # fmt: skip
"""What is put in the place of what, and the checks that must find it."""


CAUSES = {
    "noise only on touched rows, no untouched one passes": "untouched-rows-left-out",
    "counts without noise": "row-counts-without-noise",
    "counts not clipped": "row-counts-not-clipped",
    "the same noise in every step": "row-noise-repeated",
    "charge of the gradient alone": "row-counts-not-charged",
}


def test_training_that_chooses_rows_as_it_says_passes() -> None:
    assert failed() == (set(), [])


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_failure_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, name, planted, codes = FAULTS[fault]
    monkeypatch.setattr(place, name, planted)
    found, causes = failed()
    assert codes <= found
    assert fault not in CAUSES or causes[0] == CAUSES[fault]


@pytest.mark.slow
def test_a_whole_verification_passes() -> None:
    torch.manual_seed(1)
    verdict = hushgrad.verify(Tagger(40), loader(40), nn.CrossEntropyLoss(), claim(), resolution=0.2)
    assert verdict.passed, str(verdict)
    assert {"rows-untouched", "rows-charge"} <= {check.code for check in verdict.checks}


def test_training_without_chosen_rows_is_looked_at_as_ever() -> None:
    plain = replica(None)
    assert with_all_rows(plain) is plain
    written = update.Written({}, None, None)
    assert row_checks(plain, None, {}, None, written, SIGMA, 1e-6) == ()  # type: ignore[arg-type]
