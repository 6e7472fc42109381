"""What whole runs of training show: the ledger that one writes, and what another record changes in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hushgrad.checks.verification.checks import statistics as st
from hushgrad.checks.verification.checks.noise import NoiseReading
from hushgrad.checks.verification.checks.sampling import SamplingReading
from hushgrad.checks.verification.training.copies import (
    RunTrace,
    SessionLoop,
    TrainingReplica,
)
from hushgrad.checks.verification.update.paired_update import norm
from hushgrad.checks.verification.verdict import Cause, Check, failed_codes
from hushgrad.torch_internals import tree_leaves, tree_map

UPDATES = 12


def ledger_checks(
    replica: TrainingReplica,
    run: RunTrace,
    multiplier: float,
    noise: NoiseReading,
    sampling: SamplingReading | None,
    alpha: float,
) -> tuple[Check, ...]:
    """Compare the ledger of a run with what was measured."""
    return (
        _charged_multiplier(run, multiplier, noise, alpha),
        _charged_rate(replica, run, sampling, alpha),
        _charged_before(run),
        _contract(replica, run),
    )


def _charged_multiplier(run: RunTrace, multiplier: float, noise: NoiseReading, alpha: float) -> Check:
    reach = float(-st.ndtri(alpha / 2)) / math.sqrt(2 * noise.count)
    charged = max((event.noise_multiplier for event, _ in run.ledger.events), default=math.inf)
    return Check(
        code="ledger-multiplier",
        part="ledger",
        claim="the charged noise multiplier is the noise over the sensitivity that were measured",
        measured=f"{charged:.5g} charged, {multiplier:.5g} measured",
        passed=bool(abs(multiplier / charged - 1) <= 2e-3 + reach),
        sample_size=noise.count,
        statistic=multiplier / charged,
        false_alarm=alpha,
        power=f"{2e-3 + 2 * reach:.2%} difference",
    )


def _charged_rate(replica: TrainingReplica, run: RunTrace, sampling: SamplingReading | None, alpha: float) -> Check:
    rates = [rate for rate in (event.charged_rate for event, _ in run.ledger.events) if rate is not None]
    is_right, said = True, "no amplification charged"
    scheme = replica.mechanism.sampling
    if sampling is not None and scheme.poisson_rate is None:
        allowed = scheme.inclusion_probability(replica.reading.count)
        said = f"{min(rates, default=1.0):.6g} charged, at most {allowed:.6g} claimed and measured"
        is_right = min(rates, default=1.0) >= allowed * (1 - 1e-9)
    elif sampling is not None:
        said = f"{min(rates, default=0.0):.6g} charged, {sampling.rate:.6g} measured"
        trials = sampling.checks["sampling-rate"].sample_size
        q = max(rates, default=0.0)
        room = float(-st.ndtri(alpha / 2)) * math.sqrt(max(q * (1 - q), 1e-300) / trials) + 1 / trials
        is_right = bool(rates) and max(abs(rate - sampling.rate) for rate in rates) <= room
    return Check(
        code="ledger-rate",
        part="ledger",
        claim="the charged sampling rate is the measured one",
        measured=said,
        passed=is_right,
        sample_size=max(1, run.updates),
        false_alarm=alpha if sampling is not None else 0.0,
        power="what the check of the rate shows",
    )


def _charged_before(run: RunTrace) -> Check:
    return Check(
        code="ledger-charged-before",
        part="ledger",
        claim="every update is charged, and before it is written",
        measured=f"{run.ledger.steps} charged, {run.updates} updates"
        + ("" if run.charged_before else ", some uncharged"),
        passed=run.ledger.steps == run.updates and run.charged_before,
        sample_size=max(1, run.updates),
        power="every case",
    )


def _contract(replica: TrainingReplica, run: RunTrace) -> Check:
    contract, mechanism = run.ledger.contract, replica.mechanism
    is_same = (
        contract.max_grad_norm == mechanism.sensitivity
        and contract.clipping == mechanism.clipping.describe()
        and contract.sparse_rows == (None if mechanism.sparse_rows is None else mechanism.sparse_rows.describe())
        and contract.expected_batch_size == mechanism.expected_batch_size
        and contract.loss_reduction == mechanism.loss_reduction
        and contract.unit == mechanism.sampling.unit
        and contract.noise_is_secret
    )
    return Check(
        code="ledger-contract",
        part="ledger",
        claim="the ledger states the clip rule, the divisor, the source of noise, the unit and the rows that ran",
        measured=f"{contract.clipping}, C = {contract.max_grad_norm:g}, B = {contract.expected_batch_size:g}, "
        f"noise: {contract.noise_source}, {contract.unit}"
        + ("" if contract.sparse_rows is None else f", {contract.sparse_rows}"),
        passed=is_same,
        sample_size=7,
        power="every difference",
    )


def replay_checks(replica: TrainingReplica, loop: SessionLoop, unit: float) -> tuple[Check, ...]:
    """Train twice under one key, the second time with an altered record: only values may differ, not what happens."""
    plain = replica.train(loop, seed=31, updates=UPDATES)
    # What takes part at once, so that whatever depends on it has twelve steps to show; of a user all records.
    places = replica.records_of(replica.example_of(plain.drawn[0] if plain.drawn else 0))
    others = [
        replica.train(loop, seed=31, updates=UPDATES, dataset=_Neighbour(replica.reading.dataset, places, factor))
        for factor in (1e6, -1e6)
    ]
    same = all(plain.flow == other.flow and plain.ledger.events == other.ledger.events for other in others)
    calls = ", ".join(str(len(run.flow)) for run in (plain, *others))
    change = max(
        norm({n: plain.first[n].double() - other.first[n].double() for n in plain.first if n in other.first})
        for other in others
    )
    room = 2 * unit * (1 + 1e-3) + 1e-5 * norm(plain.first)
    return (
        Check(
            code="replay-steps",
            part="replay",
            claim="under the same keys, another record changes values only, not which steps run, their charges or "
            "rates",
            measured=f"{calls} calls of step, " + ("all alike" if same else "which differ in what they did"),
            passed=same and plain.updates > 0,
            sample_size=max(1, len(plain.flow)),
            power="every difference within twelve updates",
        ),
        Check(
            code="replay-first-update",
            part="replay",
            claim="under the same keys, replacing a record changes the first update by at most 2C",
            measured=f"by {change / unit:.4g} C",
            passed=bool(change <= room),
            sample_size=1,
            statistic=change / unit,
            power="noise or draws that depend on the data",
        ),
    )


class _Neighbour(torch.utils.data.Dataset[Any]):
    """A data set with some records exchanged: their inputs enormous, or the next record where they have no floats."""

    def __init__(self, dataset: Any, places: Sequence[int], factor: float) -> None:
        self._dataset, self._places, self._factor = dataset, frozenset(places), factor

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        record = self._dataset[index]
        if index not in self._places:
            return record
        leaves = [leaf for leaf in tree_leaves(record) if isinstance(leaf, Tensor)]
        if not any(leaf.is_floating_point() for leaf in leaves):
            return self._dataset[(index + 1) % len(self._dataset)]
        return tree_map(
            lambda leaf: self._factor * leaf if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, record
        )


_RUN_CAUSES = {
    "ledger-charged-before": Cause(
        "updates-not-charged",
        "updates ran that the ledger does not hold.",
        "update through the session's optimizer step only.",
    ),
    "replay-steps": Cause(
        "control-flow-depends-on-data",
        "which steps run, or their learning rates, depends on a record (early stopping, skipped batches or schedules "
        "that look at the loss).",
        "let nothing but public numbers decide what runs.",
    ),
}
"""What the failure of a check of a run says, by the code of the check."""


def run_causes(checks: Sequence[Check]) -> list[Cause]:
    """Return what the failed checks of runs say about the mistake."""
    failed = failed_codes(checks)
    return [cause for code, cause in _RUN_CAUSES.items() if code in failed]
